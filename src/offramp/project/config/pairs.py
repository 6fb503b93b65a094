"""Which data a stage can read: the one place that says which model takes which kind.

Layer: project.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

from offramp.project.config.sections import BuiltSection, RunConfig, StageSection

Rows = Literal["pixels", "files", "texts", "columns"]
#: What the examples of each kind of data are; of a folder of images either. An npz file holds
#: anything, and what a kind of one's own holds is not known here.
ROWS: dict[str, tuple[Rows, ...]] = {
    "digits": ("pixels",),
    "cifar10": ("pixels",),
    "cifar100": ("pixels",),
    "imagenet32": ("pixels",),
    "folder": ("pixels", "files"),
    "texts": ("texts",),
    "table": ("columns",),
}
#: What the first transform of a stage reads, by its kind; another may read anything.
FIRST: dict[str, tuple[Rows, ...]] = {
    "decode": ("files",),
    "resize": ("pixels", "files"),
    "normalize": ("pixels",),
    "tokenize": ("texts",),
    "columns": ("columns",),
}
_IMAGES: tuple[Rows, ...] = ("pixels", "files")
_TASKS: dict[object, tuple[Rows, ...]] = {"image": _IMAGES, "text": ("texts",)}
_OF_TEXTS = "sklearn.feature_extraction.text:"
_NAMES: dict[Rows, str] = {
    "pixels": "images",
    "files": "image files",
    "texts": "texts",
    "columns": "columns of a table",
}
_INSTEAD = {
    "texts": f' Texts go to sklearn = ["{_OF_TEXTS}TfidfVectorizer", "sklearn.linear_model:'
    'LogisticRegression"], to a function or service, or through tokenize to a network that is '
    "imported.",
    "columns": ' Columns go to sklearn = "sklearn.ensemble:RandomForestClassifier", to a function, '
    "or to a network that is imported, through columns.",
}


def mismatches(config: RunConfig) -> list[tuple[Sequence[str | int], str]]:
    """Stages that cannot read the data, each with its place in the file and the repair."""
    data = config.data
    if data is None or data.kind not in ROWS:
        return []
    rows = ROWS[data.kind]
    stages: list[tuple[tuple[str | int, ...], BuiltSection]] = [
        (("stage", k), stage) for k, stage in enumerate(config.stage)
    ]
    if config.network is not None:
        stages.append((("network",), config.network))
    found: list[tuple[Sequence[str | int], str]] = []
    for place, stage in stages:
        for key, who, reads in (_of_model(stage), _of_transform(stage)):
            if reads and not set(reads) & set(rows):
                wanted = "images" if reads == _IMAGES else " or ".join(_NAMES[one] for one in reads)
                text = f"{who} reads {wanted}, and {data.kind!r} holds {_NAMES[rows[0]]}."
                found.append(((*place, key), text + _INSTEAD.get(rows[0], "")))
                break  # one fault of a stage is enough to begin with
        else:
            if rows == ("columns",) and getattr(stage, "sklearn", None) and not stage.transform:
                text = 'is missing: { kind = "columns", names = [...] }, in the order it is to read'
                found.append(((*place, "transform"), text))
    return found


def _of_model(stage: BuiltSection) -> tuple[str, str, tuple[Rows, ...]]:
    """The key of what answers, its name, and which rows it takes; none where nobody knows."""
    if isinstance(stage, StageSection) and stage.instead is not None:
        if stage.instead == "openai":
            return "openai", "a prompt", ("texts", "columns")
        if stage.to_fit:
            first = stage.sklearn[0]
            return "sklearn", repr(first), _of_class(first)
        return stage.instead, "", ()
    name = stage.model
    return "model", repr(name), _of_network(name, stage.arguments)


def _of_class(name: str) -> tuple[Rows, ...]:
    """What a class of scikit-learn reads that stands first."""
    if not name.startswith("sklearn."):
        return ()
    return ("texts",) if name.startswith(_OF_TEXTS) else ("columns",)


def _of_network(name: str, arguments: dict[str, Any]) -> tuple[Rows, ...]:
    from offramp.models import MODELS  # here, so that --help needs no torch

    if name in ("timm", "torchvision") or name in MODELS or re.fullmatch(r"(pre)?resnet\d+", name):
        return _IMAGES
    return _TASKS.get(arguments.get("task"), ()) if name == "huggingface" else ()


def _of_transform(stage: BuiltSection) -> tuple[str, str, tuple[Rows, ...]]:
    """The same of its first transform."""
    if stage.transform is None:
        return "transform", "", ()
    from offramp._core.schema import to_json

    told: Any = to_json(stage.transform)
    kind = (told[0] if isinstance(told, list) else told).get("kind")
    return "transform", repr(kind), FIRST.get(kind, ())
