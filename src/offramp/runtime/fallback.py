"""Answers of examples with outputs that were not finite: the last finite visited stage answers.

Layer: runtime.  Source: design.md, rules that hold everywhere (NaN logits at run time).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Int8
from torch import Tensor

from offramp._core.outputs import StageOutput


class Fallback(NamedTuple):
    """What `m` examples would be answered if nothing finite came any more.

    Kept from the first output on that is not finite; before it there is nothing to keep.

    Args:
        said: The answer, of `m`; NaN where there is none.
        nonfinite: Number of visited stages that were not finite, `(m,)`.
        valid: Whether one was finite, `(m,)`.
        why: Why an earlier stage answers, or none, `(m,)`: position in `REASONS`; 0 where the last
            visited stage was finite.
    """

    said: StageOutput
    nonfinite: Int[Tensor, " m"]
    valid: Bool[Tensor, " m"]
    why: Int8[Tensor, " m"]

    @classmethod
    def none(cls, m: int, like: StageOutput) -> "Fallback":
        """That of `m` examples of whom no stage has said anything; answers are in `like`'s form."""
        said = like.nothing(m)
        no = torch.zeros(m, dtype=torch.bool, device=said.device)
        return cls(said, no.long(), no, no.to(torch.int8))

    @classmethod
    def all(cls, said: StageOutput) -> "Fallback":
        """That of examples who have all been answered, by finite outputs alone."""
        none = cls.none(len(said), said)
        return none._replace(said=said, valid=~none.valid)

    def take(self, rows: Tensor | None) -> "Fallback":
        """Those of some examples, by position; None for all."""
        if rows is None:
            return self
        said, *others = self
        return Fallback(said.take(rows), *(values[rows] for values in others))

    def put(self, rows: Tensor | None, part: "Fallback") -> "Fallback":
        """The same with other values for some examples."""
        if rows is None:
            return part
        pairs = zip(self[1:], part[1:], strict=True)
        return Fallback(
            self.said.put(rows, part.said),
            *(whole.index_copy(0, rows, new) for whole, new in pairs),
        )

    def after(
        self,
        finite: Bool[Tensor, " m"],
        *,
        combined: StageOutput,
        before: StageOutput | None,
        alone: StageOutput,
        why: Int8[Tensor, " m"],
    ) -> "Fallback":
        """The same after one more visited stage.

        Args:
            finite: Whom the stage has answered.
            combined: The answer as the policy combines here.
            before: The same at the stage before, None where there is none.
            alone: The answer of this stage alone.
            why: What happened to those that are not finite.
        """
        held, valid, clean = self.said, self.valid, self.nonfinite == 0
        if before is not None:
            held, valid = before.where(clean, held), valid | clean
        new = combined.where(clean, alone)
        return Fallback(
            new.where(finite, held),
            self.nonfinite + (~finite).long(),
            valid | finite,
            why.masked_fill(finite, 0),
        )

    def without(self, refused: Bool[Tensor, " m"]) -> "Fallback":
        """The same, but for examples that nobody may answer any more."""
        return self._replace(
            said=self.said.where(~refused, self.said.nothing(len(refused))),
            valid=self.valid & ~refused,
        )
