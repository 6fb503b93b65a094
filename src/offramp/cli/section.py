"""Options that are fields of a section of the configuration: written, explained and checked there.

Layer: cli.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, BeforeValidator, ValidationError

from offramp._core.errors import InputError
from offramp.cli import options
from offramp.project.config.config import explained

_GIVEN = "given"
Section = TypeVar("Section", bound=BaseModel)
Command = Callable[..., None]


def from_section(section: type[BaseModel], *fields: str) -> Callable[[Command], Command]:
    """Let a command take fields of a section as options, in the place of its parameter `given`.

    `given` is then a mapping of the fields that were given on the command line. Lists are given
    with commas; a field that also takes a word, such as "none", is given as text.

    Args:
        section: Of the configuration; each field has a description, which is the option's help.
        fields: Their names.
    """
    added = [_parameter(section, name) for name in fields]

    def taking(command: Command) -> Command:
        @functools.wraps(command)
        def called(**arguments: Any) -> None:  # noqa: ANN401  (as the options are)
            given = {name: _read(section, name, arguments.pop(name)) for name in fields}
            told = {k: v for k, v in given.items() if v is not None and v is not False}
            command(**arguments, given=told)

        own = inspect.signature(command).parameters.values()
        parameters = [p for one in own for p in (added if one.name == _GIVEN else [one])]
        del called.__wrapped__
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return taking


def merged(section: Section, given: Mapping[str, Any]) -> Section:
    """The section with what was given on the command line in its place, checked alike.

    Raises:
        InputError: If something given is outside its domain; it names the option.
    """
    values = {**section.model_dump(exclude_unset=True), **given}
    try:
        return type(section).model_validate(values, strict=False)
    except ValidationError as error:
        found = [
            f"{_option(str(e['loc'][0]))} {explained(e['loc'], e)}"
            for e in error.errors(include_url=False)
        ]
        raise InputError("; ".join(found) + ".") from error


def words(section: BaseModel, fields: Sequence[str]) -> list[str]:
    """What to type to give fields the values that they have; defaults of None are left out."""
    found: list[str] = []
    for name in fields:
        value = getattr(section, name)
        if value is True:
            found.append(_option(name))
        elif value is not None and value is not False:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            found += [_option(name), text]
    return found


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parameter(section: type[BaseModel], name: str) -> inspect.Parameter:
    field = section.model_fields[name]
    kind, metavar = _kind(section, name)
    if kind is bool:
        annotation: Any = Annotated[bool, typer.Option(_option(name), help=field.description)]
    else:
        annotation = Annotated[kind | None, typer.Option(metavar=metavar, help=field.description)]
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=False if kind is bool else None,
        annotation=annotation,
    )


def _kind(section: type[BaseModel], name: str) -> tuple[type, str | None]:
    """The type that a field has on the command line, and how it is shown where that is text."""
    field = section.model_fields[name]
    plain, notes = _plain(field.annotation)
    if get_origin(plain) is Literal:
        return str, "|".join(get_args(plain))
    if get_origin(plain) is list:
        return str, None
    if any(isinstance(note, BeforeValidator) for note in (*field.metadata, *notes)):
        return str, f"{plain.__name__.upper()}|none"
    return plain, None


def _plain(annotation: Any) -> tuple[Any, tuple[Any, ...]]:  # noqa: ANN401  (any type form)
    """A type without None and without notes; and the notes."""
    if get_origin(annotation) is Annotated:
        inner, *notes = get_args(annotation)
        plain, more = _plain(inner)
        return plain, (*notes, *more)
    if get_origin(annotation) in (Union, UnionType):
        (inner,) = [part for part in get_args(annotation) if part is not NoneType]
        return _plain(inner)
    return annotation, ()


def _read(section: type[BaseModel], name: str, value: Any) -> Any:  # noqa: ANN401
    """A value as the section takes it."""
    several = get_origin(_plain(section.model_fields[name].annotation)[0]) is list
    return options.names(value) if several and value is not None else value
