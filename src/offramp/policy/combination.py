"""How the visited stages' probabilities become one answer.

Layer: policy.  Source: methods.md 5; Wisdom of Committees, arXiv:2012.01988.
"""

from collections.abc import Mapping, Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor

from offramp._core.checks import check_choice
from offramp._core.errors import InputError
from offramp._core.topology import Path
from offramp.policy.features import Distribution

Combine = str  # one of COMBINES
COMBINES: tuple[Combine, ...] = ("last", "mean", "weighted")


@final
class Combination:
    """A way to combine, with its weights for each path.

    Args:
        kind: "last": the last visited stage answers. "mean": the mean of the visited stages'
            probabilities. "weighted": log-linear pooling, the normalised product of p_j ** w_j.
        weights: For "weighted": for each path one weight >= 0 per stage on it, not all 0.

    Raises:
        InputError: If weights are given for another kind, or are negative or all 0.
    """

    def __init__(self, kind: Combine, weights: Mapping[Path, Sequence[float]] | None) -> None:
        check_choice("combine", kind, COMBINES)
        if kind != "weighted" and weights:
            raise InputError(f"weights belong to combine='weighted', got {kind!r}.")
        for path, given in (weights or {}).items():
            if len(given) != len(path) or min(given) < 0 or max(given) <= 0:
                raise InputError(
                    f"weights must hold for the path {path} one number >= 0 per stage, "
                    f"not all 0, got {list(given)}."
                )
        self.kind = kind
        self.weights = {path: tuple(float(v) for v in w) for path, w in (weights or {}).items()}

    def require(self, paths: Sequence[Path]) -> None:
        """Raise `InputError` if a path of two or more stages has no weights."""
        missing = [p for p in paths if len(p) > 1 and p not in self.weights]
        if self.kind == "weighted" and missing:
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
    """Log-linear pooling: the normalised product of p_j ** w_j."""
    total = each[0] * weights[0]
    for log_probs, weight in zip(each[1:], weights[1:], strict=True):
        total = total + log_probs * weight
    return total.log_softmax(dim=1)
