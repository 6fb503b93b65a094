"""How the visited stages' probabilities become one answer.

Layer: policy.  Source: methods.md 5; Wisdom of Committees, arXiv:2012.01988; for "stopping" Guan et
al., IJCAI 2018, section 3.4 (methods.md 3).
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from offramp._core.checks import check_choice
from offramp._core.errors import InputError
from offramp._core.topology import Path, Topology
from offramp.policy.features import Distribution
from offramp.policy.stopping import Stopping

Combine = str  # one of COMBINES, or BY_STOPPING
COMBINES: tuple[Combine, ...] = ("last", "mean", "log_linear")  # for policies of any kind
BY_STOPPING: Combine = "stopping"  # for policies whose every decision is a stopping network's

#: The stopping network after each stage of a path; None after the last stage of the cascade.
Stops = tuple[Stopping | None, ...]


@final
class Combination:
    """A way to combine, with its weights for each path.

    Args:
        kind: "last": the last visited stage answers. "mean": the mean of the visited stages'
            probabilities. "learned": log-linear pooling, the normalized product of p_j ** w_j.
            "stopping": the mean of the visited stages' probabilities, weighted by the probability
            of stopping there, 1 for the last stage.
        weights: For "learned": for each path one weight >= 0 per stage on it, not all 0.
        stops: For "stopping": for each path the stopping network after each stage on it.

    Raises:
        InputError: If weights are given for another kind, or are negative or all 0; or there are
            no stopping networks for "stopping".
    """

    def __init__(
        self,
        kind: Combine,
        weights: Mapping[Path, Sequence[float]] | None,
        stops: Mapping[Path, Stops] | None = None,
    ) -> None:
        check_choice("combine", kind, (*COMBINES, BY_STOPPING))
        if (kind == BY_STOPPING) != (stops is not None):
            raise InputError(
                f"combine={BY_STOPPING!r} is for policies of stopping networks (offramp.train."
                f"train_joint, or the policy 'stopping'), got combine={kind!r} with "
                f"{'no' if stops is None else 'such'} networks."
            )
        if kind != "log_linear" and weights:
            raise InputError(f"weights belong to combine='log_linear', got {kind!r}.")
        for path, given in (weights or {}).items():
            if len(given) != len(path) or min(given) < 0 or max(given) <= 0:
                raise InputError(
                    f"weights must hold for the path {path} one number >= 0 per stage, "
                    f"not all 0, got {list(given)}."
                )
        self.kind = kind
        self.weights = {path: tuple(float(v) for v in w) for path, w in (weights or {}).items()}
        self.stops = dict(stops or {})

    def key(self, path: Path) -> Hashable:
        """What tells this combination of the stages on `path` from others."""
        return (self.kind, self.inputs(path), self.weights.get(path), self.stops.get(path))

    def require(self, paths: Sequence[Path]) -> None:
        """Raise `InputError` if a path of two or more stages has no weights."""
        missing = [p for p in paths if len(p) > 1 and p not in self.weights]
        if self.kind == "log_linear" and missing:
            raise InputError(f"weights are missing for the path {missing[0]}.")

    def inputs(self, path: Path) -> Path:
        """The stages whose distributions `of` wants."""
        return path[-1:] if self.kind == "last" else path

    def of(self, path: Path, each: Sequence[Distribution]) -> Distribution:
        """Combine the distributions of the stages `inputs(path)`, in their order."""
        if len(each) == 1:
            return each[0]
        log_probs = [d.log_probs for d in each]
        if self.kind == "mean":
            return Distribution(mean_log_probs(log_probs))
        if self.kind == BY_STOPPING:
            return Distribution(stopping_log_probs(each, self.stops[path]))
        return Distribution(pooled_log_probs(log_probs, self.weights[path]))


def mean_log_probs(each: Sequence[Float[Tensor, "m c"]]) -> Float[Tensor, "m c"]:
    """Log of the mean of the probabilities, added in the order given."""
    total = each[0].exp()
    for log_probs in each[1:]:
        total = total + log_probs.exp()
    return (total / len(each)).log()


def pooled_log_probs(
    each: Sequence[Float[Tensor, "m c"]], weights: Sequence[float]
) -> Float[Tensor, "m c"]:
    """Log-linear pooling: the normalized product of p_j ** w_j."""
    total = each[0] * weights[0]
    for log_probs, weight in zip(each[1:], weights[1:], strict=True):
        total = total + log_probs * weight
    return total.log_softmax(dim=1)


def stopping_log_probs(each: Sequence[Distribution], stops: Stops) -> Float[Tensor, "m c"]:
    """Log of the mean of the probabilities, weighted by the probability of stopping after each.

    Args:
        each: Distributions of the visited stages, in order.
        stops: The stopping network after each; None stands for probability 1.
    """
    logs = []
    for distribution, stop in zip(each, stops, strict=True):
        if stop is None:
            logs.append(torch.zeros_like(distribution.log_probs[:, 0]))
        else:
            odds = stop.log_odds(distribution)
            pair = torch.stack([odds, torch.zeros_like(odds)], dim=1)
            logs.append(pair.log_softmax(dim=1)[:, 0])  # log pi
    # in logs, so that weights that all but vanish still have a sum to be divided by
    weights = torch.stack(logs, dim=1).softmax(dim=1)  # (m, k)
    total = each[0].log_probs.exp() * weights[:, :1]
    for k, distribution in enumerate(each[1:], 1):
        total = total + distribution.log_probs.exp() * weights[:, k : k + 1]
    return total.log()


def stops_of(topology: Topology, leaves: Mapping[Path, object]) -> dict[Path, Stops]:
    """For each path the stopping network after each of its stages, None where nothing follows.

    Args:
        topology: The stages.
        leaves: For each path that has children, the rule that decides who leaves.

    Raises:
        InputError: If another rule decides somewhere.
    """
    after: dict[Path, Stopping | None] = {path: None for path in topology.paths()}
    for path, leave in leaves.items():
        if not isinstance(leave, Stopping) or leave.stage != path[-1]:
            raise InputError(
                f"combine={BY_STOPPING!r} needs at every node a stopping network of its own stage, "
                f"got {type(leave).__name__} at {path}."
            )
        after[path] = leave
    return {path: tuple(after[path[: k + 1]] for k in range(len(path))) for path in after}
