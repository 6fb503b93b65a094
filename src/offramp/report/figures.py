"""The figures of a report, on plain arrays: benchmarks and notebooks use them as well.

Each takes `narrow=True` for a layout as wide as a phone. Nothing here computes a statistic.

Layer: report.
"""

from offramp.report.bars import overlap_figure, stage_figure
from offramp.report.canvas import save_figure
from offramp.report.frontier import Curve, Point, frontier_figure
from offramp.report.savings import SavedSeries, savings_figure

__all__ = [
    "Curve",
    "Point",
    "SavedSeries",
    "frontier_figure",
    "overlap_figure",
    "save_figure",
    "savings_figure",
    "stage_figure",
]
