"""What functions and services return, read: labels by name, refusals, numbers in lists and arrays.

Labels are numbers: of a class name its index; of any other text one of its own above all classes,
the same for every stage, so that two services that agree on it agree; of a refusal (None, NaN, or a
negative number) a negative one of the stage's own, so that two refusals never agree.

Layer: stages.
"""

import hashlib
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offramp._core.arrays import array_of, kind_of, tensor_of
from offramp._core.errors import InputError
from offramp._core.outputs import StageOutput, labels_with_confidence

_OUTSIDE = 2**48  # of texts that are no class names: far above all classes


@final
class Labels(dict[object, int]):
    """Numbers of the labels that one stage gives; what it does not hold is looked at on demand.

    Args:
        stage: Its name.
        class_names: Names of the classes.
        strict: Whether a label that is no class is an error.
        service: Whether it numbers its refusals itself, below -255.

    >>> labels = Labels("service", ["cat", "dog"])
    >>> [labels["dog"], labels["cow"] >= 2**48, labels[None] < 0, labels[5]]
    [1, True, True, 5]
    """

    def __init__(
        self,
        stage: str,
        class_names: Sequence[str] = (),
        *,
        strict: bool = False,
        service: bool = False,
    ) -> None:
        super().__init__({name: k for k, name in enumerate(class_names)})
        self._stage, self._names, self.strict = stage, tuple(class_names), strict
        self.refusal = -256 - _digest(stage, 3)
        self._least = -255 if service else -(2**63)

    def __missing__(self, label: object) -> int:
        if label is None or label != label:  # NaN
            return self.refusal
        if isinstance(label, int | np.integer):
            return int(label)
        if isinstance(label, float) and label.is_integer():
            return int(label)
        if not isinstance(label, str):
            raise InputError(
                f"Stage {self._stage!r} must give labels that are whole numbers, class names, or "
                f"None for no answer, got {label!r}."
            )
        if not self._names:
            raise InputError(
                f"Stage {self._stage!r} gives labels that are text, such as {label!r}, so it needs "
                "the names of the classes: class_names=[...]."
            )
        if self.strict:
            raise InputError(
                f"Stage {self._stage!r} gives the label {label!r}, which is none of the "
                f"{len(self._names)} class names. With strict=False it counts as a wrong answer."
            )
        return _OUTSIDE + _digest(label, 5)

    def read(self, values: Any) -> Int[Tensor, "m"] | Int[Tensor, "m r"]:  # noqa: ANN401
        """Labels `(m,)`, or ranked labels `(m, r)`, as int64; negative ones as they are.

        Raises:
            InputError: If they are no labels, or beyond int64.
        """
        if isinstance(values, Tensor) and not values.is_floating_point():
            found = values.long()
            return self._below(found) if values.dtype == torch.uint64 else found
        if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
            found = torch.tensor(values.astype(np.int64, copy=False))
            return self._below(found) if values.dtype.kind == "u" else found
        if isinstance(values, str | bytes) or not (
            isinstance(values, Sequence) or hasattr(values, "__array__")
        ):
            raise InputError(
                f"Stage {self._stage!r} must give one label for each example, in a list or an "
                f"array, got {kind_of(values)}."
            )
        plain = (
            values
            if isinstance(values, Sequence)
            else array_of("labels", values, gaps=True).tolist()
        )
        numbers: Any = plain
        if plain and isinstance(plain[0], list | tuple):
            numbers = [[self[one] for one in row] for row in plain]
        elif type(plain) is not list or set(map(type, plain)) != {int}:  # else as fast as it goes
            numbers = list(map(self.__getitem__, plain))
        try:
            return torch.from_numpy(np.array(numbers, dtype=np.int64))  # faster than of a list
        except (OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"Stage {self._stage!r} must give labels below 2**63, and as many ranked ones for "
                f"each example, got {str(plain)[:80]}: {error}"
            ) from error

    def check(self, found: Tensor, classes: int) -> None:
        """Raise `InputError` if labels are to be classes and one is none."""
        if not self.strict:
            return
        outside = (found < 0) | (found >= classes)
        if not bool(outside.any()):
            return
        number = int(found[outside][0])
        what = "None or a negative number" if number < 0 else number
        raise InputError(
            f"Stage {self._stage!r} gives the label {what}, which is none of the {classes} "
            f"classes, 0 to {classes - 1}. With strict=False it counts as a wrong answer."
        )

    def refused(self, found: Tensor) -> Tensor:
        """Where labels are refusals that have no number of the stage's own."""
        return (found < 0) & (found >= self._least)

    def _below(self, found: Tensor) -> Tensor:
        """Labels that came without a sign, and have one now where they were too large."""
        if found.numel() and int(found.min()) < 0:
            raise InputError(
                f"Stage {self._stage!r} must give labels below 2**63, got "
                f"{int(found.min()) + 2**64}."
            )
        return found


