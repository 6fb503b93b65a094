"""Configuration files: TOML in, checked values out, all problems named at once.

    [data]
    kind = "folder"                  # digits, cifar10, cifar100, imagenet32, npz, texts, table
    path = "images"                  # paths are relative to this file
    splits = { fit = 0.5, calibrate = 0.25, test = 0.25 }  # or ranges = { fit = [0, 500] }
    options = { size = 32, resize = 32 }  # or size = [192, 256], height and width; orient = false
    classes = "classes.csv"          # folder, index of the network, name; or ["cat", "dog"]
    class_count = 1000               # of the network, where the list names fewer

    [[stage]]                        # cheapest first
    name = "small"
    model = "resnet20"               # or "module:callable"
    arguments = { classes = 10 }
    weights = "small.safetensors"
    transform = { kind = "normalize", scale = 0.00392156862745098, mean = 0.5, std = 0.25 }

A stage may be a function on rows of data, such as texts (`kind = "texts"`):

    [[stage]]
    name = "fast"
    function = "detectors:fast"      # in a module beside this file, or installed
    outputs = "confidence"           # or "logits", "probabilities", "labels"

Or a classifier of scikit-learn, on a table (`kind = "table"`) or on texts:

    [[stage]]
    name = "forest"
    sklearn = "sklearn.ensemble:RandomForestClassifier"  # `offramp train` fits it; several names
    arguments = { n_estimators = 50 }                    # in a list are a pipeline
    transform = { kind = "columns", names = ["age", "size"] }

    [[stage]]
    name = "own"
    sklearn = "own.skops"            # fitted, written by skops.io.dump
    labels = ["no", "yes"]           # where it was fitted on 0 and 1 in their place
    allow_types = ["sklearn.tree._tree.Tree"]  # of which skops would not make objects by itself

Instead of `[[stage]]` there may be one network with exits inside:

    [network]
    model = "resnet56"
    weights = "resnet56.safetensors"
    transform = [{ kind = "resize", size = 224 }, { kind = "normalize", scale = 0.0039215686 }]

    [exits]
    quantiles = 5                    # or at = ["layer1.2"], every = 3, match = "layer*.*"
    heads = { linear = "gap_linear", deep = { kind = "conv_head", filters = 32 } }

    [train]                          # of the heads; the network stays as it is
    epochs = 30
    augment = "crop_flip"

Instead of data and networks there may be answers that were recorded elsewhere:

    [answers]
    path = "answers.npz"             # or .parquet, with columns
    labels = "labels"
    predictions = { local = "local", paid = "paid" }  # or logits, or probabilities
    confidences = { local = "local_confidence", paid = "paid_confidence" }
    costs = { local = 0.0, paid = 0.0015 }  # cheapest first; or an array of prices
    unit = "usd"
    splits = { fit = 0.4, calibrate = 0.3, test = 0.3 }

    [cost]
    unit = "flops"                   # or "seconds", "joules"; or any unit with given = { ... }
    also = ["seconds"]               # measured as well, and shown beside in reports
    batch_size = 32                  # at which seconds are measured

    [fit]
    policy = ["learned", "threshold"]
    max_drop = 0.02                  # two points; or max_cost

    [class_exits]                         # exits of classes in one network
    classes = ["cat", "dog"]
    tolerance = 0.005                # half a point, of accuracy and of each class's recall

    [joint]                          # several networks trained together with when to stop
    cost_weights = [0.01, 0.03, 0.1]       # prices of the most expensive network, in loss
    epochs = 30

    [output]
    dir = "runs/first"

Layer: project.
"""

import shlex
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from offramp._core.errors import FileFormatError, InputError
from offramp.project.config.contradictions import Problem, contradictions
from offramp.project.config.sections import RunConfig

_SHOWN = 60  # characters of a wrong value


def load_config(path: Path, *, needs: Sequence[str] = (), instead: str | None = None) -> RunConfig:
    """Read a configuration file.

    Args:
        path: The file; paths in it are relative to its folder.
        needs: Sections that must be there; for "stage" a network with exits will do.
        instead: A section with which they need not be there.

    Raises:
        FileFormatError: If the file is missing or no TOML.
        InputError: If keys are unknown or missing or values wrong: all problems are listed.
    """
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise FileFormatError(
            f"{path} is missing. `offramp init {shlex.quote(str(path))}` writes a first one."
        ) from error
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read as TOML: {error}") from error
    problems = [] if instead in value else _missing(value, needs)
    try:
        config = RunConfig.model_validate(value, context={"folder": path.resolve().parent})
    except ValidationError as error:
        problems += [(e["loc"], explained(e["loc"], e)) for e in error.errors()]
    else:
        problems += contradictions(config)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [f"  {place(loc)}: {text}" for loc, text in problems]
        raise InputError("\n".join([f"{path} has {count}:", *lines]))
    return config.read_from(path)


def _missing(value: Mapping[str, Any], needs: Sequence[str]) -> list[Problem]:
    found: list[Problem] = []
    for section in needs:
        if section == "stage" and "network" in value:
            section = "exits"  # the network's exits take the place of several networks
        if section not in value:
            other = " (or [network] with [exits])" if section == "stage" else ""
            found.append(((section,), f"this section is missing; the command needs it{other}"))
    return found


def place(loc: Sequence[str | int]) -> str:
    """A place in the file as one writes it.

    >>> place(("stage", 1, "weights"))
    'stage[1].weights'
    """
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def explained(loc: Sequence[str | int], error: Mapping[str, Any]) -> str:
    """What is wrong with a value, and what it is, of one error of pydantic."""
    if error["type"] == "extra_forbidden":
        known = _keys_beside(loc)
        near = get_close_matches(str(loc[-1]), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"there is no such key.{hint} Known: {', '.join(known)}."
    if error["type"] == "missing":
        return "is missing"
    said = str(error["ctx"]["error"]).strip() if error["type"] == "value_error" else error["msg"]
    if ", got " in said:  # it says so itself
        return said.removesuffix(".")
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
