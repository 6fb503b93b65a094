"""Runtime: a cascade and a policy executed for real, on batches of any size.

Layer: runtime.
"""

from offramp.runtime.adaptive import Adaptive
from offramp.runtime.batcher import Batcher
from offramp.runtime.chosen import AnyChoice, Chosen, policy_of
from offramp.runtime.executor import Executor, Ran
from offramp.runtime.monitor import MONITORED, RiskMonitor, audit_mask
from offramp.runtime.prediction import NO_LABEL, REASONS, Prediction
from offramp.runtime.request import RowsError
from offramp.runtime.source import StageSource
from offramp.runtime.times import StageTimes

__all__ = [
    "MONITORED",
    "NO_LABEL",
    "REASONS",
    "Adaptive",
    "AnyChoice",
    "Batcher",
    "Chosen",
    "Executor",
    "Prediction",
    "Ran",
    "RiskMonitor",
    "RowsError",
    "StageSource",
    "StageTimes",
    "audit_mask",
    "policy_of",
]
