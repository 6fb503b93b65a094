"""A first configuration: a commented run.toml for what somebody has.

    networks      several networks, or classifiers of scikit-learn, the cheapest first
    exits         one network that gets exits
    answers       answers that were recorded elsewhere, in an npz file
    services      language models behind OpenAI-compatible endpoints
    class-exits   one network, some of whose classes are to be answered sooner

Layer: project.
"""

import os
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from offramp._core.errors import InputError
from offramp._core.files import new_file
from offramp._core.naming import printable
from offramp.project.init_stages import (
    PICTURES,
    USUAL,
    beside,
    is_classifier,
    network,
    services,
    stages,
    to_fit,
    toml,
)

CASES = ("networks", "exits", "answers", "services", "class-exits")
_NEEDS = {"networks": 2, "exits": 1, "services": 2, "class-exits": 1}  # models
_ONE = (
    "No weights were named, so the network answers at random. Train it with offramp.train."
    "train_classifier, or take a trained one (timm.create_model(..., pretrained=True)); write its "
    'state_dict() with safetensors.torch.save_file, and name it: weights = "net.safetensors".'
)
_SEVERAL = (
    "No weights were named, so `offramp train joint` trains these networks, from random ones. If "
    "you have weights, name them (weights = ...), and use `offramp record` and `offramp fit`."
)
_UNTRAINED = {"networks": _SEVERAL, "exits": _ONE, "class-exits": _ONE}