def scores_of(
    stage: str,
    result: Any,  # noqa: ANN401
    class_names: Sequence[str] = (),
) -> Float[Tensor, "m c"]:
    """Logits or probabilities that a function gives, in memory of their own.

    Args:
        stage: Its name.
        result: An array, a tensor, nested lists; or a table, whose columns are read by the names of
            the classes where they have names.
        class_names: Names of the classes, where they are known.

    Raises:
        InputError: If they are no numbers, or columns have other names than the classes.
    """
    result = _columns_in_order(stage, result, class_names)
    try:
        found = tensor_of("they", result)
    except InputError as error:
        raise InputError(
            f"Stage {stage!r} must give one number for each example and class, an array (m, c): "
            f"{error}"
        ) from error
    return found if found is result else found.to(torch.float32, copy=True)


def _columns_in_order(stage: str, result: Any, class_names: Sequence[str]) -> Any:  # noqa: ANN401
    """A table with its columns as the classes stand; anything else as it is."""
    columns = list(getattr(result, "columns", ()))
    if not class_names or not columns or not all(isinstance(name, str) for name in columns):
        return result
    if sorted(columns) != sorted(class_names):
        raise InputError(
            f"Stage {stage!r} gives a table whose columns must be the names of the classes, "
            f"{list(class_names)[:5]}, got {columns[:5]}. Rename them, or give an array of the "
            "columns in the order of the classes."
        )
    return result if columns == list(class_names) else result[list(class_names)]


def labeled(
    stage: str,
    labels: Labels,
    classes: int | None,
    result: Any,  # noqa: ANN401
    confidence: Any = None,  # noqa: ANN401
) -> StageOutput:
    """What a stage says that gives labels, with confidences or without.

    Args:
        stage: Its name.
        labels: Numbers of its labels.
        classes: Number of classes `c`.
        result: Labels `(m,)`, or without confidences also ranked ones `(m, r)`.
        confidence: `(m,)` in [0, 1], or None. What comes as a tensor may be NaN where a service has
            not been able to answer, and keeps its label, which says why; any other negative label
            is a refusal, with confidence 0.

    Raises:
        InputError: If the number of classes is not known, lengths differ, or a value is outside its
            domain, or a label is no class and is to be one.
    """
    if classes is not None and (one := _plain(labels, classes, result, confidence)) is not None:
        return one
    found = labels.read(result)
    if classes is None:
        raise InputError(
            f"Stage {stage!r} answers with labels, so the number of classes must be given: "
            "classes=10, or class_names."
        )
    labels.check(found, classes)
    if confidence is None:
        if found.dim() not in (1, 2):
            raise InputError(
                f"Stage {stage!r} must give labels (m,) or ranked labels (m, r), got shape "
                f"{tuple(found.shape)}."
            )
        found = found.masked_fill(labels.refused(found), labels.refusal)
        return StageOutput(classes=classes, ranked=found if found.dim() == 2 else found[:, None])
    sure = confidence if isinstance(confidence, Tensor) else _confidence(stage, confidence, found)
    if sure.shape == found.shape and _any_refused(found):
        refused = labels.refused(found) & ~sure.isnan().to(found.device)
        found = found.masked_fill(refused, labels.refusal)
        sure = sure.masked_fill(refused.to(sure.device), 0.0)
    try:
        return labels_with_confidence(found, sure, classes)
    except InputError as error:
        raise InputError(f"Stage {stage!r}: {error}") from error


def _plain(
    labels: Labels,
    classes: int,
    result: Any,  # noqa: ANN401
    confidence: Any,  # noqa: ANN401
) -> StageOutput | None:
    """The answer about one example that came in plain numbers; None where there is more to see."""
    if type(result) is not list or type(confidence) is not list or len(result) != 1:
        return None
    if len(confidence) != 1 or type(result[0]) not in (int, str):
        return None
    label, sure = labels[result[0]], confidence[0]
    if not (0 <= label < classes and type(sure) is float and 0.0 <= sure <= 1.0):
        return None
    return StageOutput(
        classes=classes,
        ranked=torch.full((1, 1), label),  # in half the time of a tensor of lists
        confidence=torch.full((1,), sure, dtype=torch.float32),
    )


def _confidence(stage: str, values: Any, labels: Tensor) -> Tensor:  # noqa: ANN401
    """Confidences that did not come as a tensor: 0 where there is no answer."""
    found = None
    if isinstance(values, list):
        if None in values:
            values = [0.0 if value is None else value for value in values]
        with suppress(TypeError, ValueError):  # what is no number is explained below
            array = np.array(values)
            found = torch.from_numpy(array.astype(np.float32)) if array.dtype.kind in "f" else None
    if found is None:
        found = scores_of(stage, values)
    if found.shape == labels.shape and math.isnan(found.numpy().sum()):
        missing = found.isnan()
        bad = missing & (labels >= 0)
        if bool(bad.any()):
            raise InputError(
                f"Stage {stage!r} must give a confidence in [0, 1] for each label, got NaN for "
                f"example {int(bad.nonzero()[0])} of the batch. Where there is no answer, give the "
                "label None."
            )
        found = found.masked_fill(missing, 0.0)
    return found


def _any_refused(labels: Tensor) -> bool:
    """Whether a label is negative; not asked of a device, where the host would wait."""
    return labels.device.type != "cpu" or (labels.numel() > 0 and labels.min().item() < 0)


def _digest(text: str, size: int) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=size).digest()
    )
