"""Names and functions that are imported on first use, so that importing a package costs nothing.

Layer: _core.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, final


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for a package.

    Args:
        package: Its name, for the message where there is no such name.
        homes: The module of each name.

    >>> find = lazy("numbers of ours", {"pi": "math"})
    >>> round(find("pi"), 2)
    3.14
    """

    def found(name: str) -> Any:  # noqa: ANN401  (whatever stands there)
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return found


@final
class Later:
    """A function of a module that is imported when somebody calls it, or asks how it is called.

    Args:
        where: "module:function".

    >>> Later("math:hypot")(3, 4)
    5.0
    """

    def __init__(self, where: str) -> None:
        self._where = where

    @property
    def __wrapped__(self) -> Callable[..., Any]:  # so `inspect` tells its arguments
        module, _, name = self._where.partition(":")
        found: Callable[..., Any] = getattr(import_module(module), name)
        return found

    def __call__(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401  (as the function)
        return self.__wrapped__(*args, **named)
