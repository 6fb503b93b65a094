"""How a trace looks in a notebook.

Layer: trace.
"""

from typing import TYPE_CHECKING

from offramp._core import notebook
from offramp._core.formatting import percent
from offramp._core.topology import RAW_INPUT
from offramp._core.types import SPLITS
from offramp._core.units import unit_of

if TYPE_CHECKING:
    from offramp.trace.trace import Trace

_MOST_ROWS = 24  # stages


def trace_card(trace: "Trace") -> str:
    """How many examples of which splits, and how good and how expensive each stage is alone."""
    unit = unit_of(trace.mean_costs.unit)
    costs = trace.stage_costs().tolist()
    most = max(costs) or 1.0
    best = trace.most_accurate()
    rows = []
    for k, name in enumerate(trace.stages[:_MOST_ROWS]):
        source = trace.topology.sources[k]
        reads = "the input" if source == RAW_INPUT else trace.stages[source]
        quality = "\u2013" if k in trace.silent else percent(_quality(trace, k))
        rows.append([name, reads, notebook.bar(costs[k] / most, unit.text(costs[k])), quality])
    left_out = len(trace.stages) - _MOST_ROWS
    what = "labels" if trace.labeled else "losses"
    return notebook.card(
        "Trace",
        f"{len(trace):,} examples, {len(trace.stages)} stages"
        + (f", {trace.classes} classes" if trace.labeled else ""),
        notebook.paragraph(f"{_splits(trace)} Recorded with {what}.", faint=True),
        notebook.table(
            ["stage", "reads", "cost to here", "accuracy" if trace.labeled else "1 - loss"],
            rows,
            marked=best if best < _MOST_ROWS else -1,
        ),
        notebook.paragraph(f"and {left_out} more stages", faint=True) if left_out > 0 else "",
        *_warnings(trace),
        notebook.code("frontier = offramp.fit(trace)"),
    )


def _quality(trace: "Trace", stage: int) -> float:
    return trace.accuracy(stage) if trace.labeled else 1 - float(trace.loss(stage).mean())


def _splits(trace: "Trace") -> str:
    if trace.split is None:
        return "Not divided into splits."
    counts = [(name, int((trace.split == k).sum())) for k, name in enumerate(SPLITS)]
    return ", ".join(f"{name} {count:,}" for name, count in counts if count).capitalize() + "."


def _warnings(trace: "Trace") -> list[notebook.Markup]:
    found = []
    if trace.seen_in_training:
        found.append("the networks were trained on these examples")
    if trace.lossy:
        found.append("stored with less precision than computed")
    return [notebook.badge(f"Nothing can be promised: {why}.", good=False) for why in found]
