"""Predictions as clients read them: tensors of the protocol, or an object for each example.

Layer: serve.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from offramp._core.errors import InputError
from offramp._core.open_inference import WireTensor
from offramp.runtime import Adaptive, Prediction

_FIXED = {
    "label": "INT64",
    "class_name": "BYTES",
    "confidence": "FP32",
    "stage": "BYTES",
    "path": "BYTES",
    "cost": "FP64",
    "gear": "BYTES",
    "reason": "BYTES",
    "valid": "BOOL",
}


def outputs_told(model: Adaptive) -> list[dict[str, Any]]:
    """Names, types and shapes of what a model answers, as its metadata tell them."""
    labels = model.program.says_labels
    names = [name for name in _FIXED if name != "class_name" or model.class_names]
    if labels is not None and labels.confidence is None:
        names.remove("confidence")
    if model.costs is None and not model.program.priced:
        names.remove("cost")
    told = [{"name": name, "datatype": _FIXED[name], "shape": [-1]} for name in names]
    if labels is None:
        width = model.program.classes or -1
        told.insert(1, {"name": "probabilities", "datatype": "FP32", "shape": [-1, width]})
    elif labels.features is not None:
        told.insert(1, {"name": "values", "datatype": "FP32", "shape": [-1, -1]})
    return told


def _paths(answer: Prediction) -> list[str]:
    return [">".join(answer.stage_names[k] for k in path) for path in answer.paths]


#: What is said of the examples, by output: arrays of numbers, lists of texts; made when called.
Columns = Mapping[str, Callable[[], Any]]


def columns_of(answer: Prediction, class_names: Sequence[str], gear: str) -> Columns:
    """What can be said of the examples that were answered, in the order in which it is told."""
    found: dict[str, Callable[[], Any]] = {"label": lambda: answer.labels.cpu().numpy()}
    if (log_probs := answer.log_probs) is not None:
        found["probabilities"] = lambda: log_probs.exp().cpu().numpy()
    if (values := answer.values) is not None:
        found["values"] = lambda: values.cpu().numpy()
    if class_names:
        found["class_name"] = lambda: _named(answer.labels, class_names)
    if (sure := answer.confidence) is not None:
        found["confidence"] = lambda: sure.float().cpu().numpy()
    found["stage"] = lambda: _named(answer.stage, answer.stage_names)
    found["path"] = lambda: _named(answer.path, _paths(answer))
    if (cost := answer.cost) is not None:
        found["cost"] = lambda: cost.cpu().numpy()
    found["gear"] = lambda: [gear] * len(answer)
    found["reason"] = lambda: answer.reasons
    found["valid"] = lambda: answer.valid.cpu().numpy()
    return found


def _named(indices: Tensor, names: Sequence[str]) -> list[str]:
    known = range(len(names))
    return [names[k] if k in known else "" for k in indices.tolist()]


def tensors_of(
    columns: Columns, wanted: Mapping[str, Mapping[str, Any]], class_names: Sequence[str]
) -> list[WireTensor]:
    """The outputs that a request wants, by name with their parameters; all where it names none.

    Raises:
        InputError: If there is no such output.
    """
    found = []
    for name in wanted or columns:
        if name not in columns:
            raise InputError(f"outputs must be among {list(columns)}, got {name!r}.")
        most = wanted.get(name, {}).get("classification", 0)
        if type(most) is not int or most < 0 or (most and name != "probabilities"):
            raise InputError(
                "The parameter classification must be a whole number of at least 0, of the output "
                f"'probabilities', got {most!r} of {name!r}."
            )
        values = columns[name]()
        if most:
            found.append(_classified(values, most, class_names))
            continue
        kind = _FIXED.get(name, "FP32")
        array = np.array(values, dtype=object) if kind == "BYTES" else np.asarray(values)
        found.append(WireTensor(name=name, datatype=kind, values=array))
    return found


def _classified(
    probabilities: np.ndarray[Any, Any], most: int, class_names: Sequence[str]
) -> WireTensor:
    """The best classes of each example, as texts "value:index:name"."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :most]
    rows = []
    for values, best in zip(probabilities, order, strict=True):
        names = [f":{class_names[k]}" if k < len(class_names) else "" for k in best]
        rows.append([f"{values[k]:f}:{k}{name}" for k, name in zip(best, names, strict=True)])
    texts = np.empty((len(rows), order.shape[1]), dtype=object)
    for k, row in enumerate(rows):
        texts[k] = row
    return WireTensor(name="probabilities", datatype="BYTES", values=texts)


def objects_of(columns: Columns) -> list[dict[str, Any]]:
    """One object for each example; what is not finite is null."""
    plain = {name: _plain(make()) for name, make in columns.items()}
    n = len(plain["label"])
    return [{name: values[k] for name, values in plain.items()} for k in range(n)]


def _plain(values: list[Any] | np.ndarray[Any, Any]) -> list[Any]:
    if isinstance(values, list):
        return values
    held = values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        held = values.astype(object)
        held[~np.isfinite(values)] = None
    plain: list[Any] = held.tolist()
    return plain
