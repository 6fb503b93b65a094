"""Bundles: the deployable directory with networks, policy and everything to run them.

Layer: bundle.
"""

from offramp.bundle.check import read_manifest
from offramp.bundle.load import LoadedBundle, load_bundle
from offramp.bundle.manifest import FORMAT_VERSION, Manifest
from offramp.bundle.onnx import export_folder, export_single_file
from offramp.bundle.save import save_bundle
from offramp.bundle.tune import tune

__all__ = [
    "FORMAT_VERSION",
    "LoadedBundle",
    "Manifest",
    "export_folder",
    "export_single_file",
    "load_bundle",
    "read_manifest",
    "save_bundle",
    "tune",
]
