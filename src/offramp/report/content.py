"""What a report shows: records of plain values and of results that were computed elsewhere.

Layer: report.  Nothing here computes a number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray

from offramp._core.checks import check_fraction, check_not_negative, check_positive_int
from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp.evaluation import (
    Choice,
    ClassRow,
    Evaluation,
    ExitPoint,
    FrontierPoint,
    Guarantee,
    Overlap,
    Promisable,
    ReferencePoint,
    Reliability,
    Saving,
    StageUsage,
    UnitCost,
)


@final
@dataclass(frozen=True, kw_only=True)
class TimingRow:
    """The static network and the adaptive classifier side by side, in one run.

    Args:
        batch_size: Examples per call, at least 1.
        static_s: Median time per example of the static network, seconds.
        adaptive_s: Median time per example of the adaptive classifier, seconds.
        speedup: Ratio of medians, static over adaptive; higher is better.
        rounds: Interleaved rounds that the medians were taken over.
        backend: What ran them, in words.

    Raises:
        InputError: If a time is negative or not finite, or a count is below 1.
    """

    batch_size: int
    static_s: float
    adaptive_s: float
    speedup: float
    rounds: int
    backend: str = ""

    def __post_init__(self) -> None:
        check_positive_int("batch_size", self.batch_size)
        check_positive_int("rounds", self.rounds)
        for name in ("static_s", "adaptive_s", "speedup"):
            check_not_negative(name, getattr(self, name))


@final
@dataclass(frozen=True, kw_only=True)
class ExampleImage:
    """An image, where it left, and what each stage on the way thought.

    Args:
        pixels: `(h, w)`, `(h, w, 1)` or `(h, w, 3)`, uint8.
        label: Name of the true class.
        visits: For each visited stage, in order, its name and its best classes with their
            probabilities, the most probable first.
        exit_stage: Name of the stage after which it left.
        correct: True if the answer was right.
        answer: Name of the class that was answered; shown where the answer was wrong.
        reference_correct: True if the reference alone is right; None where that is not known.
        stops: For policies of stopping networks: the probability of stopping after each visit.

    Raises:
        InputError: If the shape or type of `pixels` is another one, nothing was visited, the exit
            is not among the visits, a probability lies outside [0, 1], or there is not one of
            stopping for each visit.

    >>> import numpy as np
    >>> ExampleImage(pixels=np.zeros((8, 8), np.uint8), label="3", exit_stage="small",
    ...              visits=(("small", (("3", 0.9), ("8", 0.1))),), correct=True).label
    '3'
    """

    pixels: NDArray[np.uint8]
    label: str
    visits: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]
    exit_stage: str
    correct: bool
    answer: str = ""
    reference_correct: bool | None = None
    stops: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)) or 0 in shape:
            raise InputError(
                f"pixels must have shape (h, w), (h, w, 1) or (h, w, 3), got {shape}. "
                "A channel axis that stands first has to be moved to the end."
            )
        visited = [stage for stage, _ in self.visits]
        if self.exit_stage not in visited:
            raise InputError(
                f"exit_stage must be one of the visited stages {visited}, got {self.exit_stage!r}."
            )
        for _, classes in self.visits:
            for name, probability in classes:
                check_fraction(f"the probability of {name!r}", probability)
        for probability in self.stops:
            check_fraction("the probability of stopping", probability)
        if self.stops and len(self.stops) != len(self.visits):
            raise InputError(
                f"stops must hold one probability for each of the {len(self.visits)} visits, got "
                f"{len(self.stops)}."
            )

    def __json__(self) -> dict[str, object]:  # the pixels are in the page only
        return {
            "label": self.label,
            "answer": self.answer,
            "exit_stage": self.exit_stage,
            "correct": self.correct,
            "reference_correct": self.reference_correct,
            "stops": self.stops,
            "visits": [{"stage": stage, "best": classes} for stage, classes in self.visits],
        }


@final
@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """How to get the same numbers again.

    Args:
        commands: What to type, line by line.
        seed: The seed everything was derived from, or None.
        versions: Package to version.
        data_fingerprint: Identifies the examples, in words or as a checksum.
        files: Files beside the report and their SHA-256.
        machine: Facts about the machine that measured: processor, cores, memory.
    """

    commands: tuple[str, ...] = ()
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    data_fingerprint: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything that a report shows; what is missing is left out of the page.

    Args:
        title: Of the page.
        chosen: The choice, whatever its outcome.
        test: What `chosen.candidate` does on `test`; without it the page shows the part that the
            point was chosen on, and says so.
        frontier: The sweep; its front is drawn as found on `fit`.
        frontier_test: Candidates of the front on `test`, drawn as the learned policy's line.
        promisable: What `calibrate` could promise of each candidate of the front by itself.
        threshold: Threshold candidates on the same examples as `references`.
        references: Static networks, points of the random and the threshold curve, oracles.
        overlap: Which networks are right together.
        uses: Which stages the chosen candidate uses, and why not the others.
        costs_by_unit: The chosen candidate in each unit, on the same examples as `shown`.
        savings: What each policy saves within given losses.
        exits: Accuracy of each stage against its depth; costs in the order of `costs`.
        reliability: How sure each stage is, and how often it is right.
        classes: What the chosen candidate does to each class.
        gap_closed: Share of the gap from the random policy to the neutral oracle; may exceed 1.
        timing: The network alone and the adaptive model side by side.
        stages: Names of the stages, in the order of the tables in `costs`, `(s,)`.
        costs: Cost tables, one per unit.
        images: Examples that left at each stage.
        warnings: What the reader must know before using the result.
        notes: What may help to read it.
        reproduction: How to get the same numbers again.

    Raises:
        InputError: If a cost table has not one entry per stage, or `gap_closed` is not finite.
    """

    title: str
    chosen: Choice
    test: Evaluation | None = None
    frontier: tuple[FrontierPoint, ...] = ()
    frontier_test: tuple[Evaluation, ...] = ()
    promisable: tuple[Promisable, ...] = ()
    threshold: tuple[Evaluation, ...] = ()
    references: tuple[ReferencePoint, ...] = ()
    overlap: Overlap | None = None
    uses: tuple[StageUsage, ...] = ()
    costs_by_unit: tuple[UnitCost, ...] = ()
    savings: tuple[Saving, ...] = ()
    exits: tuple[ExitPoint, ...] = ()
    reliability: tuple[Reliability, ...] = ()
    classes: tuple[ClassRow, ...] = ()
    gap_closed: float | None = None
    timing: tuple[TimingRow, ...] = ()
    stages: tuple[str, ...] = ()
    costs: tuple[Costs, ...] = ()
    images: tuple[ExampleImage, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reproduction: Reproduction = field(default_factory=Reproduction)

    def __post_init__(self) -> None:
        for table in self.costs:
            if len(table) != len(self.stages):
                raise InputError(
                    f"costs in {table.unit!r} must have one entry per stage "
                    f"({len(self.stages)}), got {len(table)}."
                )
        if self.gap_closed is not None and not np.isfinite(self.gap_closed):
            raise InputError(f"gap_closed must be finite or None, got {self.gap_closed!r}.")

    @property
    def cascade(self) -> bool:
        """True if a cascade is to be run."""
        return self.chosen.cascade

    @property
    def certified(self) -> Guarantee | None:
        """The promise that goes with the chosen point, or None."""
        return self.chosen.guarantee

    @property
    def outcome(self) -> str:
        """What kind of answer the page gives, in two or three words."""
        if self.certified is not None:
            return "The certified point"
        named = {"do not cascade": "No cascade"}
        return named.get(self.chosen.outcome, self.chosen.outcome.capitalize())

    @property
    def measure(self) -> str:
        """What is shown beside the cost: "accuracy"; of losses the "score", 1 - the mean loss."""
        return "score" if self.shown.of_losses else "accuracy"

    @property
    def shown(self) -> Evaluation:
        """The evaluation that the key figures come from: on `test` where there is one."""
        return self.chosen.judged if self.test is None else self.test

    @property
    def allowed_drop(self) -> float | None:
        """The accuracy that may be lost, as it was limited; None where it was not."""
        drops = (lim.at_most for lim in self.chosen.limits if lim.risk == "accuracy_drop")
        return next(drops, None)

    @property
    def worst_classes(self) -> tuple[ClassRow, ...]:
        """The classes, those that lose most first."""
        return tuple(sorted(self.classes, key=lambda row: (-row.drop, -row.lost)))

    @property
    def splits(self) -> tuple[Evaluation, ...]:
        """The chosen candidate on every part of the data that it was looked at."""
        point = self.chosen
        return tuple(e for e in (point.fit, point.calibrate, self.test) if e is not None)

    def __json__(self) -> dict[str, object]:  # every number that the page shows
        whole = ["title", "chosen", "test", "overlap", "gap_closed", "stages"]
        whole += ["frontier_test", "threshold", "references", "timing", "costs", "images"]
        whole += ["uses", "costs_by_unit", "savings", "exits", "warnings", "notes", "reproduction"]
        whole += ["promisable", "reliability", "classes"]
        return {
            "outcome": self.chosen.outcome,
            "frontier": [point for point in self.frontier if point.on_front],
            **{name: getattr(self, name) for name in whole},
        }
