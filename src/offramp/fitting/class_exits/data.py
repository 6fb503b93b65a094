"""Exits of classes: the examples of one split, candidate branches, and who leaves where.

Layer: fitting.  Source: Bonato and Bouganis, class-specific early exit, section 3.1; superclasses
section 4.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from offramp._core.checks import check_known, check_shape
from offramp._core.errors import InputError
from offramp._core.schema import stored
from offramp._core.types import BoolArray, FloatArray, IntArray
from offramp.fitting.class_exits.time import Timing

ROUNDING = 1e-12  # equal shares computed in two ways may differ in the last bits
STAYS = -1  # in place of an exit: the example is answered by the baseline


@final
@dataclass(frozen=True, kw_only=True)
class ClassData:
    """Labels and the baseline's predictions for the examples of one split.

    Args:
        labels: True labels, `(n,)`, in [0, c).
        baseline: Labels that the network B predicts, `(n,)`; one outside the classes is wrong.
        class_names: Names of the `c` classes.
        evidence: Log-odds of each branch's class, `(n, b)`, float32 values; -infinity where the
            class is not the branch's answer. For branches of all classes the log margin.
        own: What branches of all classes answer, `(n, b)`; empty, `(n, 0)`, if there are none.
        split: Name of the split, for messages.

    Raises:
        InputError: If the lengths differ, there are no examples, or a label is outside.

    >>> data = ClassData(labels=np.array([0, 1, 1]), baseline=np.array([0, 1, 0]),
    ...                  class_names=("cat", "dog"), evidence=np.zeros((3, 1)))
    >>> data.recalls.tolist()
    [1.0, 0.5]
    """

    labels: IntArray
    baseline: IntArray
    class_names: tuple[str, ...]
    evidence: FloatArray
    own: IntArray = field(default_factory=lambda: np.empty((0, 0), dtype=np.int64))
    split: str = "fit"

    def __post_init__(self) -> None:
        if len(self.labels) == 0:
            raise InputError(f"The split {self.split!r} has no examples.")
        check_shape("baseline", self.baseline.shape, (len(self.labels),))
        check_shape("evidence", self.evidence.shape, (len(self.labels), None))
        outside = (self.labels < 0) | (self.labels >= self.classes)
        if outside.any():
            raise InputError(
                f"labels must be in [0, {self.classes}), got {self.labels[outside][0]}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """Number of classes `c`."""
        return len(self.class_names)

    @property
    def right(self) -> BoolArray:
        """True where the baseline is right, `(n,)`."""
        right: BoolArray = self.labels == self.baseline
        return right

    @property
    def sizes(self) -> IntArray:
        """Examples of each class, `(c,)`."""
        return np.bincount(self.labels, minlength=self.classes)

    @property
    def recalls(self) -> FloatArray:
        """The baseline's accuracy on each class, `(c,)`; NaN where there are no examples."""
        return shares(self.per_class(self.right), self.sizes)

    def per_class(self, values: NDArray[Any]) -> FloatArray:
        """Sum over the examples of each class, `(c,)`."""
        counts = np.bincount(self.labels, weights=values, minlength=self.classes)
        return counts.astype(np.float64)

    def require(self, target: int) -> None:
        """Check that an exit for a class can be designed on these examples.

        Raises:
            InputError: If the class does not exist, has no examples, or B is never right on it.
        """
        if not 0 <= target < self.classes:
            raise InputError(f"target must be a class in [0, {self.classes}), got {target}.")
        name = self.class_names[target]
        if self.sizes[target] == 0:
            raise InputError(
                f"The class {name!r} has no examples in the split {self.split!r} ({len(self)} "
                "examples). Divide the examples class by class, or take more of them."
            )
        if not (self.right & (self.labels == target)).any():
            raise InputError(
                f"The accuracy of the network on the class {name!r} is 0.0 in the split "
                f"{self.split!r}: there is no accuracy to keep. Train the network first."
            )

    def answers_at(self, column: int, target: int | None) -> IntArray:
        """What a branch answers, `(n,)`: its class, or for all classes its own labels."""
        return np.full(len(self), target) if target is not None else self.own[:, column]


