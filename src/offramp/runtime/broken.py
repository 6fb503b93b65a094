"""Answers of examples with outputs that were not finite: the last finite visited stage answers.

Layer: runtime.  Source: design.md, rules that hold everywhere (NaN logits at run time).
"""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def finite_rows(logits: Float[Tensor, "m c"]) -> Bool[Tensor, " m"]:
    """True where all logits are finite.

    >>> finite_rows(torch.tensor([[0.0, 1.0], [torch.nan, 0.0], [0.0, -torch.inf]]))
    tensor([ True, False, False])
    """
    return logits.abs().amax(dim=1) < torch.inf  # NaN is the largest, and compares false


@final
class Broken:
    """What some of `n` examples would be answered if nothing finite came any more.

    Kept from the first output on that is not finite; before it there is nothing to keep.

    Args:
        n: Number of examples.
        like: Some logits `(m, c)`, for the number of classes and the device.
    """

    def __init__(self, n: int, like: Float[Tensor, "m c"]) -> None:
        self.answer = like.new_full((n, like.shape[1]), torch.nan)  # (n, c)
        self.nonfinite = torch.zeros(n, dtype=torch.int64, device=like.device)
        self.valid = torch.zeros(n, dtype=torch.bool, device=like.device)

    def update(
        self,
        rows: Tensor | None,
        finite: Bool[Tensor, " m"],
        *,
        combined: Float[Tensor, "m c"],
        before: Float[Tensor, "m c"] | None,
        alone: Float[Tensor, "m c"],
    ) -> None:
        """Take in one more visited stage.

        Args:
            rows: Positions of the examples, or None for all.
            finite: Whose logits are finite.
            combined: The answer as the policy combines here.
            before: The same at the stage before, None where there is none.
            alone: The answer of this stage alone.
        """
        held, valid, broken = (
            values if rows is None else values[rows]
            for values in (self.answer, self.valid, self.nonfinite)
        )
        clean = broken == 0  # (m,)
        if before is not None:
            held, valid = torch.where(clean[:, None], before, held), valid | clean
        new = torch.where(clean[:, None], combined, alone)
        answer = torch.where(finite[:, None], new, held)
        valid, broken = valid | finite, broken + (~finite).long()
        if rows is None:
            self.answer, self.valid, self.nonfinite = answer, valid, broken
        else:
            self.answer.index_copy_(0, rows, answer)
            self.valid.index_copy_(0, rows, valid)
            self.nonfinite.index_copy_(0, rows, broken)

    def take(self, rows: Tensor) -> "Broken":
        """Those of some examples, by position."""
        part = Broken(0, self.answer)
        part.answer, part.valid = self.answer[rows], self.valid[rows]
        part.nonfinite = self.nonfinite[rows]
        return part
