"""The types of fields of a configuration, each with the sentence that says what is wrong.

Layer: project.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field

SplitName = Literal["train", "fit", "calibrate", "test"]
DELTA = 0.1  # as of `Frontier.cheapest`, which would have to be loaded to be asked


#: The kind of a head that is chosen for what the layer gives, by `offramp.models.default_head`.
DEFAULT_HEAD = "default"


class HeadChoice(NamedTuple):
    """A head as a configuration names it: its kind, and arguments beside what the layer fixes."""

    kind: str
    options: dict[str, Any]


def _level(value: object) -> object:
    if value is None or value == "none":
        return None
    if isinstance(value, str):  # of the command line
        try:
            value = float(value)
        except ValueError as error:
            raise ValueError("must be a number in (0, 1), or none") from error
    from offramp._core.checks import check_probability  # here, so that --help needs no torch

    return check_probability("", value)


def _fraction(value: float) -> float:
    from offramp._core.checks import check_fraction

    return check_fraction("", value)


#: Largest chance of a wrong promise; "none" (TOML knows no null) promises nothing.
Level = Annotated[float | None, BeforeValidator(_level)]
#: In [0, 1]; percentages are explained.
Fraction = Annotated[float, AfterValidator(_fraction)]


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _share(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError("must be a fraction such as 0.5 or a number of examples such as 500")
    return value


def _price(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, str) and not (number and value >= 0):  # type: ignore[operator]
        raise ValueError("must be a number of at least 0, or the name of an array of prices")
    return value


def _edges(value: object) -> object:
    if value in ("full", "chain"):
        return value
    pairs = isinstance(value, list) and all(
        isinstance(edge, list) and len(edge) == 2 and all(isinstance(end, str) for end in edge)
        for edge in value
    )
    if not pairs:
        raise ValueError('must be "full", "chain" or pairs of stage names')
    return value


def _transform(value: object) -> object:
    """What `transform = { kind = ... }`, or a list of such, stands for."""
    from offramp._core.schema import from_json  # here: it loads torch
    from offramp.stages import Transform

    return None if value is None else from_json(Transform, value)


def _existing(value: str, info: Any) -> str:  # noqa: ANN401  (pydantic's own cannot be checked)
    path = _folder(info) / Path(value).expanduser()
    if not path.exists():
        raise ValueError(f"there is no such file or folder: {path}")
    return str(path)


_IMPORTED = re.compile(r"[\w.]+:[\w.]+")


def _estimators(value: object, info: Any) -> Any:  # noqa: ANN401
    """A file of a fitted classifier; or names of classes, the steps of one to be fitted."""
    if isinstance(value, str) and value.endswith(".skops"):
        return _existing(value, info)
    names = value if isinstance(value, list) else [value]
    if names and all(isinstance(name, str) and _IMPORTED.fullmatch(name) for name in names):
        return names
    raise ValueError(
        'must be a class such as "sklearn.ensemble:RandomForestClassifier", several of them in a '
        'list for a pipeline, or the file of a fitted classifier such as "forest.skops", which '
        f"skops.io.dump writes, got {value!r}"
    )


def _beside(value: str, info: Any) -> str:  # noqa: ANN401
    return str(_folder(info) / Path(value).expanduser())


def _folder(info: Any) -> Path:  # noqa: ANN401
    return Path((info.context or {}).get("folder", "."))


def _classes(value: object, info: Any) -> Any:  # noqa: ANN401  (pydantic's own cannot be checked)
    if isinstance(value, str):
        return Path(_existing(value, info))
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    numbers = value.values() if isinstance(value, Mapping) else [None]
    if not all(isinstance(k, int) and not isinstance(k, bool) for k in numbers):
        raise ValueError(
            'must be a CSV file such as "classes.csv" (folder, index, name), the folders in the '
            'order of the classes such as ["cat", "dog"], or numbers such as { cat = 281 }'
        )
    return value


ClassNames = Annotated[list[str | int], BeforeValidator(_as_list)]
Names = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Range = Annotated[list[int], Field(min_length=2, max_length=2)]
Share = Annotated[Any, AfterValidator(_share)]
Price = Annotated[Any, AfterValidator(_price)]
Edges = Annotated[Any, AfterValidator(_edges)]
ExistingPath = Annotated[str, AfterValidator(_existing)]
TransformModule = Annotated[Any, AfterValidator(_transform)]
NewPath = Annotated[str, AfterValidator(_beside)]
Estimators = Annotated[Any, AfterValidator(_estimators)]
FolderClasses = Annotated[Any, AfterValidator(_classes)]


def _heads(value: object) -> dict[str, HeadChoice]:
    """Heads by label; one head for each point has no label."""
    if isinstance(value, str) or (isinstance(value, Mapping) and "kind" in value):
        return {"": _head(value)}
    if not isinstance(value, Mapping) or not value:
        raise ValueError(_HEADS)
    for label in value:
        if not label or "/" in label:
            raise ValueError(f"must have labels without '/' that are not empty; {label!r} is none")
    return {label: _head(head) for label, head in value.items()}


def _head(value: object) -> HeadChoice:
    if isinstance(value, str):
        return HeadChoice(value, {})
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        raise ValueError(_HEADS)
    return HeadChoice(value["kind"], {k: v for k, v in value.items() if k != "kind"})


_HEADS = (
    'must be the kind of a head such as "conv_head", or { kind = "conv_head", filters = 32 }, or '
    'several of them by label such as { linear = "gap_linear", deep = "conv_head" }'
)

Heads = Annotated[Any, AfterValidator(_heads)]
CostWeights = Annotated[
    list[Annotated[float, Field(ge=0)]], BeforeValidator(_as_list), Field(min_length=1)
]
