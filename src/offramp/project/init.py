"""A first configuration: a commented run.toml for what somebody has.

    networks      several networks, the cheapest first
    exits         one network that gets exits
    answers       answers that were recorded elsewhere, in an npz file
    services      language models behind OpenAI-compatible endpoints
    class-exits   one network, some of whose classes are to be answered sooner

Layer: project.
"""

import json
import os
import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from offramp._core.errors import InputError
from offramp._core.files import new_file
from offramp._core.naming import printable

CASES = ("networks", "exits", "answers", "services", "class-exits")
_NEEDS = {"networks": 2, "exits": 1, "services": 2, "class-exits": 1}  # models
_BYTE = 1 / 255
_PICTURES = "folder"  # data whose files are images of any size
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
        models: "name argument=value ...": registered, or "module:callable"; the cheapest first.
            Of services their names there.
        weights: Of the models, in their order; none, or one for each.
        costs: Of recorded answers: for each stage what one costs, the cheapest first.
        unit: Of these costs.
        prices: Of services: dollars for a million tokens, input and output.
        url: Of services.
        key_env: Variable with the key of the services; empty for none.
        classes: Of class-exits: which shall be answered sooner; all where none is named.
        max_drop: Accuracy that may be lost, a fraction.
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

    def __post_init__(self) -> None:
        from offramp._core.checks import check_choice  # here, so that --help needs no torch
        from offramp.data import SOURCES

        check_choice("case", self.case, CASES)
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
        *([f"offramp train {config}"] if case == "exits" else []),
        f"offramp record {config}",
        f"offramp fit {config}{bundle}",
        f"offramp report {run}",
    )


def untrained(wish: Wish) -> str | None:
    """What to do about networks whose weights are random; None where there are none of these."""
    imported = any(":" in model for model in wish.models)  # such may bring weights
    return None if wish.weights or imported else _UNTRAINED.get(wish.case)


def config_text(wish: Wish, path: Path) -> str:
    """The text of the configuration that will lie at `path`."""
    said = textwrap.wrap(untrained(wish) or "", 90, break_on_hyphens=False)
    head = ["What follows:", *(f"  {command}" for command in following(wish, path)), *said]
    if wish.case == "answers":
        parts = [_answers(wish, path), _fit(wish)]
    elif wish.case == "services":
        parts = [_data(wish, path), *_services(wish), _RECORD, _fit(wish)]
    elif wish.case == "networks":
        parts = [_data(wish, path), *_stages(wish, path), _fit(wish)]
    elif wish.case == "exits":
        parts = [_data(wish, path), _network(wish, path), _EXITS, _fit(wish)]
    else:
        parts = [_data(wish, path), _network(wish, path), _class_exits(wish)]
    output = f"[output]\ndir = {_toml(os.path.relpath(Path('runs') / path.stem, path.parent))}"
    return "\n\n".join(["\n".join(f"# {line}" for line in head), *parts, output]) + "\n"


def _data(wish: Wish, path: Path) -> str:
    heads = wish.case in ("exits", "class-exits")
    lines = ["[data]  # labeled examples", f"kind = {_toml(wish.data)}"]
    if wish.path is not None:
        lines.append(f"path = {_toml(_beside(wish.path, path))}  # relative to this file")
    if wish.data == _PICTURES and wish.case == "class-exits":  # which reads tensors
        lines.append("options = { size = 224, resize = 256 }  # pixels, as in training")
    if heads:
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


def _stages(wish: Wish, path: Path) -> list[str]:
    names = _names(wish.models)
    return [
        f"[[stage]]  # the cheapest first\nname = {_toml(name)}\n{_built(wish, path, k)}"
        for k, name in enumerate(names)
    ]


def _network(wish: Wish, path: Path) -> str:
    return f"[network]  # its weights are never changed\n{_built(wish, path, 0)}"


