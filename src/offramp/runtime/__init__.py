"""Runtime: a cascade and a policy executed for real, on batches of any size.

Layer: runtime.
"""

from offramp.runtime.adaptive import Adaptive, Choice, Chosen, StageSource, Static, policy_of
from offramp.runtime.answer import NO_LABEL, Answer
from offramp.runtime.engine import Engine, Routed, route_reference
from offramp.runtime.prepare import prepare
from offramp.runtime.timing import time_side_by_side

__all__ = [
    "NO_LABEL",
    "Adaptive",
    "Answer",
    "Choice",
    "Chosen",
    "Engine",
    "Routed",
    "StageSource",
    "Static",
    "policy_of",
    "prepare",
    "route_reference",
    "time_side_by_side",
]
