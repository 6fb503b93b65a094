"""Runtime: a cascade and a policy executed for real, on batches of any size.

Layer: runtime.
"""

from offramp.runtime.adaptive import Adaptive, Choice, Chosen, Static, policy_of
from offramp.runtime.answer import NO_LABEL, Answer
from offramp.runtime.monitor import WATCHED, Watch, audited
from offramp.runtime.program import StageSource
from offramp.runtime.times import StageTimes
from offramp.runtime.walk import Engine, Routed, route_reference

__all__ = [
    "NO_LABEL",
    "WATCHED",
    "Adaptive",
    "Answer",
    "Choice",
    "Chosen",
    "Engine",
    "Routed",
    "StageSource",
    "StageTimes",
    "Static",
    "Watch",
    "audited",
    "policy_of",
    "route_reference",
]