def _built(wish: Wish, path: Path, k: int) -> str:
    name, *given = _parts(wish.models[k])
    arguments = {}
    for one in given:
        key, sign, value = one.partition("=")
        if not sign:
            raise InputError(f"--model must be a name and argument=value, got {wish.models[k]!r}.")
        arguments[key] = _value(value)
    if ":" not in name:  # what is imported is looked for when it is built
        from offramp.models import model_factory

        model_factory(name)
    lines = [f"model = {_toml(name)}  # registered, or module:callable"]
    if arguments:
        lines.append(f"arguments = {_toml(arguments)}")
    if wish.weights:
        lines.append(f"weights = {_toml(_beside(wish.weights[k], path))}")
    else:
        lines.append('# weights = "net.safetensors"  # without them it answers at random')
    scale = 0.0625 if wish.data == "digits" else _BYTE
    lines.append("# As in training, such as mean = [0.485, 0.456, 0.406], std = [0.229, ...].")
    normalize = f'{{ kind = "normalize", scale = {scale!r} }}'
    if wish.data == _PICTURES and wish.case != "class-exits":  # files, also where it is served
        lines += [
            "transform = [",
            '  { kind = "decode" },',
            '  { kind = "resize", size = 224, crop_pct = 0.875 },  # pixels, as in training',
            f"  {normalize},",
            "]",
        ]
    else:
        lines.append(f"transform = {normalize}")
    return "\n".join(lines)


def _parts(model: str) -> list[str]:
    """The name of a model and its arguments.

    Raises:
        InputError: If there is no name, or a quotation is left open.
    """
    try:
        parts = shlex.split(model)
    except ValueError as error:
        raise InputError(f"--model cannot be read: {error}, got {model!r}.") from None
    if not parts:
        raise InputError(f"--model must be a name and argument=value, got {model!r}.")
    return parts


def _services(wish: Wish) -> list[str]:
    key = "" if not wish.key_env else f"\nkey_env = {_toml(wish.key_env)}  # the key's variable"
    free = "" if wish.key_env else '\nkey_env = ""  # no key'
    return [
        f"[[stage]]  # the cheapest first\nname = {_toml(_plain(model))}\n[stage.openai]\n"
        f"url = {_toml(wish.url)}\nmodel = {_toml(model)}\n"
        'prompt = "Answer with one of {labels}: {row}"  # say what the labels mean'
        f"{key}{free}\nprices = {{ input = {price[0]!r}, output = {price[1]!r} }}"
        "  # dollars for a million tokens"
        for model, price in zip(wish.models, wish.prices, strict=True)
    ]


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
        f"path = {_toml(_beside(file, path))}",
        'labels = "labels"',
    ]
    if min(shapes.values()) > 1:
        rows = [held[name] for name in costs]
        shares = all((r >= 0).all() and abs(r.sum(axis=1) - 1).max() < 0.01 for r in rows)
        lines.append(f"{'probabilities' if shares else 'logits'} = {_toml(named)}")
    else:
        lines.append(f"predictions = {_toml(named)}")
        if all(name in held for name in sure.values()):
            lines.append(f"confidences = {_toml(sure)}")
        else:
            lines.append("# Without confidences answers can only be compared: agreement, of three.")
    lines += [
        f"costs = {_toml(costs)}  # of one answer",
        f"unit = {_toml(wish.unit)}",
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
    which = f"classes = {_toml(list(wish.classes))}" if wish.classes else '# classes = ["cat"]'
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

_RECORD = """[record]
max_spend = 1.0  # dollars, never exceeded
concurrency = 8  # calls at a time"""


def _names(models: Sequence[str]) -> list[str]:
    usual = {2: ["small", "large"], 3: ["small", "middle", "large"]}
    return usual.get(len(models), [f"network{k + 1}" for k in range(len(models))])


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def _beside(given: Path, config: Path) -> str:
    """A path as the configuration names it, relative to its folder."""
    whole = given.expanduser()
    return str(whole) if whole.is_absolute() else os.path.relpath(whole, config.parent)


def _value(text: str) -> Any:  # noqa: ANN401  (an argument of a network)
    try:
        return json.loads(text)
    except ValueError:
        return text


def _toml(value: object) -> str:
    """A value in TOML; its texts are written as those of JSON.

    >>> _toml({"a b": [1, True], "c": 0.5})
    '{ "a b" = [1, true], c = 0.5 }'
    """
    if isinstance(value, Mapping):
        keys = (k if re.fullmatch(r"[\w-]+", k, re.ASCII) else _toml(k) for k in value)
        pairs = zip(keys, map(_toml, value.values()), strict=True)
        return f"{{ {', '.join(f'{key} = {one}' for key, one in pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
