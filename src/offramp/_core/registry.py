"""A registry maps names to factories; it refuses duplicates and suggests the near name.

Layer: _core.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar, final

from offramp._core.checks import check_known

T = TypeVar("T")


@final
class Registry(Generic[T]):
    """Names and what makes them, filled by hand in one visible place.

    Args:
        kind: What is registered, in words, for messages: "model", "policy".
        factories: Name to factory.

    >>> colours = Registry("colour", {"red": lambda: 1})
    >>> colours.create("red")
    1
    """

    def __init__(self, kind: str, factories: Mapping[str, Callable[..., T]]) -> None:
        self._kind = kind
        self._factories = dict(factories)

    def __iter__(self) -> Iterator[str]:
        return iter(self._factories)

    def __contains__(self, name: object) -> bool:
        return name in self._factories

    def __getitem__(self, name: str) -> Callable[..., T]:
        return self._factories[check_known(self._kind, name, self._factories)]

    def create(self, name: str, **arguments: object) -> T:
        """Make what `name` stands for; raises `UnknownNameError` with the nearest name."""
        return self[name](**arguments)
