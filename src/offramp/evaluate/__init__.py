"""Evaluation: replay on a trace, frontier, intervals, operating point, references.

Layer: evaluate.  Reads traces and policies; never a network, never data.
"""

from offramp.evaluate.advise import Advice, Promise, advise
from offramp.evaluate.assignment import Assignment, assignment
from offramp.evaluate.batch import evaluate_all
from offramp.evaluate.bills import Bill, bills
from offramp.evaluate.certificate import Calibration, Certificate, NotCertified
from offramp.evaluate.certify import certify
from offramp.evaluate.confirm import confirm
from offramp.evaluate.evaluation import evaluate
from offramp.evaluate.exits import ExitPoint, exit_points
from offramp.evaluate.fit import fit
from offramp.evaluate.frontier import Choice, Frontier
from offramp.evaluate.gap import share_of_gap_closed
from offramp.evaluate.limits import Limit
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
from offramp.evaluate.saving_bound import SavingBound, saving_bound
from offramp.evaluate.savings import Saving, frontier_of, savings
from offramp.evaluate.sweep import sweep
from offramp.evaluate.uses import StageUse, stage_uses

__all__ = [
    "Advice",
    "Assignment",
    "Bill",
    "Calibration",
    "Certificate",
    "Choice",
    "DoNotCascade",
    "Evaluation",
    "ExitPoint",
    "Frontier",
    "FrontierPoint",
    "Limit",
    "NotCertified",
    "OperatingPoint",
    "Overlap",
    "Promise",
    "ReferencePoint",
    "Replay",
    "Saving",
    "SavingBound",
    "StageUse",
    "advise",
    "assignment",
    "bills",
    "certify",
    "confirm",
    "evaluate",
    "evaluate_all",
    "exit_points",
    "fit",
    "frontier_of",
    "frontier_of_traces",
    "overlap",
    "references",
    "replay",
    "saving_bound",
    "savings",
    "share_of_gap_closed",
    "stage_uses",
    "sweep",
]
