"""Parts of a cascade that run in one piece, and the small modules that take them apart again.

Where a segment and heads run in one piece it gives the carry and, behind it, the logits. So a head
picks its logits, and the segments that continue read what is in front of them.

Layer: backends.
"""

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor, nn

from offramp._core.batch import apply
from offramp.backends.form import flat, without_none
from offramp.models import extract_logits


@final
class Piece(nn.Module):
    """Transform, a segment and heads; without a carry it gives the logits alone.

    Args:
        module: The segment, or a whole network.
        transform: What comes before it, if anything.
        heads: What reads its result.
        answers: Whether `module` itself gives the logits.
        classes: How many there are, where it is known.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        transform: nn.Module | None,
        heads: Sequence[nn.Module],
        answers: bool,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.module, self.transform = module, transform
        self.heads = nn.ModuleList(heads)
        self._answers, self._classes = answers, classes
        self.eval()

    def forward(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401  (as the network)
        """Give the logits, or the carry, or a tuple of the carry and each head's logits."""
        given = _called_with(args, named)
        result = apply(self.module, given if self.transform is None else self.transform(given))
        if self._answers:
            return extract_logits(result, self._classes)
        if not self.heads:
            return without_none(result)
        return (
            *flat(result),
            *(extract_logits(head(result), self._classes) for head in self.heads),
        )


@final
class Reading(nn.Module):
    """A module that reads the first tensors of a tuple only.

    Args:
        module: Takes one tensor, or as many as are left.
        count: How many it reads.
        single: Whether it takes what is left in one argument, as a head does.

    >>> import torch
    >>> Reading(nn.Identity(), 1)(torch.zeros(2, 3), torch.zeros(2, 7)).shape
    torch.Size([2, 3])
    """

    def __init__(self, module: nn.Module, count: int, *, single: bool = False) -> None:
        super().__init__()
        self.module = module
        self.count, self.single = count, single
        self.eval()

    def forward(self, *args: Any) -> Any:  # noqa: ANN401  (as the module)
        """Run the module on the first tensors."""
        whole = args[0] if len(args) == 1 and not isinstance(args[0], Tensor) else args
        given = tuple(whole[: self.count])
        if self.count == 1:
            return self.module(given[0])
        return self.module(given) if self.single else self.module(*given)


@final
class Logits(nn.Module):
    """The head of a segment that has computed the logits already.

    >>> import torch
    >>> Logits(-1)((torch.zeros(2, 7), torch.zeros(2, 3))).shape
    torch.Size([2, 3])
    """

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position
        self.eval()

    def forward(self, result: Sequence[Tensor]) -> Tensor:
        """Pick them from what the segment gave."""
        return result[self.position]


@final
class InOne(nn.Module):
    """A head whose several inputs come as arguments, as a network's do."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.eval()

    def forward(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401  (as the head)
        """Hand them over in one."""
        return self.head(_called_with(args, named))


def _called_with(args: Sequence[Any], named: Any) -> Any:  # noqa: ANN401  (a batch)
    if named:
        return named
    return args[0] if len(args) == 1 else tuple(args)
