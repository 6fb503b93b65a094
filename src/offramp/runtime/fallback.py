"""Answers of examples with outputs that were not finite: the last finite visited stage answers.

Layer: runtime.  Source: design.md, rules that hold everywhere (NaN logits at run time).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor


class Fallback(NamedTuple):
    """What `m` examples would be answered if nothing finite came any more.

    Kept from the first output on that is not finite; before it there is nothing to keep.

    Args:
        log_probs: The answer, `(m, c)`; NaN where there is none.
        nonfinite: Number of visited stages that were not finite, `(m,)`.
        valid: Whether one was finite, `(m,)`.
        why: Why an earlier stage answers, or none, `(m,)`: position in `REASONS`; 0 where the last
            visited stage was finite.
    """

    log_probs: Float[Tensor, "m c"]
    nonfinite: Int[Tensor, " m"]
    valid: Bool[Tensor, " m"]
    why: Int8[Tensor, " m"]

    @classmethod
    def none(cls, m: int, like: Float[Tensor, "k c"]) -> "Fallback":
        """That of `m` examples of whom no stage has said anything; `like` gives classes, device."""
        no = torch.zeros(m, dtype=torch.bool, device=like.device)
        return cls(like.new_full((m, like.shape[1]), torch.nan), no.long(), no, no.to(torch.int8))

    def take(self, rows: Tensor | None) -> "Fallback":
        """Those of some examples, by position; None for all."""
        return self if rows is None else Fallback(*(values[rows] for values in self))

    def put(self, rows: Tensor | None, part: "Fallback") -> "Fallback":
        """The same with other values for some examples."""
        if rows is None:
            return part
        return Fallback(
            *(whole.index_copy(0, rows, new) for whole, new in zip(self, part, strict=True))
        )

    def after(
        self,
        finite: Bool[Tensor, " m"],
        *,
        combined: Float[Tensor, "m c"],
        before: Float[Tensor, "m c"] | None,
        alone: Float[Tensor, "m c"],
        why: Int8[Tensor, " m"],
    ) -> "Fallback":
        """The same after one more visited stage.

        Args:
            finite: Whose logits are finite.
            combined: The answer as the policy combines here.
            before: The same at the stage before, None where there is none.
            alone: The answer of this stage alone.
            why: What happened to those that are not finite.
        """
        held, valid, clean = self.log_probs, self.valid, self.nonfinite == 0
        if before is not None:
            held, valid = torch.where(clean[:, None], before, held), valid | clean
        new = torch.where(clean[:, None], combined, alone)
        return Fallback(
            torch.where(finite[:, None], new, held),
            self.nonfinite + (~finite).long(),
            valid | finite,
            why.masked_fill(finite, 0),
        )

    def without(self, refused: Bool[Tensor, " m"]) -> "Fallback":
        """The same, but for examples that nobody may answer any more."""
        return self._replace(
            log_probs=self.log_probs.masked_fill(refused[:, None], torch.nan),
            valid=self.valid & ~refused,
        )
