"""What evaluation found, as frozen records; nothing is computed here.

`to_json` writes them, so that every number of a report can be read again from a file; `from_json`
reads back what a later command needs.

Layer: evaluation.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

from offramp._core.schema import As, FieldsOf, omitted, stored, to_json
from offramp.evaluation.tally import Tally
from offramp.policy import Candidate

Interval = tuple[float, float]
Risk = str  # one of RISKS
RISKS: tuple[Risk, ...] = ("accuracy_drop", "negative_flips")
OUTCOMES = (
    "both_right",
    "corrected",
    "lost",
    "both_wrong",
)  # of a candidate's answer and the reference's
_PARTS = ("fit", "calibrate", "judged_on_both", "unlabeled")  # what may have been looked at


def _in_words(rows: tuple[tuple[int, ...], ...]) -> tuple[str, ...]:
    """As text: a line for each number of each class would make up most of a file."""
    return tuple(" ".join(map(str, row)) for row in rows)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


_Row = Annotated[tuple[int, ...], As(str, lambda row: " ".join(map(str, row)), _counts)]
_Rows = Annotated[
    tuple[tuple[int, ...], ...],
    As(tuple[str, ...], _in_words, lambda rows: tuple(map(_counts, rows))),
]
_ByOutcome = Annotated[
    tuple[tuple[int, ...], ...],
    As(
        dict[str, str],
        lambda rows: dict(zip(OUTCOMES, _in_words(rows), strict=False)),
        lambda rows: tuple(_counts(rows[name]) for name in OUTCOMES if rows),
    ),
]


@final
@stored(derived=("stage_cost_share",))
@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one candidate does on the examples of one part of a trace.

    Args:
        candidate: The candidate that was replayed.
        n: Number of examples.
        split: Name of the split they are in, or "all" where there are no or several splits.
        stages: Names of the stages, `(s,)`.
        unit: Unit of `cost` and `reference_cost`.
        cost: Mean cost per example.
        reference_cost: Cost per example of the reference, the candidate's reference, run alone.
        cost_ratio: `cost / reference_cost`; lower is better.
        accuracy: Share of examples whose label is among the `candidate.top` best of the answer.
        reference_accuracy: The same of the reference's own answer.
        accuracy_drop: Mean of L(y_exit) - L(y_F), in [-1, 1]: positive is accuracy lost.
        negative_flips: Mean of max(0, L(y_exit) - L(y_F)), in [0, 1]: new errors, corrections not
            counted.
        cost_ratio_ci: Paired bootstrap interval, 95 %; None where none was asked for. So are
            `accuracy_drop_ci` and `negative_flips_ci`.
        exit_share: Share of examples that leave after each stage, `(s,)`, sums to 1.
        visit_share: Share of examples that visit each stage, `(s,)`.
        useful_share: Share of the total cost spent in each stage on work that the leaving stage's
            own answer needs, `(s,)`.
        overhead_share: Share of the total cost spent in each stage on other work, `(s,)`.
        decision_share: Share of the total cost spent on deciding; with the two before sums to 1.
        disagreement: Share of examples whose first label is not the reference's. This and what
            follows is what certificates are computed from; None or empty where it was not kept.
        path_share: Share of examples on each path of the candidate's topology, `(p,)`, sums to 1.
        path_cost_ratio: Cost of each of these paths over that of the reference, `(p,)`.
        class_outcomes: For each of `OUTCOMES` how many examples of each class, `(4, c)`.
        class_paths: How many examples of each class took each path, `(p, c)`.
        class_disagreements: Of how many of each class the first label is not the reference's,
            `(c,)`.
        of_losses: True where losses were recorded and not labels: "accuracy" is then 1 - the mean
            loss, and `accuracy_drop` the mean loss against the reference.
        cost_tally: What examples cost, rounded up, where they have prices of their own.
        loss_tally: Their losses, rounded up, where these are neither 0 nor 1.
        difference_tally: Likewise their losses against the reference.
    """

    candidate: Candidate
    n: int
    split: str
    stages: tuple[str, ...]
    unit: str
    cost: float
    reference_cost: float
    cost_ratio: float
    accuracy: float
    reference_accuracy: float
    accuracy_drop: float
    negative_flips: float
    cost_ratio_ci: Interval | None
    accuracy_drop_ci: Interval | None
    negative_flips_ci: Interval | None
    exit_share: tuple[float, ...]
    visit_share: tuple[float, ...]
    useful_share: tuple[float, ...]
    overhead_share: tuple[float, ...]
    decision_share: float
    disagreement: float | None = None
    path_share: tuple[float, ...] = ()
    path_cost_ratio: tuple[float, ...] = ()
    class_outcomes: _ByOutcome = ()
    class_paths: _Rows = ()
    class_disagreements: _Row = ()
    of_losses: bool = omitted(False)
    cost_tally: Tally | None = omitted(None)
    loss_tally: Tally | None = omitted(None)
    difference_tally: Tally | None = omitted(None)

    @property
    def stage_cost_share(self) -> tuple[float, ...]:
        """Share of the total cost spent in each stage, useful or not, `(s,)`."""
        pairs = zip(self.useful_share, self.overhead_share, strict=True)
        return tuple(useful + overhead for useful, overhead in pairs)

    def risk(self, name: Risk) -> float:
        """`accuracy_drop` or `negative_flips`, by name."""
        return self.accuracy_drop if name == "accuracy_drop" else self.negative_flips

    def numbers(self) -> dict[str, Any]:
        """As JSON values without the candidate, for files that hold it beside them."""
        found: dict[str, Any] = to_json(self, but="candidate")
        return found


