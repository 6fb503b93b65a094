"""Runtime: a cascade and a policy executed for real, on batches of any size.

Layer: runtime.
"""

from offramp.runtime.adaptive import Adaptive, Choice, Chosen, Static, policy_of
from offramp.runtime.answer import NO_LABEL, Answer
from offramp.runtime.backends import BackendTable, choose_backends, with_backend
from offramp.runtime.engine import Engine, Routed, route_reference
from offramp.runtime.joined import join
from offramp.runtime.joining import join_for
from offramp.runtime.meter import measure_times
from offramp.runtime.prepare import prepare
from offramp.runtime.profile import Profile, Span, StageProfile, profile
from offramp.runtime.runner import StageSource
from offramp.runtime.sizes import StageTimes
from offramp.runtime.timing import time_side_by_side

__all__ = [
    "NO_LABEL",
    "Adaptive",
    "Answer",
    "BackendTable",
    "Choice",
    "Chosen",
    "Engine",
    "Profile",
    "Routed",
    "Span",
    "StageProfile",
    "StageSource",
    "StageTimes",
    "Static",
    "choose_backends",
    "join",
    "join_for",
    "measure_times",
    "policy_of",
    "prepare",
    "profile",
    "route_reference",
    "time_side_by_side",
    "with_backend",
]
