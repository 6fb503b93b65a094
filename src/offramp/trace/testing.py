"""Synthetic traces for tests, tutorials and trying things out.

Layer: trace.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch

from offramp._core.checks import check_choice, check_positive_int, check_probability, check_seed
from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp._core.types import FloatArray, IntArray
from offramp.trace.trace import Trace

_SHARED = 0.7  # share of the variance of an example's difficulty that all stages have in common
_SHARPNESS = 3.0  # how fast the gap between the two best logits grows with the evidence
_DOUBT = 0.5  # a stage that errs is less sure than one that is right
_RANKS = 5  # labels kept in a ranking


def make_trace(
    n: int = 1000,
    *,
    stages: int = 3,
    classes: int = 4,
    seed: int = 0,
    kind: Literal["logits", "labels", "losses"] = "logits",
    accuracies: Sequence[float] | None = None,
    topology: Topology | None = None,
) -> Trace:
    """A seeded trace whose stages err together, as real networks do.

    An example has one difficulty that all stages share, and each stage adds a noise of its own; a
    stage is right where both together stay below what its accuracy allows. The surer a stage is,
    the further it was from the other answer. Later stages are better and cost 4 times as much.

    Args:
        n: Number of examples, at least 1.
        stages: Number of stages; `accuracies` or `topology` decide where they are given.
        classes: Number of classes, at least 2; all are equally frequent.
        seed: Of everything random.
        kind: "logits"; "labels": up to five ranked labels and the confidence of the first; or
            "losses": 1 - the probability of the true label, and that confidence as feature.
        accuracies: Expected accuracy of each stage, in (0, 1); by default from 0.7 to 0.92.
        topology: By default stages named "stage0", "stage1"... and every forward edge.

    Raises:
        InputError: If a number is outside its domain, or accuracies and topology differ in length.

    >>> trace = make_trace(2000, accuracies=[0.7, 0.9], seed=1)
    >>> [round(trace.accuracy(k), 1) for k in (0, 1)], trace.costs.segment
    ([0.7, 0.9], (1.0, 4.0))
    """
    check_positive_int("n", n)
    check_choice("kind", kind, ("logits", "labels", "losses"))
    if check_positive_int("classes", classes) < 2:
        raise InputError(f"classes must be at least 2, got {classes}.")
    if topology is None:
        count = check_positive_int("stages", stages) if accuracies is None else len(accuracies)
        topology = Topology.of([f"stage{k}" for k in range(count)])
    if accuracies is None:
        accuracies = np.linspace(0.7, 0.92, len(topology)).tolist()
    if len(accuracies) != len(topology):
        raise InputError(
            f"accuracies must have one entry per stage ({len(topology)}), got {len(accuracies)}."
        )
    labels, logits = _outputs(n, classes, accuracies, np.random.default_rng(check_seed(seed)))
    scores = torch.from_numpy(logits).float()  # (n, s, c)
    costs = Costs.simple("flops", [4.0**k for k in range(len(topology))], note="synthetic")
    known = torch.from_numpy(labels)
    if kind == "logits":
        return Trace(topology=topology, labels=known, classes=classes, costs=costs, logits=scores)
    best = scores.softmax(dim=2).sort(dim=2, descending=True, stable=True)
    if kind == "losses":
        true = scores.softmax(dim=2).gather(2, known[:, None, None].expand(-1, len(topology), 1))
        return Trace(
            topology=topology,
            labels=torch.zeros_like(known),
            classes=1,
            costs=costs,
            losses=(1 - true[:, :, 0]).clamp(0, 1),
            features=best.values[:, :, :1],
        )
    return Trace(
        topology=topology,
        labels=known,
        classes=classes,
        costs=costs,
        ranked=best.indices[:, :, :_RANKS],
        confidence=best.values[:, :, 0],
    )


def _outputs(
    n: int, classes: int, accuracies: Sequence[float], rng: np.random.Generator
) -> tuple[IntArray, FloatArray]:
    labels = rng.integers(classes, size=n)
    rival = (labels + rng.integers(1, classes, size=n)) % classes  # what it is mistaken for
    shared = rng.standard_normal(n)
    logits = np.empty((n, len(accuracies), classes))
    rows = np.arange(n)
    for k, accuracy in enumerate(accuracies):
        reach = NormalDist().inv_cdf(check_probability("accuracies", accuracy))
        own = rng.standard_normal(n)
        evidence = reach - np.sqrt(_SHARED) * shared - np.sqrt(1 - _SHARED) * own  # > 0: right
        half_gap = _SHARPNESS * np.where(evidence > 0, evidence, _DOUBT * evidence) / 2
        others = rng.standard_normal((n, classes)) - 3.0
        logits[:, k] = np.minimum(others, -np.abs(half_gap)[:, None] - 0.1)
        logits[rows, k, labels] = half_gap
        logits[rows, k, rival] = -half_gap
    return labels, logits
