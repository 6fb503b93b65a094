"""Reports: one self-contained page from results that were computed elsewhere.

Layer: report.  Nothing here computes a number, and nothing here sees networks or data sets. The
figures are those of `offramp.drawing`.
"""

from offramp.report.class_exits_page import write_class_exits_report
from offramp.report.content import ExampleImage, ReportContent, Reproduction, TimingRow
from offramp.report.joint_page import write_joint_report
from offramp.report.page import write_report

__all__ = [
    "ExampleImage",
    "ReportContent",
    "Reproduction",
    "TimingRow",
    "write_class_exits_report",
    "write_joint_report",
    "write_report",
]
