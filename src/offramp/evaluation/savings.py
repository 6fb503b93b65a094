"""What each policy saves at given losses of accuracy, side by side: the paper's table.

Layer: evaluation.
Source: Bolukbasi et al., ICML 2017, section 5 (early exit); methods.md 1 (report
savings at 0, 1, 2 and 5 points).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from offramp._core.checks import check_kind
from offramp._core.schema import to_json
from offramp.evaluation.evaluate import evaluate
from offramp.evaluation.frontier import Frontier
from offramp.evaluation.judging import judge, mark_fronts
from offramp.evaluation.measured import MARGIN
from offramp.evaluation.results import Evaluation, Interval, Risk
from offramp.trace import Trace

LOSSES: tuple[float, ...] = (0.0, 0.01, 0.02, 0.05)


@final
@dataclass(frozen=True, kw_only=True)
class Saving:
    """What one policy saves within one loss.

    Args:
        policy: Name of the policy: "learned", "thresholds".
        max_drop: The largest risk allowed when the candidate was chosen.
        cascade: False where no candidate was worth it and one network answers alone.
        found: What the chosen candidate does on examples that it was not chosen on.
    """

    policy: str
    max_drop: float
    cascade: bool
    found: Evaluation

    @property
    def saved(self) -> float:
        """Share of the reference's cost that is saved; negative where the candidate costs more."""
        return 1 - self.found.cost_ratio

    @property
    def saved_ci(self) -> Interval | None:
        """Its bootstrap interval, 95 %, or None where none was asked for."""
        ends = self.found.cost_ratio_ci
        return None if ends is None else (1 - ends[1], 1 - ends[0])

    def __json__(self) -> dict[str, object]:
        return {
            "policy": self.policy,
            "max_drop": self.max_drop,
            "cascade": self.cascade,
            "saved": self.saved,
            "saved_ci": self.saved_ci,
            **to_json(self.found),
        }


def savings(
    trace: Trace,
    frontiers: Mapping[str, Frontier],
    *,
    losses: Sequence[float] = LOSSES,
    risk: Risk = "accuracy_drop",
    margin: float = MARGIN,
    bootstrap: int = 2000,
    seed: int = 0,
) -> tuple[Saving, ...]:
    """For each policy and each loss choose a candidate, then look at it on other examples.

    Args:
        trace: The examples to show: `trace.subset("test")`. Nothing is chosen on them.
        frontiers: For each policy its candidates, evaluated on `fit` and `calibrate`.
        losses: Largest risks allowed, each in [0, 1).
        risk: As in `Frontier.cheapest`; so is `margin`.
        margin: Standard errors kept between the measured risk and the limit.
        bootstrap: Number of resamples for the intervals; 0 leaves them out.
        seed: Of the resampling.

    Returns:
        Policy by policy, in the order of `losses`.

    >>> from offramp.evaluation import fit
    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=900, stages=2, seed=0).split_into(
    ...     {"fit": 300, "calibrate": 300, "test": 300}, seed=0)
    >>> frontier = fit(trace, "threshold", combines=["last"], progress=False)
    >>> found = savings(trace.subset("test"), {"thresholds": frontier}, losses=[0.0, 0.05])
    >>> [(s.policy, s.max_drop) for s in found]
    [('thresholds', 0.0), ('thresholds', 0.05)]
    """
    check_kind("trace", trace, Trace, read="offramp.load_trace(path)")
    rows = []
    for name, frontier in frontiers.items():
        for loss in losses:
            choice = frontier.cheapest(max_drop=loss, risk=risk, margin=margin, delta=None)
            found = evaluate(trace, choice.candidate, bootstrap=bootstrap, seed=seed)
            rows.append(Saving(policy=name, max_drop=loss, cascade=choice.cascade, found=found))
    return tuple(rows)


def frontier_of(
    frontier: Frontier, methods: Sequence[str], calibrate: Trace | None
) -> Frontier | None:
    """The frontier of some methods alone, as if no other had been fitted.

    Candidates that another method had beaten were not evaluated on `calibrate`; here they are.

    Args:
        frontier: Of several methods.
        methods: Names of those wanted: "learned", "threshold", "random", "agreement".
        calibrate: The part that the frontier's candidates were evaluated on beside `fit`.

    Returns:
        None where the methods made no candidate.

    >>> from offramp.evaluation import fit
    >>> from offramp.trace.testing import make_trace
    >>> frontier = fit(make_trace(n=400, stages=2, seed=0), ["threshold", "random"], progress=False)
    >>> only = frontier_of(frontier, ["random"], None)
    >>> {p.candidate.method for p in only.points}
    {'random'}
    """
    points = [p for p in frontier.points if p.candidate.method in methods]
    if not points:
        return None
    marked, wanted = mark_fronts([*points, *frontier.singles])
    if calibrate is not None:
        marked = judge(marked, wanted, calibrate)
    return Frontier(
        points=tuple(marked[: len(points)]),
        singles=frontier.singles,
        reference=frontier.reference,
        calibration=frontier.calibration,
    )
