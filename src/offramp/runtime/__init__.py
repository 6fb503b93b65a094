"""Runtime: a cascade and a policy executed for real, on batches of any size.

Layer: runtime.
"""

from offramp.runtime.adaptive import Adaptive, Choice, Chosen, policy_of
from offramp.runtime.answer import NO_LABEL, REASONS, Answer
from offramp.runtime.batcher import Batcher
from offramp.runtime.executor import Executor, RowsError
from offramp.runtime.monitor import WATCHED, Watch, audited
from offramp.runtime.runner import StageSource
from offramp.runtime.times import StageTimes

__all__ = [
    "NO_LABEL",
    "REASONS",
    "WATCHED",
    "Adaptive",
    "Answer",
    "Batcher",
    "Choice",
    "Chosen",
    "Executor",
    "RowsError",
    "StageSource",
    "StageTimes",
    "Watch",
    "audited",
    "policy_of",
]
