"""A registry maps names to members; it refuses duplicates and suggests the near name.

Layer: _core.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar, final

from offramp._core.checks import check_known
from offramp._core.errors import InputError

T = TypeVar("T")
Made = TypeVar("Made")
_added = 0  # to all registries together; who keeps what it made of one asks for it


def number_of_additions() -> int:
    """How often anything was added to any registry: what was made of them may be kept till then."""
    return _added


@final
class Registry(dict[str, T]):
    """Names and what they stand for, often a function that makes it; filled by hand.

    A dictionary, so that asking for what is there costs nothing; members are put in by `add`.

    Args:
        kind: What is registered, in words, for messages: "model", "policy".
        members: Name to member.

    >>> colors = Registry("color", {"red": lambda: 1})
    >>> colors.create("red")
    1
    """

    def __init__(self, kind: str, members: Mapping[str, T]) -> None:
        super().__init__(members)
        self._kind = kind

    def __missing__(self, name: str) -> T:
        return self[check_known(self._kind, name, self)]  # which raises, with the nearest name

    def add(self, name: str, member: T) -> None:
        """Register one more; a name that is taken is refused, for other code relies on it.

        Raises:
            InputError: If the name is taken.

        >>> colors = Registry("color", {"red": lambda: 1})
        >>> colors.add("blue", lambda: 2)
        >>> list(colors)
        ['red', 'blue']
        """
        if name in self:
            raise InputError(f"The {self._kind} {name!r} is registered already.")
        self[name] = member
        global _added
        _added += 1

    @contextmanager
    def lent(self, name: str, member: T) -> Iterator[None]:
        """Have a member for a while, as a test does; what was made of it is forgotten afterwards.

        >>> colors = Registry("color", {})
        >>> with colors.lent("red", 1):
        ...     print(colors["red"])
        1
        >>> len(colors)
        0
        """
        global _added
        self.add(name, member)
        try:
            yield
        finally:
            del self[name]
            _added += 1

    def create(self: "Registry[Callable[..., Made]]", name: str, **arguments: object) -> Made:
        """Make what `name` stands for; raises `UnknownNameError` with the nearest name."""
        return self[name](**arguments)
