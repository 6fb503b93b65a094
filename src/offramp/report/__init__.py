"""Reports: figures and one self-contained page from results that were computed elsewhere.

Layer: report.  The only place, with serve, for plotting and page templates; nothing here computes
a number, and nothing here sees networks or data sets.
"""

from offramp.report.assignment_figure import assignment_figure
from offramp.report.class_exits_figures import GainBar, LayerTime, gain_figure, layer_figure
from offramp.report.class_exits_page import write_class_exits_report
from offramp.report.content import ExampleImage, ReportContent, Reproduction, TimingRow
from offramp.report.figures import (
    Curve,
    Point,
    SavedSeries,
    frontier_figure,
    overlap_figure,
    save_figure,
    savings_figure,
    stage_figure,
)
from offramp.report.joint_page import write_joint_report
from offramp.report.page import write_report
from offramp.report.timeline import Section, timeline_figure

__all__ = [
    "Curve",
    "ExampleImage",
    "GainBar",
    "LayerTime",
    "Point",
    "ReportContent",
    "Reproduction",
    "SavedSeries",
    "Section",
    "TimingRow",
    "assignment_figure",
    "frontier_figure",
    "gain_figure",
    "layer_figure",
    "overlap_figure",
    "save_figure",
    "savings_figure",
    "stage_figure",
    "timeline_figure",
    "write_class_exits_report",
    "write_joint_report",
    "write_report",
]
