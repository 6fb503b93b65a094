"""One cascade on two machines: a device answers what is easy, a cloud answers the rest.

`Client` needs numpy and onnxruntime, and nothing else that offramp needs; what it is made of is
imported on first use.

Layer: edge.
"""

from typing import TYPE_CHECKING

from offramp._core.lazy import lazy

if TYPE_CHECKING:
    from offramp.edge.client import Client as Client
    from offramp.edge.client import Told as Told
    from offramp.edge.settings import Settings as Settings
    from offramp.edge.write import Split as Split
    from offramp.edge.write import split as split

_HOME = {
    "Client": "offramp.edge.client",
    "Settings": "offramp.edge.settings",
    "Split": "offramp.edge.write",
    "Told": "offramp.edge.client",
    "split": "offramp.edge.write",
}

__all__ = sorted(_HOME)

__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return list(__all__)
