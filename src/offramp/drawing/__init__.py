"""Figures on plain arrays: reports, benchmarks and notebooks draw with them.

Each figure takes `narrow=True` for a layout as wide as a phone where a page shows it. Nothing here
computes a statistic, and nothing here knows a result object: whoever has one hands over numbers.

Layer: drawing.  With report, serve and hub the place for plotting; `Frontier.plot` imports it on
first use (docs/adr/0062).
"""

from offramp.drawing.assignment import assignment_figure
from offramp.drawing.bars import overlap_figure, stage_figure
from offramp.drawing.canvas import save_figure
from offramp.drawing.class_exits import GainBar, LayerTime, gain_figure, layer_figure
from offramp.drawing.frontier import frontier_figure, plot_frontier
from offramp.drawing.reliability import Calibrated, calibration_figure
from offramp.drawing.savings import SavedSeries, savings_figure
from offramp.drawing.series import Area, Band, Curve, Point
from offramp.drawing.timeline import Section, timeline_figure

__all__ = [
    "Area",
    "Band",
    "Calibrated",
    "Curve",
    "GainBar",
    "LayerTime",
    "Point",
    "SavedSeries",
    "Section",
    "assignment_figure",
    "calibration_figure",
    "frontier_figure",
    "gain_figure",
    "layer_figure",
    "overlap_figure",
    "plot_frontier",
    "save_figure",
    "savings_figure",
    "stage_figure",
    "timeline_figure",
]
