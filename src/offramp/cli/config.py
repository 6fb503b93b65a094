"""Configuration files: TOML in, checked values out, all problems named at once.

    [data]
    kind = "folder"                  # digits, cifar10, cifar100, imagenet32, folder, npz
    path = "images"                  # paths are relative to this file
    splits = { fit = 0.5, calibrate = 0.25, test = 0.25 }
    options = { size = 32, resize = 32 }

    [[stage]]                        # cheapest first
    name = "small"
    model = "resnet20"               # or "module:callable"
    arguments = { classes = 10 }
    weights = "small.safetensors"
    normalise = { scale = 0.00392156862745098, mean = [0.5, 0.5, 0.5], std = [0.25, 0.25, 0.25] }

    [cost]
    unit = "flops"                   # or "seconds", "joules"; or any unit with given = { ... }

    [fit]
    policy = ["weighted", "myopic"]
    max_loss = 0.02                  # two points; or max_cost

    [output]
    dir = "runs/first"

Layer: cli.
"""

import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from offramp._core.errors import FileFormatError, InputError

SplitName = Literal["train", "fit", "calibrate", "test"]
Problem = tuple[Sequence[str | int], str]  # where, what

_UNITS = ("flops", "seconds", "joules")  # those that can be measured here
_SHOWN = 60  # characters of a wrong value


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _share(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError("must be a fraction such as 0.5 or a number of examples such as 500")
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


def _existing(value: str, info: Any) -> str:  # noqa: ANN401  (pydantic's own cannot be checked)
    path = _folder(info) / Path(value).expanduser()
    if not path.exists():
        raise ValueError(f"there is no such file or folder: {path}")
    return str(path)


def _beside(value: str, info: Any) -> str:  # noqa: ANN401
    return str(_folder(info) / Path(value).expanduser())


def _folder(info: Any) -> Path:  # noqa: ANN401
    return Path((info.context or {}).get("folder", "."))


Names = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Numbers = Annotated[list[float], BeforeValidator(_as_list), Field(min_length=1)]
Share = Annotated[Any, AfterValidator(_share)]
Edges = Annotated[Any, AfterValidator(_edges)]
ExistingPath = Annotated[str, AfterValidator(_existing)]
NewPath = Annotated[str, AfterValidator(_beside)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DataSection(_Section):
    """`[data]`: which labelled examples, and how they are split."""

    kind: str
    path: ExistingPath | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    part: SplitName | None = None
    splits: dict[SplitName, Share] = Field(default_factory=dict)
    seed: int = 0
    stratified: bool = True
    seen_in_training: bool = False


class NormaliseSection(_Section):
    """`normalise = {...}`: (x * scale - mean) / std, per channel."""

    scale: float = 1.0
    mean: Numbers = Field(default_factory=lambda: [0.0])
    std: Numbers = Field(default_factory=lambda: [1.0])


class StageSection(_Section):
    """`[[stage]]`: one network."""

    name: str = Field(min_length=1)
    model: str = Field(min_length=1)
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: ExistingPath | None = None
    weights_sha256: str | None = None
    normalise: NormaliseSection | None = None


class CascadeSection(_Section):
    """`[cascade]`: which stage may follow which."""

    edges: Edges = "full"


class CostSection(_Section):
    """`[cost]`: measured here, or given."""

    unit: str = Field(default="flops", min_length=1)
    batch_size: int = Field(default=1, ge=1)
    given: dict[str, float] = Field(default_factory=dict)


class FitSection(_Section):
    """`[fit]`: which policies, and which point to choose."""

    policy: Names = Field(default_factory=lambda: ["weighted"])
    reference: str | None = None
    top: int = Field(default=1, ge=1)
    combines: Names | None = None
    loss: Literal["excess", "error"] | None = None
    risk: Literal["difference", "excess"] = "difference"
    max_loss: float | None = Field(default=None, ge=0, lt=1)
    max_cost: float | None = Field(default=None, gt=0)
    margin: float | None = Field(default=None, ge=0)
    seed: int = 0


class OutputSection(_Section):
    """`[output]`: where a run's files go; by default a folder in `runs` named like the file."""

    dir: NewPath | None = None


class RunConfig(_Section):
    """A whole configuration file; a command says which sections it needs."""

    data: DataSection | None = None
    stage: list[StageSection] = Field(default_factory=list)
    cascade: CascadeSection = CascadeSection()
    cost: CostSection = CostSection()
    fit: FitSection = FitSection()
    output: OutputSection = OutputSection()


def load_config(path: Path, *, needs: Sequence[str] = ()) -> RunConfig:
    """Read a configuration file.

    Args:
        path: The file; paths in it are relative to its folder.
        needs: Sections that must be there.

    Raises:
        FileFormatError: If the file is missing or no TOML.
        InputError: If keys are unknown or missing or values wrong: all problems are listed.
    """
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} is missing.") from error
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read as TOML: {error}") from error
    problems: list[Problem] = [
        ((section,), "this section is missing; the command needs it")
        for section in needs
        if section not in value
    ]
    try:
        config = RunConfig.model_validate(value, context={"folder": path.resolve().parent})
    except ValidationError as error:
        problems += [(e["loc"], _explained(e["loc"], e)) for e in error.errors()]
    else:
        problems += _contradictions(config)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [f"  {place(loc)}: {text}" for loc, text in problems]
        raise InputError("\n".join([f"{path} has {count}:", *lines]))
    return config


def place(loc: Sequence[str | int]) -> str:
    """A place in the file as one writes it.

    >>> place(("stage", 1, "weights"))
    'stage[1].weights'
    """
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _explained(loc: Sequence[str | int], error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        known = _keys_beside(loc)
        near = get_close_matches(str(loc[-1]), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"there is no such key.{hint} Known: {', '.join(known)}."
    if error["type"] == "missing":
        return "is missing"
    said = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
    got = repr(error["input"])
    shown = got if len(got) <= _SHOWN else f"{got[:_SHOWN]}..."
    return f"{said[0].lower()}{said[1:]}, got {shown}"


def _keys_beside(loc: Sequence[str | int]) -> list[str]:
    """Names of the keys that are known where an unknown one stands."""
    section: type[BaseModel] = RunConfig
    for part in loc[:-1]:
        if isinstance(part, str):
            section = _section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401  (any type form)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_of(inner) for inner in get_args(annotation))
    return next((section for section in found if section is not None), None)


def _contradictions(config: RunConfig) -> list[Problem]:
    """Problems between sections that are each well formed."""
    names = [stage.name for stage in config.stage]
    found: list[Problem] = [
        (("stage", k, "name"), f"{name!r} is the name of an earlier stage")
        for k, name in enumerate(names)
        if name in names[:k]
    ]
    if config.fit.max_loss is not None and config.fit.max_cost is not None:
        found.append((("fit", "max_cost"), "give either max_loss or max_cost, not both"))
    if not config.cost.given and config.cost.unit not in _UNITS:
        text = f"{config.cost.unit!r} cannot be measured ({', '.join(_UNITS)} can); use cost.given"
        found.append((("cost", "unit"), text))
    if names:
        found += _unknown_stages(config, names)
    return found


def _unknown_stages(config: RunConfig, names: Sequence[str]) -> list[Problem]:
    mentioned: list[tuple[Sequence[str | int], str]] = [
        (("cost", "given", name), name) for name in config.cost.given
    ]
    if isinstance(config.cascade.edges, list):
        mentioned += [
            (("cascade", "edges", k), end) for k, e in enumerate(config.cascade.edges) for end in e
        ]
    if config.fit.reference is not None:
        mentioned.append((("fit", "reference"), config.fit.reference))
    found: list[Problem] = [
        (loc, f"there is no stage {name!r}; there are {', '.join(names)}")
        for loc, name in mentioned
        if name not in names
    ]
    missing = [n for n in names if config.cost.given and n not in config.cost.given]
    found += [(("cost", "given"), f"stage {name!r} has no cost") for name in missing]
    return found
