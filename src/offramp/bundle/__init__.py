"""Bundles: the deployable directory with networks, policy and everything to run them.

Layer: bundle.
"""

from typing import TYPE_CHECKING

from offramp._core.lazy import lazy
from offramp.bundle.check import read_manifest
from offramp.bundle.load import StoredChoice, load, read_extra
from offramp.bundle.manifest import FORMAT_VERSION, Manifest

if TYPE_CHECKING:
    from offramp.bundle.measure import tune as tune
    from offramp.bundle.onnx import Exported as Exported
    from offramp.bundle.onnx import export_onnx as export_onnx
    from offramp.bundle.write import save as save

_HOME = {
    "Exported": "offramp.bundle.onnx",
    "export_onnx": "offramp.bundle.onnx",
    "save": "offramp.bundle.write",
    "tune": "offramp.bundle.measure",
}

__all__ = [
    *sorted(_HOME),
    "FORMAT_VERSION",
    "Manifest",
    "StoredChoice",
    "load",
    "read_extra",
    "read_manifest",
]

__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return list(__all__)
