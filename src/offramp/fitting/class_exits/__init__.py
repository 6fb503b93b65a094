"""Class-specific early exits: the choice of exit and threshold that makes one class fastest.

Layer: fitting.  Source: Bonato and Bouganis, class-specific early exit; methods.md 2.
"""

from offramp.fitting.class_exits.choice import (
    ClassExitPlan,
    ExitCandidate,
    NoViableExit,
    choose_exits,
)
from offramp.fitting.class_exits.data import (
    Branch,
    ClassData,
    ClassExit,
    class_index,
    superclass_table,
    to_superclasses,
)
from offramp.fitting.class_exits.figures import (
    PaperFigures,
    SystemFigures,
    paper_figures,
    system_figures,
)
from offramp.fitting.class_exits.policy import class_data, class_policy
from offramp.fitting.class_exits.scan import Requirements
from offramp.fitting.class_exits.time import Timing
from offramp.fitting.class_exits.together import SharedExitPlan, choose_together

__all__ = [
    "Branch",
    "ClassData",
    "ClassExit",
    "ClassExitPlan",
    "ExitCandidate",
    "NoViableExit",
    "PaperFigures",
    "Requirements",
    "SharedExitPlan",
    "SystemFigures",
    "Timing",
    "choose_exits",
    "choose_together",
    "class_data",
    "class_index",
    "class_policy",
    "paper_figures",
    "superclass_table",
    "system_figures",
    "to_superclasses",
]
