"""Bundles: the deployable directory with networks, policy and everything to run them.

Layer: bundle.
"""

from offramp.bundle.check import read_manifest
from offramp.bundle.load import LoadedBundle, load_bundle
from offramp.bundle.manifest import FORMAT_VERSION, Manifest
from offramp.bundle.save import save_bundle

__all__ = [
    "FORMAT_VERSION",
    "LoadedBundle",
    "Manifest",
    "load_bundle",
    "read_manifest",
    "save_bundle",
]
