"""Token ids of unequal length as one tensor with its mask.

Layer: stages.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from offramp._core.batch import RowList
from offramp._core.checks import check_choice, check_positive_int
from offramp._core.errors import InputError
from offramp._core.schema import stored
from offramp._core.types import IntArray, Raw

Rows = Sequence[Any]  # one field of all examples


@final
@stored("pad", brief=True)
class Pad(nn.Module):
    """Sequences padded to the longest of their batch, with a mask of what is no padding.

    A network has to leave out what the mask leaves out: then answers do not depend on the batch.

    Args:
        value: What stands for padding in `field`; other fields get 0.
        field: Name of the token ids, in dict rows and for the network.
        mask: Name of the mask for the network, 1 for tokens and 0 for padding, or None for none.
        length: Most tokens of an example, longer ones are cut; None cuts nothing.
        multiple: The padded length is a multiple of this, where `length` allows it.
        side: "right" or "left" of the tokens.

    Raises:
        InputError: If `length` or `multiple` is no integer of at least 1, or `side` another.

    >>> found = Pad(0)([[5, 6, 7], [8]])
    >>> found["input_ids"].tolist(), found["attention_mask"].tolist()
    ([[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    """

    reads_rows = True

    def __init__(
        self,
        value: int = 0,
        field: str = "input_ids",
        mask: str | None = "attention_mask",
        length: int | None = None,
        multiple: int = 1,
        side: str = "right",
    ) -> None:
        super().__init__()
        self.value, self.field, self.mask = value, field, mask
        self.length = None if length is None else check_positive_int("length", length)
        self.multiple = check_positive_int("multiple", multiple)
        self.side = check_choice("side", side, ("right", "left"))

    def forward(self, rows: Raw) -> dict[str, Tensor] | Tensor:
        """Pad a list of token ids or of dicts, a tensor `(m, t)`, or a mapping of such fields.

        Returns:
            Fields by name, `(m, t)`, int64; of token ids alone without a mask one tensor.

        Raises:
            InputError: If an example has no tokens, something else than whole numbers, or fields of
                two lengths.
        """
        fields = self._fields(rows)
        ids = [self._whole(k, self.field, row) for k, row in enumerate(fields[self.field])]
        width = self._width(ids)
        found = {self.field: self._filled(ids, width, self.value)}
        for name, values in fields.items():
            if name != self.field:
                found[name] = self._beside(name, values, ids, width)
        if self.mask is not None and self.mask not in found:
            found[self.mask] = self._filled([np.ones_like(row) for row in ids], width, 0)
        alone = self.mask is None and not isinstance(rows, Mapping) and len(found) == 1
        return found[self.field] if alone and not _are_dicts(rows) else found

    def extra_repr(self) -> str:
        """Its arguments, for printing."""
        return (
            f"value={self.value!r}, field={self.field!r}, mask={self.mask!r}, "
            f"length={self.length!r}, multiple={self.multiple!r}, side={self.side!r}"
        )

    def _fields(self, rows: Raw) -> dict[str, Rows]:
        if isinstance(rows, Mapping):
            fields = dict(rows)
        elif _are_dicts(rows):
            names = list(rows[0])
            if any(list(row) != names for row in rows):
                raise InputError(
                    f"Every example must have the fields of the first, {names}, got "
                    f"{next(list(row) for row in rows if list(row) != names)}."
                )
            fields = {name: [row[name] for row in rows] for name in names}
        else:
            fields = {self.field: rows}
        if self.field not in fields:
            raise InputError(f"Pad needs the field {self.field!r}, got {list(fields)}.")
        return fields

    def _whole(self, k: int, name: str, row: Any) -> IntArray:  # noqa: ANN401
        given = row.numpy(force=True) if isinstance(row, Tensor) else row
        found = np.asarray(given) if not isinstance(given, str | bytes) else np.empty(0, "U1")
        if found.ndim != 1 or found.dtype.kind not in "iub" or not found.size:
            raise InputError(
                f"{name!r} of example {k} must be at least one token id, whole numbers in a list, "
                f"got {row!r:.80}."
            )
        return found[: self.length].astype(np.int64)

    def _beside(self, name: str, values: Rows, ids: Rows, width: int) -> Tensor:
        """Another field: as long as the token ids, or one number for each example."""
        if isinstance(values, Tensor) and values.dim() == 1:
            return values
        rows = [self._whole(k, name, row) for k, row in enumerate(values)]
        for k, (row, own) in enumerate(zip(rows, ids, strict=True)):
            if len(row) != len(own):
                raise InputError(
                    f"{name!r} of example {k} must have an entry for each of the {len(own)} "
                    f"tokens, got {len(row)}."
                )
        return self._filled(rows, width, 0)

    def _width(self, ids: Rows) -> int:
        longest = max(map(len, ids), default=1)
        width = -(-longest // self.multiple) * self.multiple
        return width if self.length is None else min(width, self.length)

    def _filled(self, rows: Rows, width: int, value: int) -> Tensor:
        found = np.full((len(rows), width), value, dtype=np.int64)
        for k, row in enumerate(rows):
            start = 0 if self.side == "right" else width - len(row)
            found[k, start : start + len(row)] = row
        return torch.from_numpy(found)


def _are_dicts(rows: Raw) -> bool:
    return isinstance(rows, RowList | list) and bool(rows) and isinstance(rows[0], Mapping)
