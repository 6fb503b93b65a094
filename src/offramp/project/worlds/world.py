"""What the demo needs to know of a world, and what it gets from one.

Layer: project.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final, runtime_checkable

from offramp.data import Dataset
from offramp.stages import Cascade
from offramp.trace import Trace


@final
@dataclass(frozen=True, kw_only=True)
class Learned:
    """Stages that are ready, and what they said.

    Args:
        trace: Of examples that no stage was trained on, with fit, calibrate and test.
        data: Which data, for the report.
        notes: What may help to read it.
        cascade: The stages; None where only their answers are known.
        test: The examples of test, in the order of the trace; None where only answers are known.
    """

    trace: Trace
    data: str
    notes: tuple[str, ...] = ()
    cascade: Cascade | None = None
    test: Dataset | None = None


@runtime_checkable
class Learn(Protocol):
    """How a world begins."""

    def __call__(
        self, folder: Path | None, *, seed: int, progress: bool, tell: Callable[[str], None]
    ) -> Learned:
        """Make stages ready and record what they say.

        Args:
            folder: Where its data lie; None where they come with the package.
            seed: Of everything that is drawn.
            progress: Show bars.
            tell: Called with a few words before each step.

        Raises:
            InputError: If the folder is needed, not wanted, or holds other things.
        """
        ...


@final
@dataclass(frozen=True, kw_only=True)
class World:
    """What the demo shows.

    Args:
        name: It goes by.
        title: Of the report.
        inputs: What its examples are, in the plural.
        learn: How it begins.
        policies: Of `POLICIES`. Learned ones need more than 500 examples to be promised.
        reference: The stage to compare with; None takes the most accurate.
        batch_sizes: At which it is timed.
        timed: Most examples of test that are timed.
        rounds: Of the timing.
        allow_import: Whether its bundle names functions to import.
    """

    name: str
    title: str
    inputs: str
    learn: Learn
    policies: tuple[str, ...] = ("threshold", "random")
    reference: str | None = None
    batch_sizes: tuple[int, ...] = (1, 256)
    timed: int = 1000
    rounds: int = 15
    allow_import: bool = False
