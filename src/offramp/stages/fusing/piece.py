"""A piece: segments and heads that run in one call, and what a stage says of its part in one.

Layer: stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from offramp._core.batch import apply, flat, without_none
from offramp._core.errors import InputError
from offramp._core.schema import omitted
from offramp.models import extract_logits
from offramp.stages.reading import Reading


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class InPiece:
    """The part that a stage has in a piece; by default it runs by itself.

    Args:
        ran: Whether its segment ran with an earlier stage's: it hands on what it is given.
        gives_logits: Whether the last tensor that its module gives is logits `(n, k, c)`.
        column: Which of the logits that come along, of whichever module, are its answer; None where
            its head makes one, or nobody may ask it.
        domain: Lowest and highest number that the transform reads which its module begins with.
    """

    ran: bool = omitted(False)
    gives_logits: bool = omitted(False)
    column: int | None = omitted(None)
    domain: tuple[float, float] | None = omitted(None)

    def __post_init__(self) -> None:
        alone = not self.ran and not self.gives_logits
        if (self.ran and self.gives_logits) or (self.column is not None and alone):
            raise InputError(f"A stage cannot have this part in a piece: {self}.")
        if self.column is not None and self.column < 0:
            raise InputError(f"column must be at least 0, got {self.column}.")

    def __bool__(self) -> bool:
        return self.ran or self.gives_logits


ALONE = InPiece()


@final
class Piece(nn.Module):
    """A transform, segments and heads, in one call.

    It gives the tensors of the last segment's carry and, behind them, the logits `(n, k, c)` of
    all heads in order; one head alone gives `(n, c)`.

    Args:
        segments: One after the other; none if heads read the input itself.
        heads: For each segment (or the input) what makes logits of what it gives.
        carry: Whether what the last segment gives is needed afterwards.
        transform: What comes before the first segment.
        classes: How many there are, where it is known.

    >>> piece = Piece([nn.Linear(4, 6)], [[nn.Linear(6, 3), nn.Linear(6, 3)]], carry=True)
    >>> [tuple(given.shape) for given in piece(torch.zeros(2, 4))]
    [(2, 6), (2, 2, 3)]
    """

    def __init__(
        self,
        segments: Sequence[nn.Module],
        heads: Sequence[Sequence[nn.Module]],
        *,
        carry: bool,
        transform: nn.Module | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.segments = nn.ModuleList(segments)
        self.heads = nn.ModuleList(nn.ModuleList(each) for each in heads)
        self._carry, self._classes = carry, classes
        self._reads = [[Reading(f"A head of segment {k}") for _ in e] for k, e in enumerate(heads)]
        self.eval()

    def forward(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401  (as the first segment)
        """Give the carry's tensors and the logits, or one of the two alone."""
        result = named or (args[0] if len(args) == 1 else args)
        if self.transform is not None:
            result = self.transform(result)
        said = []
        for k, (heads, reads) in enumerate(zip(self.heads, self._reads, strict=True)):
            if len(self.segments):
                result = apply(self.segments[k], result)
            for head, read in zip(heads, reads, strict=True):  # type: ignore[call-overload]
                said.append(extract_logits(read(head, result), self._classes))
        if not said:
            return without_none(result)
        logits = said[0] if len(said) == 1 and not self._carry else torch.stack(said, dim=1)
        if not self._carry:
            return logits
        if isinstance(result, Mapping):
            raise InputError(
                "Stages cannot run in one piece where the carry behind them is a mapping, got the "
                f"keys {list(result)}."
            )
        return (*flat(result), logits)

    def parts(self) -> list[nn.Module]:
        """Segments and heads."""
        return [*self.segments, *(head for heads in self.heads for head in heads)]  # type: ignore[attr-defined]
