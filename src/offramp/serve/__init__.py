"""A server over HTTP: requests share batches at every stage (docs/how-to/serve.md).

Needs the extra `serve`.

Layer: serve.
"""

from typing import TYPE_CHECKING

from offramp._core.lazy import lazy

if TYPE_CHECKING:
    from offramp.serve.gears import Controller as Controller
    from offramp.serve.gears import all_gears as all_gears
    from offramp.serve.metrics import Metrics as Metrics
    from offramp.serve.observer import Observer as Observer
    from offramp.serve.watch import DriftMonitor as DriftMonitor

_HOME = {
    "Controller": "offramp.serve.gears",
    "DriftMonitor": "offramp.serve.watch",
    "Metrics": "offramp.serve.metrics",
    "Observer": "offramp.serve.observer",
    "all_gears": "offramp.serve.gears",
}

__all__ = [*sorted(_HOME)]

__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return list(__all__)
