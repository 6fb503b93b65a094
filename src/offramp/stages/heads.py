"""Heads of exits, as they read what a segment gives.

Layer: stages.  Source: methods.md 1 (early exit).
"""

from collections.abc import Iterable, Sequence
from typing import Any, final

from torch import Tensor, fx, nn

from offramp._core.errors import InputError


@final
class OfFirst(nn.Module):
    """A head that reads the first tensor of a carry: what the layer before the cut gave.

    Args:
        head: Reads that tensor, and those of `also` as further arguments.
        also: Positions of what else it reads: inputs of the network that are carried along.

    >>> import torch
    >>> OfFirst(nn.Linear(2, 3))((torch.zeros(5, 2), torch.zeros(5, 7))).shape
    torch.Size([5, 3])
    """

    def __init__(self, head: nn.Module, also: Sequence[int] = ()) -> None:
        super().__init__()
        self.head = head
        self.also = tuple(also)

    def read(self, carry: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What of a carry the head reads."""
        return carry[0], *(carry[k] for k in self.also)

    def forward(self, carry: Sequence[Tensor]) -> Any:  # noqa: ANN401  (what the head gives)
        """Give what the head makes of what it reads."""
        return self.head(*self.read(carry))


def kept_inputs(heads: Iterable[nn.Module]) -> tuple[str, ...]:
    """Inputs of the network that some heads read: what stands in their attribute `keeps`.

    >>> from offramp.models import token_linear
    >>> kept_inputs([nn.Linear(2, 3), token_linear(2, 3, pooling="mean", mask="attention_mask")])
    ('attention_mask',)
    """
    return tuple(dict.fromkeys(name for head in heads for name in _keeps(head)))


def attached(head: nn.Module, segment: nn.Module, keep: Sequence[str] = ()) -> nn.Module:
    """The head as it reads what a segment gives: of several tensors it takes the first.

    Args:
        head: May have an attribute `keeps`, names of inputs that it reads beside that.
        segment: Of `cut`.
        keep: Inputs that the segment hands on, as `cut` took them.

    Raises:
        InputError: If the head reads another input.

    >>> head = nn.Linear(2, 3)
    >>> attached(head, nn.Identity()) is head
    True
    """
    missing = [name for name in _keeps(head) if name not in keep]
    if missing:
        raise InputError(
            f"The head reads the inputs {missing}, which the segment does not hand on; cut with "
            f"keep={missing}."
        )
    count = _count_given(segment)
    if count is None:
        return head
    return OfFirst(head, [count - len(keep) + list(keep).index(name) for name in _keeps(head)])


def own_head(head: nn.Module) -> nn.Module:
    """The head that was attached, in whatever way.

    >>> head = nn.Linear(2, 3)
    >>> own_head(OfFirst(head)) is head
    True
    """
    return head.head if isinstance(head, OfFirst) else head


def _keeps(head: nn.Module) -> tuple[str, ...]:
    return tuple(getattr(head, "keeps", ()))


def _count_given(segment: nn.Module) -> int | None:
    """How many tensors a segment gives in a tuple; None where it gives one."""
    if not isinstance(segment, fx.GraphModule):
        return None
    output = next(node for node in segment.graph.nodes if node.op == "output")
    return len(output.args[0]) if isinstance(output.args[0], tuple) else None
