"""One way to write a record as JSON values, and one to read it: the record is its own schema.

A frozen dataclass needs nothing: its fields are what stands in the file, read in one step, strictly
(no field more, no number for a text, no NaN), and its own `__post_init__` has the last word. What
differs from that says so where it is declared:

    omitted(default)        a field that is written only where it is not the default
    Annotated[T, As(...)]   a field that stands otherwise in the file
    @stored("linear")       a class that is no dataclass: its arguments are its fields; or one that
                            has a "kind", by which a registry finds it (`OneOf`)
    @stored(derived=...)    properties that are written for people, and passed over when read
    @stored(whole=True)     a dataclass whose defaults are for people: files hold every field
    __json__                what is written in place of the fields
    __from_json__           with `stored`: a class method that reads it, its signature the schema

Layer: _core.  pydantic validates; it is loaded on first use, as are the schemas, which are kept.
"""

import inspect
import json
import re
import reprlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard, TypeVar, final, get_type_hints

import numpy as np

from offramp._core.errors import FileFormatError, MissingExtraError, OfframpError
from offramp._core.registry import Registry, number_of_additions

if TYPE_CHECKING:
    import torch
    from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationError
    from pydantic_core.core_schema import CoreSchema

T = TypeVar("T")
_SHOWN = 20  # problems in a message
_OMITTED = "omitted"
_SAID = {  # in place of pydantic's words, by its types of errors
    "missing": "this field is missing",
    "extra_forbidden": "there is no such field",
    "unexpected_keyword_argument": "there is no such field",
}
_DAMAGED = (  # what building a record of odd values may end in
    *(ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
)


def to_json(value: object, *, but: str = "") -> Any:  # noqa: ANN401  (what JSON can hold)
    """A record, or anything that is made of some, as JSON values; `from_json` reads it back.

    Tensors become lists, and their float32 numbers survive the round trip exactly.

    Args:
        value: The record.
        but: A field of it that is left out, since it stands elsewhere.

    Raises:
        TypeError: If there is something in it that is no record.

    >>> @dataclass(frozen=True)
    ... class Point:
    ...     at: tuple[float, float]
    ...     name: str = omitted("")
    >>> to_json({"best": Point((1.0, 2.0))})
    {'best': {'at': [1.0, 2.0]}}
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    if isinstance(value, np.generic) or _is_tensor(value):
        return value.tolist()
    kind: Any = type(value)
    marks = _marks_of(kind)
    tag = {} if marks.kind is None else {"kind": marks.kind}
    if hasattr(kind, "__json__"):
        found = to_json(kind.__json__(value))
        return {**tag, **found} if tag else found
    written: dict[str, Any] = {}
    for each in _writtenof(kind):
        part = None if each.name == but else getattr(value, each.name)
        if each.name != but and (each.omitted is MISSING or part != each.omitted):
            written[each.name] = to_json(each.write(part) if each.write else part)
    return {**tag, **written, **{name: to_json(getattr(value, name)) for name in marks.derived}}


def _is_tensor(value: Any) -> TypeGuard["torch.Tensor"]:  # noqa: ANN401
    """Whether it is a tensor; where torch is not loaded there is none, and it stays so."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def from_json(kind: Callable[..., T], value: object, *, where: object = "This value") -> T:
    """Read what `to_json` gave.

    Args:
        kind: The class of the record, or such a type with `Annotated`.
        value: JSON values.
        where: What holds them, for messages: the path of a file.

    Raises:
        FileFormatError: If a field is missing, unknown, of the wrong type or outside its domain;
            the message lists all such fields.

    >>> @dataclass(frozen=True)
    ... class Point:
    ...     at: tuple[float, float]
    >>> from_json(Point, {"at": [1, 2.5]})
    Point(at=(1.0, 2.5))
    >>> from_json(Point, {"at": [1, "x"]}, where="a.json")
    Traceback (most recent call last):
    offramp._core.errors.FileFormatError: a.json has 1 problem as a point: at.1: Input should be a valid number, got 'x'.
    """  # noqa: E501  (a message has no line breaks)
    try:
        text = json.dumps(value)
    except RecursionError as error:
        raise FileFormatError(f"{where} is nested too deeply.") from error
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"{where} does not consist of JSON values: {error}.") from error
    return from_text(kind, text, where=where)


