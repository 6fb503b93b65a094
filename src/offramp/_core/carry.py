"""What travels with examples from stage to stage and is more than a batch of tensors.

Layer: _core.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from offramp._core.batch import Carried, Form, carry_form, concat, split_rows, take_rows, to_device
from offramp._core.types import Raw


@final
class Carry(Carried):
    """What a segment gives where logits come in the same piece.

    Args:
        tensors: What later segments and heads read: a tensor, a tuple or a mapping; `()` where
            nobody reads any.
        logits: Of `k` stages that ran together, `(n, k, c)`.

    >>> carry = Carry((), torch.zeros(3, 2, 4))
    >>> carry.take(torch.tensor([2])).logits.shape
    torch.Size([1, 2, 4])
    """

    __slots__ = ("logits", "tensors")

    def __init__(self, tensors: Any, logits: Tensor) -> None:  # noqa: ANN401  (as a network gives)
        self.tensors, self.logits = tensors, logits

    @staticmethod
    def of(result: Any) -> "Carry":  # noqa: ANN401  (as a `Piece` gives it)
        """What a module gives whose last tensor, or whose only one, is logits.

        >>> Carry.of((torch.zeros(3, 7), torch.zeros(3, 2, 4))).tensors.shape
        torch.Size([3, 7])
        """
        *rest, logits = (result,) if isinstance(result, Tensor) else result
        if logits.dim() == 2:  # of one stage
            logits = logits.unsqueeze(1)
        return Carry(rest[0] if len(rest) == 1 else tuple(rest), logits)

    def take(self, index: Tensor) -> "Carry":
        """Some of the examples."""
        return Carry(take_rows(self.tensors, index), take_rows(self.logits, index))

    def split(self, sizes: Sequence[int]) -> "list[Carry]":
        """In parts."""
        parts = zip(
            split_rows(self.tensors, sizes), torch.split(self.logits, list(sizes)), strict=True
        )
        return [Carry(tensors, logits) for tensors, logits in parts]

    @staticmethod
    def concat(each: "Sequence[Carry]") -> "Carry":
        """Of several one."""
        tensors = concat([carry.tensors for carry in each])
        return Carry(tensors, torch.cat([carry.logits for carry in each]))

    def form(self) -> Form:
        """What must be the same of those that are joined."""
        return carry_form(self.tensors), carry_form(self.logits)

    def to(self, device: torch.device | str) -> "Carry":
        """The same on another device."""
        return Carry(to_device(self.tensors, device), to_device(self.logits, device))


def tensors_of(carry: Any) -> Any:  # noqa: ANN401  (as a network gives)
    """What the next segment reads of a carry."""
    return carry.tensors if isinstance(carry, Carry) else carry


@final
class RawInput(Carried):
    """The raw input of a batch, and what transforms that stages share have made of it.

    Args:
        rows: The batch.
        shared: Keys of the transforms whose results are kept for the next stage.
        made: Results that are there already, by key.
        whole: Where these are only a part: the whole, the sizes of its parts, and which one it is.
            A transform then runs on the whole.

    >>> raw = RawInput(torch.arange(3), frozenset({"double"}))
    >>> raw.of("double", lambda rows: rows * 2).tolist(), raw.take(torch.tensor([2])).rows.tolist()
    ([0, 2, 4], [2])
    """

    __slots__ = ("_made", "_whole", "rows", "shared")

    def __init__(
        self,
        rows: Raw,
        shared: frozenset[str],
        made: Mapping[str, Any] | None = None,
        whole: "tuple[RawInput, Sequence[int], int] | None" = None,
    ) -> None:
        self.rows, self.shared = rows, shared
        self._made, self._whole = dict(made or {}), whole

    def of(self, key: str, make: Callable[[Raw], Any]) -> Any:  # noqa: ANN401  (what it makes)
        """What a transform makes of the rows, which it does once."""
        found = self._made.get(key)
        if found is None:
            if self._whole is None:
                found = make(self.rows)
            else:
                parent, sizes, k = self._whole
                found = split_rows(parent.of(key, make), sizes)[k]
            self._made[key] = found
        return found

    def take(self, index: Tensor) -> "RawInput":
        """Some of the examples, with what was made of them."""
        made = {key: take_rows(part, index) for key, part in self._made.items()}
        return RawInput(take_rows(self.rows, index), self.shared, made)

    def split(self, sizes: Sequence[int]) -> "list[RawInput]":
        """In parts."""
        parts = split_rows(self.rows, sizes)
        return [RawInput(p, self.shared, None, (self, sizes, k)) for k, p in enumerate(parts)]

    @staticmethod
    def concat(raws: "Sequence[RawInput]") -> "RawInput":
        """Of several one; what was made of all is kept where it can be joined."""
        made = {}
        for key in set.intersection(*(set(raw._made) for raw in raws)):
            parts = [raw._made[key] for raw in raws]
            if len({carry_form(part) for part in parts}) == 1:  # texts may be padded to two lengths
                made[key] = concat(parts)
        return RawInput(concat([raw.rows for raw in raws]), raws[0].shared, made)

    def form(self) -> Form:
        """What must be the same of those that are joined."""
        return carry_form(self.rows)

    def to(self, device: torch.device | str) -> "RawInput":
        """The rows on another device."""
        return RawInput(to_device(self.rows, device), self.shared)
