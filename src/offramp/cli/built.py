"""From a section that describes a network to the network.

Layer: cli.
"""

import sys
from pathlib import Path

from torch import nn

from offramp.cli.sections import BuiltSection
from offramp.models import ModelSpec, build
from offramp.stages import Normalize


def spec_of(section: BuiltSection) -> ModelSpec:
    """How to build the network."""
    return ModelSpec(
        name=section.model,
        arguments=section.arguments,
        weights=section.weights,
        weights_sha256=section.weights_sha256,
    )


def built(spec: ModelSpec, folder: Path) -> nn.Module:
    """Build a network; "module:callable" is looked for in a folder as well."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        return build(spec)
    finally:
        sys.path.remove(str(folder.resolve()))


def normalize(section: BuiltSection) -> Normalize | None:
    """What is applied to the raw input, if anything is."""
    if section.normalise is None:
        return None
    return Normalize(section.normalise.scale, section.normalise.mean, section.normalise.std)