def from_text(kind: Callable[..., T], text: str | bytes, *, where: object) -> T:
    """As `from_json`, of JSON that is not parsed yet."""
    from pydantic import ValidationError

    try:
        found: T = _adapter(kind, number_of_additions()).validate_json(text)
        return found
    except ValidationError as error:
        count = error.error_count()
        text = f"{count} problem{'s' if count > 1 else ''} as {_named(kind)}: {_problems(error)}"
        raise FileFormatError(f"{where} has {text}.") from error
    except MissingExtraError:  # nothing is wrong with the file
        raise
    except OfframpError as error:
        raise FileFormatError(f"{where} cannot be read as {_named(kind)}: {error}") from error
    except _DAMAGED as error:
        raise FileFormatError(f"{where} cannot be read as {_named(kind)}: {error!r}.") from error


def omitted(default: T) -> T:
    """The default of a field of a dataclass that is not written where it is the default."""
    return field(default=default, metadata={_OMITTED: default})


def stored(
    kind: str | None = None,
    *,
    derived: tuple[str, ...] = (),
    whole: bool = False,
    brief: bool = False,
) -> Callable[[type[T]], type[T]]:
    """Mark a class whose arguments are its fields, as attributes of the same names.

    Args:
        kind: Stands in the file as "kind", for `OneOf`.
        derived: Attributes that are written as well, and passed over when read.
        whole: Of a dataclass: whether fields with a default have to stand in the file, too.
        brief: Of another class: whether arguments with a default may be missing in a file.

    >>> @stored("circle")
    ... class Circle:
    ...     def __init__(self, radius: float) -> None:
    ...         self.radius = radius
    >>> to_json(Circle(2.0)), from_json(Circle, {"kind": "circle", "radius": 3}).radius
    ({'kind': 'circle', 'radius': 2.0}, 3.0)
    """

    def marked(cls: type[T]) -> type[T]:
        cls.__stored__ = _Marks(kind, derived, whole, brief)  # type: ignore[attr-defined]
        cls.__get_pydantic_core_schema__ = classmethod(_by_arguments)  # type: ignore[attr-defined]
        return cls

    return marked


@final
class As:
    """Says that a field stands otherwise in the file: `Annotated[T, As(form, write, read)]`.

    Args:
        form: The type that stands there.
        write: From the field's value to one of that type.
        read: Back.
    """

    def __init__(self, form: object, write: Callable[..., Any], read: Callable[..., Any]) -> None:
        self.form, self.write, self.read = form, write, read

    def __get_pydantic_core_schema__(
        self, source: object, handler: "GetCoreSchemaHandler"
    ) -> "CoreSchema":
        from pydantic_core import core_schema

        held = handler.generate_schema(self.form)
        return core_schema.no_info_after_validator_function(self.read, held)


@final
class OneOf:
    """Says that a value is of one of the classes of a registry, found by its "kind".

    Args:
        registry: Of classes marked by `stored(kind)`, under their kind.
        chain: Where a list of them may stand as well: what makes one of several.
    """

    def __init__(
        self, registry: Registry[Any], chain: Callable[[list[Any]], Any] | None = None
    ) -> None:
        self._registry, self._chain = registry, chain

    def __get_pydantic_core_schema__(
        self, source: object, handler: "GetCoreSchemaHandler"
    ) -> "CoreSchema":
        from pydantic_core import core_schema

        each = {name: handler.generate_schema(self._registry[name]) for name in self._registry}
        one = core_schema.tagged_union_schema(each, discriminator="kind")
        if self._chain is None:
            return one
        several = core_schema.no_info_after_validator_function(
            self._chain, core_schema.list_schema(one)
        )
        return core_schema.tagged_union_schema(
            {"<one>": one, "<several>": several},
            discriminator=lambda value: "<several>" if isinstance(value, list) else "<one>",
        )


@final
class FieldsOf:
    """Says that a mapping holds the fields of a record but for one that stands elsewhere.

    Args:
        record: The class.
        but: The field that is missing.
    """

    def __init__(self, record: type, *, but: str) -> None:
        self._record, self._but = record, but

    def __get_pydantic_core_schema__(
        self, source: object, handler: "GetCoreSchemaHandler"
    ) -> "CoreSchema":
        from pydantic_core import core_schema

        held = _dict_schema(self._record, handler, but=self._but)
        return core_schema.no_info_after_validator_function(_marks_of(self._record).without, held)


@dataclass(frozen=True)
class _Marks:
    kind: str | None = None
    derived: tuple[str, ...] = ()
    whole: bool = False
    brief: bool = False

    def without(self, found: dict[str, Any]) -> dict[str, Any]:
        """What was read, less what is no argument."""
        more = self.derived if self.kind is None else ("kind", *self.derived)
        return {name: value for name, value in found.items() if name not in more}


@dataclass(frozen=True)
class _Field:
    name: str
    hint: Any
    required: bool
    write: Callable[..., Any] | None
    omitted: object  # the value that is not written, or MISSING


def _marks_of(kind: type) -> _Marks:
    found: _Marks = getattr(kind, "__stored__", _Marks())
    return found


