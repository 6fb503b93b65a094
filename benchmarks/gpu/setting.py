"""Where a part runs, how long it may, where its files lie, and its images."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sheets import COUNT, SHEETS, read_sheets
from train_backbone import NORMALIZE as NORMALIZE

from offramp._core.files import atomic_file
from offramp.data import Dataset, arrays, cifar10, digits

FULL = {"train": (0, 40_000), "fit": (40_000, 42_500), "calibrate": (42_500, 45_000)}
FULL |= {"test": (45_000, 50_000)}
TINY = {"train": (0, 256), "fit": (256, 384), "calibrate": (384, 512), "test": (512, 640)}


class OutOfTime(Exception):  # noqa: N818  (nothing is wrong)
    """The time of a part is over; what is finished stays, and the same part goes on later."""


class Missing(Exception):  # noqa: N818
    """Something that another part, or `prepare.sh`, makes is not here, or something else is."""


class Budget:
    """The time of a part.

    Args:
        seconds: In all, from now on.
        clock: Gives seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    @property
    def left(self) -> float:
        """Seconds; negative once it is over."""
        return self._end - self._clock()

    def check(self, needed: float = 0.0) -> None:
        """Raise `OutOfTime` unless there are so many seconds left."""
        if self.left < needed:
            raise OutOfTime


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all parts are told.

    Args:
        device: Where networks run.
        tiny: A few digits instead of CIFAR-10, few epochs: to try the code.
        data: The images: CIFAR-10 in its official layout, or sheets of `prepare.sh`.
        state: Everything, checkpoints included; a part goes on from it.
        out: What is worth keeping: figures, weights, traces. Also a source, where `state` is empty.
        budget: The time.
        epochs: The most that a training takes.
        batch_size: Of the trainings.
        networks: Those of a part; by default its own.
        reserve: Seconds that are kept for what follows a training.
    """

    device: torch.device
    tiny: bool
    data: Path
    state: Path
    out: Path
    budget: Budget
    epochs: int
    batch_size: int
    networks: tuple[str, ...] = ()
    reserve: float = 0.0

    def images(self) -> Dataset:
        """The images with their splits.

        Raises:
            Missing: If they are not there.
        """
        ranges: Any = TINY if self.tiny else FULL
        return (_digits() if self.tiny else _cifar(self.data)).with_ranges(ranges)

    def found(self, name: str) -> Path:
        """Where a file or folder is, or will be; taken over from `out` where it is there alone."""
        held, given = self.state / name, self.out / name
        held.parent.mkdir(parents=True, exist_ok=True)
        if not held.exists() and given.exists():
            _copy(given, held)
        return held

    def kept(self, name: str, part: str) -> Path:
        """A file or folder that a part has made.

        Raises:
            Missing: If it is neither in `state` nor in `out`; it names the part.
        """
        held = self.found(name)
        if not held.exists():
            raise Missing(
                f"{name} is neither in {self.state} nor in {self.out}: run `run.sh {part}` first."
            )
        return held

    def keep(self, name: str) -> None:
        """Copy a file or folder of `state` to `out`."""
        if (self.state / name).exists():
            _copy(self.state / name, self.out / name)

    def enough(self, *_: object) -> None:
        """Told of an epoch as it ends: raises `OutOfTime` unless another one is worth a start."""
        self.budget.check(self.reserve)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        with atomic_file(target) as temporary:  # weights that are there are taken for whole
            shutil.copyfile(source, temporary)


def _cifar(folder: Path) -> Dataset:
    if any(folder.glob("**/data_batch_1.bin")):
        images = cifar10(next(folder.glob("**/data_batch_1.bin")).parent)
        train = torch.as_tensor(images.split) == 0
        return images.take(train)
    if not folder.is_dir() or len([*folder.glob(SHEETS)]) < COUNT:
        raise Missing(
            f"{folder} holds neither CIFAR-10 in its official binary layout nor the {COUNT} sheets "
            "of prepare.sh: unpack both packs there, or say --data DIR (--tiny needs none)."
        )
    return read_sheets(folder)


def _digits() -> Dataset:
    """The digits of scikit-learn as color images of 32 by 32 pixels."""
    found = digits()
    found = found.take(torch.randperm(len(found), generator=torch.Generator().manual_seed(0)))
    raw = torch.as_tensor(found.inputs).float() * (255 / 16)
    large = torch.nn.functional.interpolate(raw, size=(32, 32)).expand(-1, 3, -1, -1)
    return arrays(large.to(torch.uint8).contiguous(), found.labels, layout="nchw", name="digits")