def superclass_table(class_names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> IntArray:
    """Index of each class's superclass, `(c,)`.

    Args:
        class_names: Names of the `c` classes.
        groups: For each superclass the names of its classes; at least two superclasses.

    Raises:
        UnknownNameError: If a class does not exist; the nearest is suggested.
        InputError: If a class is in no superclass or in two.

    >>> superclass_table(["cat", "car", "dog"], {"animal": ["cat", "dog"], "vehicle": ["car"]})
    array([0, 1, 0])
    """
    if len(groups) < 2:
        raise InputError(f"groups must hold at least two superclasses, got {list(groups)}.")
    table = np.full(len(class_names), -1, dtype=np.int64)
    for k, (group, members) in enumerate(groups.items()):
        for name in members:
            position = list(class_names).index(check_known("class", name, class_names))
            if table[position] >= 0:
                other = list(groups)[table[position]]
                raise InputError(f"The class {name!r} is in {other!r} and in {group!r}.")
            table[position] = k
    missing = [name for name, k in zip(class_names, table, strict=True) if k < 0]
    if missing:
        raise InputError(f"groups must hold every class; {missing} are in none of {list(groups)}.")
    return table


def to_superclasses(labels: IntArray, table: IntArray) -> IntArray:
    """Superclass of each label, `(n,)`; what lies outside the classes becomes -1.

    Args:
        labels: True or predicted, `(n,)`.
        table: Of `superclass_table`.

    >>> to_superclasses(np.array([2, 0, 9]), np.array([1, 1, 0])).tolist()
    [0, 1, -1]
    """
    return np.append(table, -1)[np.where((labels >= 0) & (labels < len(table)), labels, -1)]


def class_index(which: int | str, class_names: Sequence[str]) -> int:
    """Position of a class given by name or position.

    Raises:
        UnknownNameError: If there is no class of this name; the nearest is suggested.
        InputError: If the position is outside.

    >>> class_index("dog", ["cat", "dog"])
    1
    """
    if isinstance(which, str):
        return list(class_names).index(check_known("class", which, class_names))
    if isinstance(which, bool) or not 0 <= which < len(class_names):
        raise InputError(f"A class must be in [0, {len(class_names)}), got {which!r}.")
    return int(which)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One column of evidence: a candidate exit for one class.

    Args:
        point: Name of the layer that it is attached behind.
        keep_previous: True if it also reads the attachment points before (KP=On).
        target: The class, an index; None for a branch that answers all classes.
        timing: What it costs.
    """

    point: str
    keep_previous: bool
    target: int | None
    timing: Timing


@final
@stored(derived=("threshold",))
@dataclass(frozen=True, slots=True, kw_only=True)
class ClassExit:
    """A branch with its threshold.

    Args:
        column: Of the evidence.
        branch: What stands in that column.
        log_odds: The threshold alpha in log-odds; an example leaves where its evidence is not less.
    """

    column: int
    branch: Branch
    log_odds: float

    @property
    def threshold(self) -> float:
        """The threshold as a probability."""
        return float(1 / (1 + np.exp(-self.log_odds)))


def route(data: ClassData, exits: Sequence[ClassExit]) -> IntArray:
    """Position of the exit at which each example leaves, `(n,)`, else `STAYS`.

    Args:
        data: The examples.
        exits: In the order in which they are reached.
    """
    left = np.full(len(data), STAYS)
    for k, leaf in enumerate(exits):
        sure = data.evidence[:, leaf.column] >= np.float32(leaf.log_odds)
        left[(left == STAYS) & sure] = k
    return left


def answers_and_times(
    data: ClassData, exits: Sequence[ClassExit], left: IntArray, baseline: float
) -> tuple[IntArray, FloatArray]:
    """Label that each example gets, and the time it takes, each `(n,)`.

    Args:
        data: The examples.
        exits: In the order in which they are reached.
        left: Of `route`.
        baseline: t.
    """
    answers = data.baseline.copy()
    for k, leaf in enumerate(exits):
        here = left == k
        answers[here] = data.answers_at(leaf.column, leaf.branch.target)[here]
    branches = np.cumsum([0.0, *(leaf.branch.timing.branch for leaf in exits)])
    leaving = [x.branch.timing.reached + b for x, b in zip(exits, branches[1:], strict=True)]
    return answers, np.array([*leaving, baseline + branches[-1]])[left]  # STAYS is -1, the last


def shares(part: FloatArray, whole: IntArray) -> FloatArray:
    """Quotients, NaN where there is nothing to divide by."""
    found: FloatArray = np.full(len(part), np.nan)
    return np.divide(part, whole, out=found, where=whole > 0)
