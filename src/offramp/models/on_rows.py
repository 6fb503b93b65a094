"""A Python function as a module that reads rows of any type.

Layer: models.
"""

from collections.abc import Callable, Sequence
from typing import Any, final

from torch import nn

from offramp._core.checks import check_class_names
from offramp._core.errors import InputError


@final
class OnRows(nn.Module):
    """Calls a function on the rows of a batch: whatever stands there, and whatever comes out.

    Args:
        call: Gets the rows as one argument.
        class_names: Names of the classes, where it answers with names.
        strict: Whether a label that is no class is an error.
        name: Where it can be imported from, "module:name", or "" where nobody knows.

    >>> OnRows(len)(["a", "b"])
    2
    """

    reads_rows = True

    def __init__(
        self,
        call: Callable[[Any], Any],
        *,
        class_names: Sequence[str] = (),
        strict: bool = False,
        name: str = "",
    ) -> None:
        super().__init__()
        if not callable(call):
            raise InputError(f"call must be a function of rows, got {type(call).__name__}.")
        self.call, self.strict, self.fingerprint = call, strict, name
        self.class_names = check_class_names(class_names, len(class_names))

    def __deepcopy__(self, memo: dict[int, object]) -> "OnRows":
        return OnRows(  # the function stays the same: it may hold what nobody can copy
            self.call, class_names=self.class_names, strict=self.strict, name=self.fingerprint
        )

    def forward(self, rows: Any) -> Any:  # noqa: ANN401  (rows of any type)
        """What the function returns."""
        return self.call(rows)

    def extra_repr(self) -> str:
        """The function's name."""
        return self.fingerprint or repr(self.call)
