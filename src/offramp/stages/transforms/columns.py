"""Columns of tables, mappings and rows of dicts.

Layer: stages.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.batch import RowList, as_rows, is_table
from offramp._core.checks import check_known
from offramp._core.errors import InputError
from offramp._core.schema import stored
from offramp._core.types import Raw


@final
@stored("columns", brief=True)
class Columns(nn.Module):
    """Some columns: of numbers as one float32 tensor `(m, d)`, in the order of the names.

    Args:
        names: Of the columns. One text in place of a list gives that column alone, as it is: a
            tensor, or a list of texts or images for the next transform.
        stack: False gives a mapping of the columns as they are, which a network takes by name.

    Raises:
        InputError: If there is no name.

    >>> Columns(["age", "size"])({"age": [30, 40], "size": [1.5, 1.8], "name": ["a", "b"]}).shape
    torch.Size([2, 2])
    """

    reads_rows = True
    keeps_domain = True

    def __init__(self, names: str | tuple[str, ...] | list[str], stack: bool = True) -> None:
        super().__init__()
        self.names = names if isinstance(names, str) else tuple(names)
        self.stack = stack
        if not self.names:
            raise InputError(f"names must hold at least one column, got {names!r}.")

    def forward(self, x: Raw) -> Any:  # noqa: ANN401  (a tensor, a column or a mapping)
        """Take the columns of a pandas table, a mapping of columns, or a list of dicts.

        Raises:
            UnknownNameError: If there is no such column.
            InputError: If `x` has no columns, or one to be stacked holds no numbers.
        """
        if isinstance(self.names, str):
            return self._column(x, self.names)
        found = {name: self._column(x, name) for name in self.names}
        if not self.stack:
            return found
        for name, column in found.items():
            if not isinstance(column, Tensor) or column.dim() != 1:
                raise InputError(
                    f"Column {name!r} must hold one number for each example, got "
                    f"{_content(column)}. Fill gaps and encode text before, or take the column "
                    "alone: Columns('name')."
                )
        lengths = {name: len(column) for name, column in found.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"Columns must have one length, got {lengths}.")
        return torch.stack([column.to(torch.float32) for column in found.values()], dim=1)

    def extra_repr(self) -> str:
        """Its arguments, for printing."""
        return f"names={self.names!r}, stack={self.stack!r}"

    def _column(self, x: Raw, name: str) -> Any:  # noqa: ANN401  (whatever stands there)
        if isinstance(x, Mapping) or is_table(x):
            known = list(x) if isinstance(x, Mapping) else list(map(str, x.columns))
            return as_rows(x[check_known("column", name, known)])
        if not isinstance(x, list) or not all(isinstance(row, Mapping) for row in x):
            raise InputError(
                f"Columns takes a pandas table, a mapping of columns or a list of dicts, got "
                f"{'a list of other rows' if isinstance(x, list) else type(x).__name__}."
            )
        for row in x:
            check_known("column", name, map(str, row))
        return as_rows([row[name] for row in x])


def _content(column: Any) -> str:  # noqa: ANN401  (a column)
    if isinstance(column, Tensor):
        return f"shape {tuple(column.shape)}"
    odd = next((v for v in column if not isinstance(v, int | float)), None)
    return repr(odd) if isinstance(column, RowList) else type(column).__name__
