"""A registry maps names to factories; it refuses duplicates and suggests the near name.

Layer: _core.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar, final

from offramp._core.checks import check_known
from offramp._core.errors import InputError

T = TypeVar("T")
_added = 0  # to all registries together; who keeps what it made of one asks for it


def number_of_additions() -> int:
    """How often anything was added to any registry: what was made of them may be kept till then."""
    return _added


@final
class Registry(Generic[T]):
    """Names and what makes them, filled by hand.

    Args:
        kind: What is registered, in words, for messages: "model", "policy".
        factories: Name to factory.

    >>> colors = Registry("color", {"red": lambda: 1})
    >>> colors.create("red")
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

    def add(self, name: str, factory: Callable[..., T]) -> None:
        """Register one more; a name that is taken is refused, for other code relies on it.

        Raises:
            InputError: If the name is taken.

        >>> colors = Registry("color", {"red": lambda: 1})
        >>> colors.add("blue", lambda: 2)
        >>> list(colors)
        ['red', 'blue']
        """
        if name in self._factories:
            raise InputError(f"The {self._kind} {name!r} is registered already.")
        self._factories[name] = factory
        global _added
        _added += 1

    def create(self, name: str, **arguments: object) -> T:
        """Make what `name` stands for; raises `UnknownNameError` with the nearest name."""
        return self[name](**arguments)
