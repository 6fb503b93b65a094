"""Evaluation: replay on a trace, frontier, intervals, operating point, references.

Layer: evaluate.  Reads traces and policies; never a network, never data.
"""

from offramp.evaluate.batch import evaluate_all
from offramp.evaluate.evaluation import evaluate
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

__all__ = [
    "DoNotCascade",
    "Evaluation",
    "Frontier",
    "FrontierPoint",
    "OperatingPoint",
    "Overlap",
    "ReferencePoint",
    "Replay",
    "evaluate",
    "evaluate_all",
    "fit",
    "overlap",
    "references",
    "replay",
    "share_of_gap_closed",
    "sweep",
]
