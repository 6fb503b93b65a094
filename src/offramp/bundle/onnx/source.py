"""The stages of a bundle that has been loaded, for whoever takes a cascade.

Layer: bundle.
"""

from dataclasses import dataclass
from typing import final

from offramp._core.topology import Topology
from offramp.bundle.load import LoadedBundle
from offramp.stages import Stage


@final
@dataclass(frozen=True)
class BundleStages:
    """The stages that a bundle's policy uses; stands where a cascade does.

    Args:
        bundle: Loaded without `fold`.
    """

    bundle: LoadedBundle

    @property
    def topology(self) -> Topology:
        """All stages of the cascade, held or not."""
        return self.bundle.manifest.topology

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, or none."""
        return self.bundle.class_names

    def stage(self, which: int) -> Stage:
        """A stage that the policy needs, by position."""
        return self.bundle.adaptive.stages[str(which)]  # type: ignore[return-value]