@final
@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the configuration shall say.

    Args:
        case: Of `CASES`.
        data: Kind of the data, as `[data]` names it; not for recorded answers.
        path: Where data or recorded answers lie; relative to the working folder.
        models: "name argument=value ...": registered, or "module:callable", or of scikit-learn
            "module:Class", several with "+" a pipeline, or a file "own.skops"; the cheapest first.
            Of services their names there. Of tables and texts two of scikit-learn by default.
        weights: Of the models, in their order; none, or one for each.
        costs: Of recorded answers: for each stage what one costs, the cheapest first.
        unit: Of these costs.
        prices: Of services: dollars for a million tokens, input and output.
        url: Of services.
        key_env: Variable with the key of the services; empty for none.
        classes: Of class-exits: which shall be answered sooner; all where none is named.
        max_drop: Accuracy that may be lost, a fraction.
        label: Of tables, the column of the labels.
        id: Of tables, the column of ids.
        columns: Of tables, those of the features; by default all others.
    """

    case: str
    data: str = "digits"
    path: Path | None = None
    models: tuple[str, ...] = ()
    weights: tuple[Path, ...] = ()
    costs: Mapping[str, float] | None = None
    unit: str = "usd"
    prices: tuple[tuple[float, float], ...] = ()
    url: str = ""
    key_env: str = "OPENAI_API_KEY"
    classes: tuple[str, ...] = ()
    max_drop: float = 0.02
    label: str = "label"
    id: str | None = None
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from offramp._core.checks import check_choice  # here, so that --help needs no torch
        from offramp.data import SOURCES

        check_choice("case", self.case, CASES)
        if self.case == "networks" and not self.models:
            object.__setattr__(self, "models", USUAL.get(self.data, ()))
        wanted = _NEEDS.get(self.case, 0)
        if len(self.models) < wanted or (wanted == 1 and len(self.models) > 1):
            number = "one model" if wanted == 1 else f"at least {wanted} models, cheapest first"
            raise InputError(f"{self.case} needs {number} (--model), got {len(self.models)}.")
        for name, given in (("--weights", self.weights), ("--price", self.prices)):
            if len(given) not in (0, len(self.models)):
                raise InputError(
                    f"{name} must be given once for each of the {len(self.models)} models, in "
                    f"their order, or not at all; got {len(given)}."
                )
        if self.case == "services" and not (self.url and self.prices):
            raise InputError("services need an address (--url) and prices (--price).")
        if self.case == "answers":
            if not (self.path and self.costs):
                raise InputError(
                    "answers need an npz file (--path) and costs (--cost name=number)."
                )
            return
        check_choice("--data", self.data, SOURCES)
        if (self.data == "digits") != (self.path is None):
            need = "no --path" if self.path else "a --path, where they lie"
            raise InputError(f"The data {self.data!r} need {need}, got {self.path}.")
        if self.data != "table" and (self.columns or self.id):
            raise InputError(f"--id and --columns go with --data table, not {self.data!r}.")


def write_config(path: Path, wish: Wish) -> tuple[str, ...]:
    """Write a configuration, which has been read back by then, and say what follows.

    Args:
        path: The file; it must be new.
        wish: What it shall say.

    Returns:
        The commands that follow.

    Raises:
        InputError: If something is there already, or the wish is none that can be kept, such as
            weights that do not exist. Nothing is written then.
    """
    from offramp.project.config.config import load_config

    if os.path.lexists(path):
        another = path / "run.toml" if path.is_dir() else path.with_name(f"{path.stem}-2.toml")
        raise InputError(
            f"{path} exists already, and nothing is overwritten. Name another file: offramp init "
            f"{shlex.quote(str(another))}"
        )
    if wish.data == "table" and wish.path is not None and wish.case != "answers":
        wish = replace(wish, columns=_columns(wish))
    text = config_text(wish, path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"A configuration is UTF-8, and so must be its name and the paths in it; got "
            f"{[printable(str(each)) for each in (path, wish.path, *wish.weights) if each]}."
        ) from None
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        try:
            load_config(temporary)
        except InputError as error:
            raise InputError(str(error).replace(str(temporary), str(path))) from error
    return following(wish, path)


def _columns(wish: Wish) -> tuple[str, ...]:
    """The features of a table; raises what is wrong with it, so that it is known at once."""
    from offramp.data import table

    names = list(wish.columns) or None
    found = table(str(wish.path), label=wish.label, id=wish.id, columns=names)
    return tuple(found.inputs)


def following(wish: Wish, path: Path) -> tuple[str, ...]:
    """The commands that take the configuration at a path to a report.

    >>> following(Wish(case="exits", models=("small_cnn",)), Path("run.toml"))[0]
    'offramp train --config run.toml'
    """
    case = wish.case
    config = f"--config {shlex.quote(str(path))}"
    run = shlex.quote(f"runs/{path.stem}")
    if case == "class-exits":
        together = "" if len(wish.classes) == 1 else " --together"  # a bundle holds one cascade
        return (f"offramp class-exits {config} --bundle bundle{together}", f"offramp report {run}")
    bundle = "" if case == "answers" else " --bundle bundle"
    if case == "networks" and untrained(wish):
        return (f"offramp train joint {config}{bundle}", f"offramp report {run}")
    return (
        *([f"offramp train {config}"] if case == "exits" or _fits(wish) else []),
        f"offramp record {config}",
        f"offramp fit {config}{bundle}",
        f"offramp report {run}",
    )


def _fits(wish: Wish) -> bool:
    return wish.case == "networks" and any(map(to_fit, wish.models))


def untrained(wish: Wish) -> str | None:
    """What to do about networks whose weights are random; None where there are none of these."""
    if any(map(is_classifier, wish.models)):
        return None
    imported = any(":" in model for model in wish.models)  # such may bring weights
    return None if wish.weights or imported else _UNTRAINED.get(wish.case)


def config_text(wish: Wish, path: Path) -> str:
    """The text of the configuration that will lie at `path`."""
    said = textwrap.wrap(untrained(wish) or "", 90, break_on_hyphens=False)
    head = ["What follows:", *(f"  {command}" for command in following(wish, path)), *said]
    if wish.case == "answers":
        parts = [_answers(wish, path), _fit(wish)]
    elif wish.case == "services":
        parts = [_data(wish, path), *services(wish), _RECORD, _fit(wish)]
    elif wish.case == "networks":
        parts = [_data(wish, path), *stages(wish, path)]
        parts += [_SECONDS] if any(map(is_classifier, wish.models)) else []
        parts += [_fit(wish)]
    elif wish.case == "exits":
        parts = [_data(wish, path), network(wish, path), _EXITS, _fit(wish)]
    else:
        parts = [_data(wish, path), network(wish, path), _class_exits(wish)]
    output = f"[output]\ndir = {toml(os.path.relpath(Path('runs') / path.stem, path.parent))}"
    return "\n\n".join(["\n".join(f"# {line}" for line in head), *parts, output]) + "\n"


def _data(wish: Wish, path: Path) -> str:
    heads = wish.case in ("exits", "class-exits")
    lines = ["[data]  # labeled examples", f"kind = {toml(wish.data)}"]
    if wish.path is not None:
        lines.append(f"path = {toml(beside(wish.path, path))}  # relative to this file")
    if wish.data == PICTURES and wish.case == "class-exits":  # which reads tensors
        lines.append("options = { size = 224, resize = 256 }  # pixels, as in training")
    if wish.data == "table":
        named = {"label": wish.label, **({} if wish.id is None else {"id": wish.id})}
        lines.append(f"options = {toml(named)}  # columns; what no stage reads may hold anything")
    if _fits(wish):
        lines += [
            "# Classifiers are fitted on train, policies on fit, promises tested on calibrate.",
            "splits = { train = 0.4, fit = 0.25, calibrate = 0.2, test = 0.15 }",
        ]
    elif heads:
        lines += [
            "# Heads are trained on train, policies fitted on fit, promises tested on calibrate.",
            "splits = { train = 0.4, fit = 0.2, calibrate = 0.2, test = 0.2 }",
        ]
    elif untrained(wish):
        lines += [
            "# Networks are trained on train alone: on examples that they know they look perfect.",
            "splits = { train = 0.4, fit = 0.25, calibrate = 0.2, test = 0.15 }",
        ]
    else:
        lines += [
            "# No network may have been trained on these: on such examples it looks perfect.",
            "splits = { fit = 0.4, calibrate = 0.35, test = 0.25 }",
        ]
    return "\n".join(lines)


def _answers(wish: Wish, path: Path) -> str:
    from offramp.data.arrays import read_arrays

    file, costs = wish.path, dict(wish.costs or {})
    if file is None or file.suffix != ".npz":
        raise InputError(f"--path must be an npz file of recorded answers, got {file}.")
    held = read_arrays(file)
    for name in ("labels", *costs):
        if name not in held:
            raise InputError(f"{file} must hold an array {name!r}; it holds {sorted(held)}.")
    shapes = {name: held[name].ndim for name in costs}
    if len(set(shapes.values())) > 1:
        raise InputError(f"Answers of all stages must have one form, got axes {shapes} in {file}.")
    named = {name: name for name in costs}
    sure = {name: f"{name}_confidence" for name in costs}
    lines = [
        "[answers]  # recorded elsewhere; names of arrays in the file, the cheapest stage first",
        f"path = {toml(beside(file, path))}",
        'labels = "labels"',
    ]
    if min(shapes.values()) > 1:
        rows = [held[name] for name in costs]
        shares = all((r >= 0).all() and abs(r.sum(axis=1) - 1).max() < 0.01 for r in rows)
        lines.append(f"{'probabilities' if shares else 'logits'} = {toml(named)}")
    else:
        lines.append(f"predictions = {toml(named)}")
        if all(name in held for name in sure.values()):
            lines.append(f"confidences = {toml(sure)}")
        else:
            lines.append("# Without confidences answers can only be compared: agreement, of three.")
    lines += [
        f"costs = {toml(costs)}  # of one answer",
        f"unit = {toml(wish.unit)}",
        "splits = { fit = 0.4, calibrate = 0.35, test = 0.25 }",
    ]
    return "\n".join(lines)


def _fit(wish: Wish) -> str:
    return "\n".join(
        [
            "[fit]",
            'policy = ["threshold", "learned"]  # learned ones want a few hundred examples each',
            f"max_drop = {wish.max_drop!r}  # of accuracy, promised for new examples: "
            f"{100 * wish.max_drop:g} points",
            '# delta = "none"  # measures only, and promises nothing',
        ]
    )


def _class_exits(wish: Wish) -> str:
    which = f"classes = {toml(list(wish.classes))}" if wish.classes else '# classes = ["cat"]'
    return "\n".join(
        [
            "[class_exits]",
            f"{which}  # by name or position; all where none is named",
            f"tolerance = {wish.max_drop!r}  # what accuracy and recalls may lose",
            "thresholds = [0.5, 1.0]  # where to look",
            "epochs = 40  # of each branch",
        ]
    )


_EXITS = """[exits]
quantiles = 4  # so many points, spread over the cost; or every = 3, match = "layer*.*", at = [...]

[train]  # of the heads
epochs = 30"""

_SECONDS = """[cost]
unit = "seconds"  # as measured here; or given = { small = 1.0, large = 40.0 } of any unit
batch_size = 256  # rows that are answered at a time"""

_RECORD = """[record]
max_spend = 1.0  # dollars, never exceeded
concurrency = 8  # calls at a time"""
