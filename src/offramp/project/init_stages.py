"""What stands for stages in a first configuration: networks, classifiers, services.

Layer: project.
"""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp._core.errors import InputError

if TYPE_CHECKING:
    from offramp.project.init import Wish

PICTURES = "folder"  # data whose files are images of any size
#: What is taken where no model is named, by the kind of the data: what comes with the package, or
#: with scikit-learn.
USUAL = {
    "table": (
        "sklearn.preprocessing:StandardScaler+sklearn.linear_model:LogisticRegression",
        "sklearn.ensemble:RandomForestClassifier n_estimators=100",
    ),
    "texts": (
        "sklearn.feature_extraction.text:CountVectorizer+sklearn.linear_model:LogisticRegression",
        "sklearn.feature_extraction.text:TfidfVectorizer+sklearn.linear_model:LogisticRegression "
        "tfidfvectorizer__ngram_range=[1,3] logisticregression__C=50",
    ),
}
_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet32": 1000}
_BYTE = 1 / 255
_WIDE = 90  # characters of a line
_ESTIMATORS = ("sklearn", "lightgbm", "xgboost")  # packages whose classes are classifiers


def fitting(data: str, path: Path | None) -> str:
    """The arguments with which a registered network fits data in color; "" for others.

    >>> fitting("cifar100", Path("cifar")), fitting("digits", None)
    (' in_channels=3 classes=100', '')
    """
    count = _CLASSES.get(data)
    if data == PICTURES and path is not None and path.expanduser().is_dir():
        from offramp.data.listing import is_hidden

        within = path.expanduser().iterdir()
        count = sum(each.is_dir() and not is_hidden(each.name) for each in within)
    return "" if not count else f" in_channels=3 classes={count}"


def is_classifier(model: str) -> bool:
    """Whether a model is a classifier of scikit-learn, by its name: a class, or a file of skops.

    >>> is_classifier("sklearn.svm:SVC C=2"), is_classifier("a.skops"), is_classifier("my:net")
    (True, True, False)
    """
    name = _parts(model)[0]
    return name.endswith(".skops") or name.partition(".")[0].partition(":")[0] in _ESTIMATORS


def to_fit(model: str) -> bool:
    """Whether a model is a classifier that `offramp train` fits."""
    return is_classifier(model) and not _parts(model)[0].endswith(".skops")


def stages(wish: "Wish", path: Path) -> list[str]:
    """The `[[stage]]` of several networks or classifiers."""
    names = _names(wish.models)
    return [
        f"[[stage]]  # the cheapest first\nname = {toml(name)}\n{_built(wish, path, k)}"
        for k, name in enumerate(names)
    ]


def network(wish: "Wish", path: Path) -> str:
    """The `[network]` of one."""
    return f"[network]  # its weights are never changed\n{_built(wish, path, 0)}"


def _built(wish: "Wish", path: Path, k: int) -> str:
    name, arguments = _read(wish.models[k])
    if is_classifier(wish.models[k]):
        return _classifier(wish, path, name, arguments)
    if ":" not in name:  # what is imported is looked for when it is built
        from offramp.models import model_factory

        model_factory(name)
    lines = [f"model = {toml(name)}  # registered, or module:callable"]
    if arguments:
        lines.append(f"arguments = {toml(arguments)}")
    if wish.weights:
        lines.append(f"weights = {toml(beside(wish.weights[k], path))}")
    else:
        lines.append('# weights = "net.safetensors"  # without them it answers at random')
    scale = 0.0625 if wish.data == "digits" else _BYTE
    lines.append("# As in training, such as mean = [0.485, 0.456, 0.406], std = [0.229, ...].")
    normalize = f'{{ kind = "normalize", scale = {scale!r} }}'
    if wish.data == PICTURES and wish.case != "class-exits":  # files, also where it is served
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


def _read(model: str) -> tuple[str, dict[str, Any]]:
    """The name of a model, and its arguments."""
    name, *given = _parts(model)
    arguments = {}
    for one in given:
        key, sign, value = one.partition("=")
        if not sign:
            raise InputError(f"--model must be a name and argument=value, got {model!r}.")
        arguments[key] = _value(value)
    return name, arguments


def _classifier(wish: "Wish", path: Path, name: str, arguments: dict[str, Any]) -> str:
    if name.endswith(".skops"):
        lines = [
            f"sklearn = {toml(beside(Path(name), path))}  # fitted, written by skops.io.dump",
            '# labels = ["no", "yes"]  # where it was fitted on 0 and 1 in place of these',
            "# allow_types = []  # types of which skops would not make objects by itself",
        ]
    else:
        steps = name.split("+")
        told = "a pipeline, which `offramp train` fits" if steps[1:] else "`offramp train` fits it"
        lines = [f"sklearn = {toml(steps if steps[1:] else name)}  # {told}"]
        if arguments:
            lines.append(f"arguments = {toml(arguments)}")
    if wish.columns:
        lines += [
            'transform = { kind = "columns", names = [  # in this order, whatever the table\'s',
            *(f"  {line}" for line in _wrapped(wish.columns)),
            "] }",
        ]
    return "\n".join(lines)


def _wrapped(names: Sequence[str]) -> list[str]:
    """Names with commas, on lines of a readable length."""
    lines = [""]
    for name in names:
        one = f"{toml(name)}, "
        if lines[-1] and len(lines[-1]) + len(one) > _WIDE:
            lines.append("")
        lines[-1] += one
    return [line.rstrip() for line in lines]


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


def services(wish: "Wish") -> list[str]:
    """The `[[stage]]` of several services."""
    key = "" if not wish.key_env else f"\nkey_env = {toml(wish.key_env)}  # the key's variable"
    free = "" if wish.key_env else '\nkey_env = ""  # no key'
    return [
        f"[[stage]]  # the cheapest first\nname = {toml(_plain(model))}\n[stage.openai]\n"
        f"url = {toml(wish.url)}\nmodel = {toml(model)}\n"
        'prompt = "Answer with one of {labels}: {row}"  # say what the labels mean'
        f"{key}{free}\nprices = {{ input = {price[0]!r}, output = {price[1]!r} }}"
        "  # dollars for a million tokens"
        for model, price in zip(wish.models, wish.prices, strict=True)
    ]


def _names(models: Sequence[str]) -> list[str]:
    usual = {2: ["small", "large"], 3: ["small", "middle", "large"]}
    return usual.get(len(models), [f"network{k + 1}" for k in range(len(models))])


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def beside(given: Path, config: Path) -> str:
    """A path as the configuration names it, relative to its folder."""
    whole = given.expanduser()
    return str(whole) if whole.is_absolute() else os.path.relpath(whole, config.parent)


def _value(text: str) -> Any:  # noqa: ANN401  (an argument of a network)
    try:
        return json.loads(text)
    except ValueError:
        return text


def toml(value: object) -> str:
    """A value in TOML; its texts are written as those of JSON.

    >>> toml({"a b": [1, True], "c": 0.5})
    '{ "a b" = [1, true], c = 0.5 }'
    """
    if isinstance(value, Mapping):
        keys = (k if re.fullmatch(r"[\w-]+", k, re.ASCII) else toml(k) for k in value)
        pairs = zip(keys, map(toml, value.values()), strict=True)
        return f"{{ {', '.join(f'{key} = {one}' for key, one in pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
