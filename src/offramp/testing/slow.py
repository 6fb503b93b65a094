"""The slow twin of `offramp.evaluation.replay`: one example and one stage at a time.

Layer: testing.
"""

from dataclasses import replace

import numpy as np
import torch

from offramp._core.keys import example_keys
from offramp._core.topology import EXIT, Path
from offramp.evaluation.replay import Replay, path_costs
from offramp.policy import Evidence, Policy
from offramp.trace import Trace


def replay_slow(trace: Trace, policy: Policy, *, top: int = 1) -> Replay:
    """As `replay`, but one example and one stage at a time: slow and obvious."""
    topology = policy.topology
    paths, labels, closest, paid = [], [], [], []
    for row in range(len(trace)):
        one = trace.take(torch.tensor([row]))
        walked: Path = ()
        action, near = topology.root, torch.inf
        while action != EXIT:
            walked = (*walked, action)
            # what may be seen of one example that came this way: nothing of other stages
            outputs = [one.output(k) if k in walked else None for k in range(len(topology))]
            at = Evidence(policy, walked, outputs, example_keys(one.ids))
            actions, scores = policy.decide(at)
            action = int(actions[0])
            near = min(near, abs(float(scores[0])))
        paths.append(topology.paths().index(walked))
        labels.append(policy.predict(at, top=top)[0].tolist())
        closest.append(near)
        costs = trace.costs  # of this example alone
        if one.prices is not None:
            costs = replace(costs, segment=tuple(one.prices[0].tolist()))
        paid.append(costs.path(topology, walked, policy.decided(walked)))
    truth = trace.labels.tolist()
    return Replay(
        stages=len(topology),
        paths=topology.paths(),
        path=np.array(paths, dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        loss=np.array([float(t not in best) for t, best in zip(truth, labels, strict=True)]),
        path_cost=path_costs(trace, policy),
        closest=np.array(closest, dtype=np.float64),
        paid=None if trace.prices is None else np.array(paid, dtype=np.float64),
    )
