"""Reports: one self-contained page from results that were computed elsewhere.

Layer: report.  Nothing here computes a number, and nothing here sees networks or data sets. The
figures are those of `offramp.drawing`, whose names stand here as well.
"""

from offramp.drawing import (
    Curve,
    GainBar,
    LayerTime,
    Point,
    SavedSeries,
    Section,
    assignment_figure,
    frontier_figure,
    gain_figure,
    layer_figure,
    overlap_figure,
    save_figure,
    savings_figure,
    stage_figure,
    timeline_figure,
)
from offramp.report.class_exits_page import write_class_exits_report
from offramp.report.content import ExampleImage, ReportContent, Reproduction, TimingRow
from offramp.report.joint_page import write_joint_report
from offramp.report.page import write_report

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