#: An evaluation whose candidate stands beside it, as what is needed to make it.
_Numbers = Annotated[dict[str, Any], FieldsOf(Evaluation, but="candidate")]


@final
@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Which networks get which examples right: for each subset the share that exactly it does.

    Args:
        stages: Names of the stages, `(s,)`.
        n: Number of examples.
        subsets: Subsets of stages that occur, by name, the most frequent first; the empty one
            stands for the examples that no stage gets right.
        shares: Share of examples for each of `subsets`, in (0, 1]; they sum to 1.
    """

    stages: tuple[str, ...]
    n: int
    subsets: tuple[tuple[str, ...], ...]
    shares: tuple[float, ...]

    def share(self, *stages: str) -> float:
        """Share of examples that exactly these stages get right; 0 if there are none."""
        wanted = set(stages)
        pairs = zip(self.subsets, self.shares, strict=True)
        return next((share for subset, share in pairs if set(subset) == wanted), 0.0)


@final
@dataclass(frozen=True, kw_only=True)
class ReferencePoint:
    """A point that a policy is compared with: (cost ratio, accuracy).

    Args:
        name: For tables and plots: "ResNet-20 alone", "neutral oracle".
        kind: What it is; points of kind "random" or "threshold" lie on a curve.
        cost_ratio: Mean cost over that of the reference.
        accuracy: Share of right answers.
        accuracy_drop: Accuracy lost against the reference, in [-1, 1].
        negative_flips: New errors against the reference, in [0, 1].
    """

    name: str
    kind: Literal["static", "random", "threshold", "oracle"]
    cost_ratio: float
    accuracy: float
    accuracy_drop: float
    negative_flips: float


@final
@stored(derived=("label",))
@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """A candidate of the sweep and what it does on `fit` and, if looked at, on `calibrate`.

    Args:
        candidate: The candidate.
        fit: Its evaluation on the examples that it was fitted on: optimistic.
        calibrate: Its evaluation on `calibrate`; None where there is no such split, or the
            candidate is on no Pareto front.
        judged_on_both: The two together, or None where there is only one.
        on_front: True if no other point of the sweep is both cheaper and more accurate on `fit`.
        unlabeled: Its evaluation on examples without labels, the reference's answers taken for the
            truth; it serves certificates alone. None where there are none.
    """

    candidate: Candidate
    fit: Evaluation
    calibrate: Evaluation | None = None
    judged_on_both: Evaluation | None = None
    on_front: bool = False
    unlabeled: Evaluation | None = None

    @property
    def judged(self) -> Evaluation:
        """The evaluation to choose by: on both parts together where there are both."""
        return self.judged_on_both or self.calibrate or self.fit

    @property
    def tested(self) -> Evaluation | None:
        """The evaluation that certificates rest on: on `calibrate`, with labels or without."""
        return self.calibrate or self.unlabeled

    def __json__(self) -> dict[str, object]:
        parts = {name: getattr(self, name) for name in _PARTS}
        return {
            "candidate": self.candidate,
            "label": self.candidate.label,
            "on_front": self.on_front,
            **{name: None if part is None else part.numbers() for name, part in parts.items()},
        }

    @classmethod
    def __from_json__(
        cls,
        *,
        candidate: Candidate,
        on_front: bool,
        fit: _Numbers,
        calibrate: _Numbers | None,
        judged_on_both: _Numbers | None,
        unlabeled: _Numbers | None = None,  # older files have none
    ) -> "FrontierPoint":
        given = zip(_PARTS, (fit, calibrate, judged_on_both, unlabeled), strict=True)
        parts = {
            name: None if found is None else Evaluation(candidate=candidate, **found)
            for name, found in given
        }
        return cls(candidate=candidate, on_front=on_front, **parts)  # type: ignore[arg-type]
