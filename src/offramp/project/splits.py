"""Reading traces for a command, with the splits that it needs.

Layer: project.
"""

import warnings
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING

from offramp._core.errors import InputError

if TYPE_CHECKING:
    from offramp.trace import Trace


def load_divided(path: Path, *, seed: int) -> "Trace":
    """A trace with splits; one without them is divided into halves, always alike for a seed."""
    from offramp.trace import load_trace

    trace = load_trace(path)
    if trace.split is not None:
        return trace
    warnings.warn(
        f"{path} has no splits; half of it becomes 'fit', half 'calibrate' (seed {seed}).",
        stacklevel=2,
    )
    return trace.halved(seed=seed)


def check_unlabeled(delta: float | None, risks: Set[str]) -> None:
    """Refuse promises that take labels where there are none to trust.

    Args:
        delta: None if nothing is to be promised.
        risks: Those to be promised.

    Raises:
        InputError: If a risk takes labels, or there is nothing to promise.
    """
    from offramp.evaluation.limits import UNLABELED

    if delta is None:
        raise InputError(
            "--unlabeled needs --delta: without labels an operating point cannot be measured, "
            "only disagreement with the reference and cost can be promised. Give --delta, such as "
            "0.05, or leave --unlabeled out."
        )
    for risk in sorted(risks - set(UNLABELED)):
        raise InputError(
            f"--unlabeled leaves no labels for --risk {risk}. Give --risk disagreement, which "
            "takes none, or --max-cost alone."
        )


def part_of(trace: "Trace", split: str) -> "Trace":
    """The examples of one split; "all" stands for all of them."""
    from offramp._core.checks import check_split

    return trace if split == "all" else trace.subset(check_split("--split", split))  # type: ignore[arg-type]


def unseen(trace: "Trace") -> "Trace":
    """The part that nothing was fitted or chosen on: `test`, else `calibrate`, else `fit`."""
    for split in ("test", "calibrate", "fit"):
        if trace.has_split(split):
            return trace.subset(split)
    raise InputError("The trace has none of the splits test, calibrate and fit.")
