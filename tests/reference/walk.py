"""The slow twin of `offramp.runtime.walk`: one example and one stage at a time."""

from typing import NamedTuple

import torch
from torch import Tensor

from offramp._core.outputs import StageOutput
from offramp._core.topology import EXIT
from offramp.policy.features import scaled_log_probs
from offramp.policy.policy import Evidence, Policy


class Routed(NamedTuple):
    """What each of `n` examples was answered, and by which path; fields as in `Prediction`."""

    log_probs: Tensor
    path: Tensor
    nonfinite: Tensor
    valid: Tensor
    reasons: list[str]


def route_reference(policy: Policy, outputs: Tensor, ids: Tensor) -> Routed:
    """Walk examples through a policy.

    Args:
        policy: What decides.
        outputs: Logits of all stages, `(n, s, c)`; those of stages not visited are unused.
        ids: Keys of the examples, `(n,)`.
    """
    n, s, c = outputs.shape
    paths = policy.topology.paths()
    log_probs = torch.full((n, c), torch.nan)
    nonfinite, valid = torch.zeros(n).long(), torch.zeros(n).bool()
    taken, reasons = [], []
    for i in range(n):
        path = (policy.topology.root,)
        while True:
            stage = path[-1]
            said = [
                StageOutput(classes=c, logits=outputs[i : i + 1, k]) if k in path else None
                for k in range(s)
            ]
            at = Evidence(policy, path, said, ids[i : i + 1])
            action = int(policy.decide(at)[0])
            children = policy.topology.children(stage)
            finite = bool(outputs[i, stage].isfinite().all())
            if not finite:
                nonfinite[i] += 1
                action = children[-1] if children else EXIT
            elif nonfinite[i] == 0:
                log_probs[i], valid[i] = policy.answer(at)[0], True
            else:
                own = outputs[i : i + 1, stage]
                log_probs[i] = scaled_log_probs(own, policy.temperatures[stage])[0]
                valid[i] = True
            if action == EXIT:
                break
            path = (*path, action)
        taken.append(paths.index(path))
        reasons.append(("policy" if children else "last") if finite else "nonfinite")
    return Routed(log_probs, torch.tensor(taken).long(), nonfinite, valid, reasons)
