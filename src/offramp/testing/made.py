"""Random topologies and policies, for tests of whatever runs or replays a policy.

Layer: testing.
"""

from typing import Any

import numpy as np

from offramp._core.topology import Path, Topology
from offramp.policy.combination import Combine
from offramp.policy.features import Feature, confidence_features
from offramp.policy.policy import Node, Policy
from offramp.policy.rules import Agreement, Constant, Linear, Random
from offramp.policy.situation import Rule

Rng = np.random.Generator


def random_topology(
    stages: int, *, seed: int, share: float = 0.6, shared: bool = False
) -> Topology:
    """A part of the DAG over some stages: any root, each forward edge with probability `share`.

    Args:
        stages: Number of stages, at least 1.
        seed: Of everything random.
        share: Share of the edges that are there, in [0, 1].
        shared: True makes stages continue earlier ones; else each reads the raw input.

    >>> random_topology(3, seed=0, share=1.0).describe()
    'stage0 -> stage1, stage0 -> stage2, stage1 -> stage2'
    """
    rng = np.random.default_rng(seed)
    names = [f"stage{k}" for k in range(stages)]
    sources = [int(rng.integers(-1, k)) if shared and k else -1 for k in range(stages)]
    whole = Topology.of(names, sources=sources)
    kept = [edge for edge in whole.edges if rng.random() < share]
    return whole.part(kept, root=int(rng.integers(0, max(stages - 1, 1))) if share < 1 else 0)


def random_policy(
    topology: Topology,
    *,
    seed: int,
    classes: int,
    combine: Combine = "last",
    linear: bool = False,
) -> Policy:
    """A policy whose rules are drawn for each path.

    Args:
        topology: What the policy uses.
        seed: Of everything random.
        classes: Number of classes of the outputs.
        combine: How visited stages are combined; weights are drawn.
        linear: True draws linear rules only; else there are all kinds of them.

    >>> random_policy(Topology.of(["a", "b"]), seed=1, classes=3).topology.describe()
    'a -> b'
    """
    rng = np.random.default_rng(seed)
    nodes = {}
    for path in topology.paths():
        children = topology.children(path[-1])
        if children:
            rules = [_rule(path, classes, combine, rng, linear) for _ in children]
            nodes[path] = Node(rules[0], rules[1:])
    given: dict[str, Any] = {}
    if combine == "log_linear":
        given["weights"] = {path: list(rng.uniform(0, 2, len(path))) for path in topology.paths()}
    temperatures = list(rng.uniform(0.5, 3.0, len(topology)))
    return Policy(topology, nodes, temperatures=temperatures, combine=combine, **given)


def _rule(path: Path, classes: int, combine: Combine, rng: Rng, linear: bool) -> Rule:
    draw = 1.0 if linear else rng.random()
    if draw < 0.1:
        return Constant(bool(rng.integers(2)))
    if draw < 0.25:
        return Random(float(rng.random()), int(rng.integers(1000)), path[-1])
    if draw < 0.35 and len(path) > 1:
        return Agreement((path[0], path[-1]))
    if draw < 0.65 or (linear and rng.random() < 0.5):  # splits most batches
        return Linear.threshold(Feature("max_prob", path[-1]), float(rng.uniform(0.4, 0.95)))
    features = confidence_features(path, classes, combined=combine != "last")
    weights = rng.normal(size=len(features))
    return Linear(features, list(weights), float(rng.normal()))
