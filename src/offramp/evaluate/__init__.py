"""Evaluation: replay on a trace, frontier, intervals, operating point, references.

Layer: evaluate.  Reads traces and policies; never a network, never data.
"""

from offramp.evaluate.assignment import Assignment, assignment
from offramp.evaluate.batch import evaluate_all
from offramp.evaluate.bills import Bill, bills
from offramp.evaluate.certificate import Calibration, Certificate, NotCertified
from offramp.evaluate.certify import certify
from offramp.evaluate.evaluation import evaluate
from offramp.evaluate.exits import ExitPoint, exit_points
from offramp.evaluate.fit import fit
from offramp.evaluate.frontier import Frontier, sweep
from offramp.evaluate.gap import share_of_gap_closed
from offramp.evaluate.overlap import overlap
from offramp.evaluate.references import references
from offramp.evaluate.replay import Replay, replay
from offramp.evaluate.results import (
    DoNotCascade,
    Evaluation,
    FrontierPoint,
    OperatingPoint,
    Overlap,
    ReferencePoint,
)
from offramp.evaluate.retrained import frontier_of_traces
from offramp.evaluate.savings import Saving, frontier_of, savings
from offramp.evaluate.uses import StageUse, stage_uses

__all__ = [
    "Assignment",
    "Bill",
    "Calibration",
    "Certificate",
    "DoNotCascade",
    "Evaluation",
    "ExitPoint",
    "Frontier",
    "FrontierPoint",
    "NotCertified",
    "OperatingPoint",
    "Overlap",
    "ReferencePoint",
    "Replay",
    "Saving",
    "StageUse",
    "assignment",
    "bills",
    "certify",
    "evaluate",
    "evaluate_all",
    "exit_points",
    "fit",
    "frontier_of",
    "frontier_of_traces",
    "overlap",
    "references",
    "replay",
    "savings",
    "share_of_gap_closed",
    "stage_uses",
    "sweep",
]
