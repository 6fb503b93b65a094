"""Runtime: a cascade and a policy executed for real, on batches of any size.

Layer: runtime.
"""

from typing import TYPE_CHECKING

from offramp._core.lazy import lazy

if TYPE_CHECKING:
    from offramp.runtime.adaptive import Adaptive as Adaptive
    from offramp.runtime.batcher import Batcher as Batcher
    from offramp.runtime.chosen import AnyChoice as AnyChoice
    from offramp.runtime.chosen import Chosen as Chosen
    from offramp.runtime.chosen import policy_of as policy_of
    from offramp.runtime.executor import Executor as Executor
    from offramp.runtime.executor import Ran as Ran
    from offramp.runtime.explained import Visit as Visit
    from offramp.runtime.explained import explain as explain
    from offramp.runtime.monitor import MONITORED as MONITORED
    from offramp.runtime.monitor import RiskMonitor as RiskMonitor
    from offramp.runtime.monitor import audit_mask as audit_mask
    from offramp.runtime.prediction import NO_LABEL as NO_LABEL
    from offramp.runtime.prediction import REASONS as REASONS
    from offramp.runtime.prediction import Prediction as Prediction
    from offramp.runtime.request import RowsError as RowsError
    from offramp.runtime.source import StageSource as StageSource
    from offramp.runtime.times import StageTimes as StageTimes

_HOME = {
    "Adaptive": "offramp.runtime.adaptive",
    "AnyChoice": "offramp.runtime.chosen",
    "Batcher": "offramp.runtime.batcher",
    "Chosen": "offramp.runtime.chosen",
    "Executor": "offramp.runtime.executor",
    "MONITORED": "offramp.runtime.monitor",
    "NO_LABEL": "offramp.runtime.prediction",
    "Prediction": "offramp.runtime.prediction",
    "REASONS": "offramp.runtime.prediction",
    "Ran": "offramp.runtime.executor",
    "RiskMonitor": "offramp.runtime.monitor",
    "RowsError": "offramp.runtime.request",
    "StageSource": "offramp.runtime.source",
    "StageTimes": "offramp.runtime.times",
    "Visit": "offramp.runtime.explained",
    "audit_mask": "offramp.runtime.monitor",
    "explain": "offramp.runtime.explained",
    "policy_of": "offramp.runtime.chosen",
}

__all__ = sorted(_HOME)

__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return list(__all__)
