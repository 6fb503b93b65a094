"""Evaluation: replay on a trace, frontier, intervals, choice, references.

Layer: evaluation.  Reads traces and policies; never a network, never data.
"""

from offramp.evaluation.advise import Advice, Promise, advise
from offramp.evaluation.assignment import Assignment, assignment
from offramp.evaluation.batch import evaluate_all
from offramp.evaluation.by_class import ClassRow, by_class
from offramp.evaluation.calibration import Calibration
from offramp.evaluation.certify import certify
from offramp.evaluation.choice import Choice
from offramp.evaluation.confirm import confirm
from offramp.evaluation.costs_by_unit import UnitCost, costs_by_unit
from offramp.evaluation.evaluate import evaluate
from offramp.evaluation.exits import ExitPoint, exit_points
from offramp.evaluation.fit import fit
from offramp.evaluation.frontier import Frontier
from offramp.evaluation.gap import share_of_gap_closed
from offramp.evaluation.overlap import overlap
from offramp.evaluation.promisable import Promisable, drop_bound, promisable
from offramp.evaluation.references import references
from offramp.evaluation.reliability import Reliability, reliability
from offramp.evaluation.replay import Replay, replay
from offramp.evaluation.results import (
    Evaluation,
    FrontierPoint,
    Overlap,
    ReferencePoint,
)
from offramp.evaluation.retrained import frontier_of_traces
from offramp.evaluation.saving_bound import SavingBound, saving_bound
from offramp.evaluation.savings import Saving, frontier_of, savings
from offramp.evaluation.stage_usage import StageUsage, stage_usage
from offramp.evaluation.suggest import Suggestion, suggest
from offramp.evaluation.sweep import sweep
from offramp.policy.promise import Guarantee, Limit

__all__ = [
    "Advice",
    "Assignment",
    "Calibration",
    "Choice",
    "ClassRow",
    "Evaluation",
    "ExitPoint",
    "Frontier",
    "FrontierPoint",
    "Guarantee",
    "Limit",
    "Overlap",
    "Promisable",
    "Promise",
    "ReferencePoint",
    "Reliability",
    "Replay",
    "Saving",
    "SavingBound",
    "StageUsage",
    "Suggestion",
    "UnitCost",
    "advise",
    "assignment",
    "by_class",
    "certify",
    "confirm",
    "costs_by_unit",
    "drop_bound",
    "evaluate",
    "evaluate_all",
    "exit_points",
    "fit",
    "frontier_of",
    "frontier_of_traces",
    "overlap",
    "promisable",
    "references",
    "reliability",
    "replay",
    "saving_bound",
    "savings",
    "share_of_gap_closed",
    "stage_usage",
    "suggest",
    "sweep",
]
