"""One candidate billed in every unit that is known: the decisions stay, the prices change.

Layer: evaluation.  Source: none, this is a definition.
"""

from dataclasses import dataclass
from typing import final

from offramp._core.checks import check_kind
from offramp.evaluation.evaluate import evaluate
from offramp.evaluation.results import Interval
from offramp.policy import Candidate
from offramp.trace import Trace


@final
@dataclass(frozen=True, kw_only=True)
class UnitCost:
    """What a candidate costs by one table of costs.

    Args:
        unit: Of `cost` and `reference_cost`.
        note: How the prices were made: batch size, device, source.
        cost: Mean cost per example.
        reference_cost: Cost per example of the reference run alone.
        cost_ratio: `cost / reference_cost`; lower is better.
        cost_ratio_ci: Bootstrap interval, 95 %; None where none was asked for.
    """

    unit: str
    note: str
    cost: float
    reference_cost: float
    cost_ratio: float
    cost_ratio_ci: Interval | None

    @property
    def speedup(self) -> float:
        """How many times as much the reference costs; infinity for a candidate that is free."""
        return self.reference_cost / self.cost if self.cost > 0 else float("inf")


def costs_by_unit(
    trace: Trace, candidate: Candidate, *, bootstrap: int = 2000, seed: int = 0
) -> tuple[UnitCost, ...]:
    """Cost of a candidate in the trace's unit and in those of its `other_costs` that are not 0.

    Args:
        trace: The examples, usually one split.
        candidate: What decides; the costs that it was fitted for change nothing here.
        bootstrap: Number of resamples for the intervals; 0 leaves them out.
        seed: Of the resampling.

    >>> from offramp._core.costs import Costs
    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=100, stages=2, seed=0)
    >>> timed = trace.with_costs(Costs.simple("seconds", [0.02, 0.04]))
    >>> alone = Candidate.single(trace.topology, "stage0", reference="stage1")
    >>> [(bill.unit, bill.cost_ratio) for bill in costs_by_unit(timed, alone)]
    [('seconds', 0.5), ('flops', 0.25)]
    """
    check_kind("trace", trace, Trace, read="offramp.load_trace(path)")
    stage_f = trace.topology.index(candidate.reference)
    tables = [t for t in (trace.costs, *trace.other_costs) if t.alone(trace.topology, stage_f) > 0]
    return tuple(
        UnitCost(
            unit=table.unit,
            note=table.note,
            cost=found.cost,
            reference_cost=found.reference_cost,
            cost_ratio=found.cost_ratio,
            cost_ratio_ci=found.cost_ratio_ci,
        )
        for table in tables
        for found in [evaluate(trace, candidate, bootstrap=bootstrap, seed=seed, costs=table)]
    )