@cache
def _writtenof(kind: Any) -> tuple[_Field, ...]:  # noqa: ANN401  (a class)
    """What stands in the file: a dataclass's fields, else the arguments of what reads it."""
    whole, brief = _marks_of(kind).whole, _marks_of(kind).brief
    if is_dataclass(kind) and not hasattr(kind, "__from_json__"):
        hints = get_type_hints(kind, include_extras=True)
        return tuple(
            _field(
                each.name,
                hints[each.name],
                required=(whole and _OMITTED not in each.metadata)
                or (each.default is MISSING and each.default_factory is MISSING),
                unwritten=each.metadata.get(_OMITTED, MISSING),
            )
            for each in fields(kind)
        )
    if not hasattr(kind, "__stored__") and not hasattr(kind, "__from_json__"):
        raise TypeError(f"{kind.__name__} is no record that can be written as JSON.")
    # Arguments of a constructor are all written, so they are all there; defaults are for people.
    reader = getattr(kind, "__from_json__", None)
    hints = get_type_hints(reader or kind.__init__, include_extras=True)
    given = [
        each
        for each in inspect.signature(reader or kind.__init__).parameters.values()
        if each.name != "self" and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    return tuple(
        _field(
            each.name,
            hints[each.name],
            required=each.default is each.empty or (reader is None and not brief),
        )
        for each in given
    )


def _field(name: str, hint: Any, *, required: bool, unwritten: object = MISSING) -> _Field:  # noqa: ANN401
    marks = getattr(hint, "__metadata__", ())
    write = next((mark.write for mark in marks if isinstance(mark, As)), None)
    return _Field(name, hint, required, write, unwritten)


def _dict_schema(kind: type, handler: "GetCoreSchemaHandler", *, but: str = "") -> "CoreSchema":
    from pydantic_core import core_schema

    marks = _marks_of(kind)
    entries = {
        each.name: core_schema.typed_dict_field(
            handler.generate_schema(each.hint), required=each.required
        )
        for each in _writtenof(kind)
        if each.name != but
    }
    for name in marks.derived:
        entries[name] = core_schema.typed_dict_field(core_schema.any_schema(), required=False)
    if marks.kind is not None:
        entries["kind"] = core_schema.typed_dict_field(core_schema.literal_schema([marks.kind]))
    return core_schema.typed_dict_schema(entries, extra_behavior="forbid")


def _by_arguments(cls: Any, source: object, handler: "GetCoreSchemaHandler") -> "CoreSchema":  # noqa: ANN401
    from pydantic_core import core_schema

    make, marks = getattr(cls, "__from_json__", cls), _marks_of(cls)
    return core_schema.no_info_after_validator_function(
        lambda found: make(**marks.without(found)), _dict_schema(cls, handler)
    )


@final
class _Whole:
    """Stands for a type, so that the configuration is ours whatever it is."""

    def __init__(self, kind: object) -> None:
        self._kind = kind

    def __get_pydantic_core_schema__(
        self, source: object, handler: "GetCoreSchemaHandler"
    ) -> "CoreSchema":
        return handler.generate_schema(self._kind)


@cache
def _adapter(kind: object, additions: int) -> "TypeAdapter[Any]":
    """The schema of a class; a new one where a registry has grown."""
    from pydantic import TypeAdapter

    strict: Any = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
    held: Any = Annotated[object, _Whole(kind)]
    return TypeAdapter(held, config=strict)


def _named(kind: Callable[..., object]) -> str:
    """In words: "a frontier point" for `FrontierPoint`."""
    name: str = getattr(kind, "__origin__", kind).__name__  # of what `Annotated` stands around
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.strip("_")).lower()
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def _problems(error: "ValidationError") -> str:
    each = [_problem(problem) for problem in error.errors(include_url=False)[:_SHOWN]]
    more = ["..."] if error.error_count() > _SHOWN else []
    return "; ".join([*each, *more])


def _problem(problem: Mapping[str, Any]) -> str:
    # Of a union's branches the names are left out: they stand in no file.
    path = [str(part) for part in problem["loc"] if not re.search(r"[\[<(]", str(part))]
    text = str(problem["msg"]).removeprefix("Value error, ").removesuffix(".")
    if problem["type"] == "union_tag_invalid":
        problem = {**problem, "input": problem["ctx"]["tag"]}
        text = f"kind must be one of {problem['ctx']['expected_tags']}"
    own = problem["type"] in ("value_error", "json_invalid")
    got = "" if own else f", got {reprlib.repr(problem['input'])}"
    said = _SAID.get(problem["type"], f"{text}{got}")
    return f"{'.'.join(path)}: {said}" if path else said
