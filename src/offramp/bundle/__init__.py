"""Bundles: the deployable directory with networks, policy and everything to run them.

Layer: bundle.
"""

from offramp.bundle.check import read_manifest
from offramp.bundle.load import StoredChoice, load, read_extra
from offramp.bundle.manifest import FORMAT_VERSION, Manifest
from offramp.bundle.onnx import Exported, export_onnx
from offramp.bundle.save import save
from offramp.bundle.tune import tune

__all__ = [
    "FORMAT_VERSION",
    "Exported",
    "Manifest",
    "StoredChoice",
    "export_onnx",
    "load",
    "read_extra",
    "read_manifest",
    "save",
    "tune",
]
