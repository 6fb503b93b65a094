"""The state of a training of branches in one safetensors file, written whole or not at all.

Layer: train.  Source: none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from torch import Tensor

from offramp.train.checkpoint import read_file, write_file


@final
@dataclass(frozen=True, kw_only=True)
class _Facts:
    version: Literal[1]
    identity: dict[str, str]
    epochs: int


def write_state(
    path: Path, tensors: Mapping[str, Tensor], identity: Mapping[str, str], epochs: int
) -> None:
    """Write tensors with whose they are and how many epochs they have seen."""
    write_file(path, tensors, _Facts(version=1, identity=dict(identity), epochs=epochs))


def read_state(path: Path, identity: Mapping[str, str]) -> tuple[dict[str, Tensor], int]:
    """Read what `write_state` wrote.

    Raises:
        InputError: If it is of another training.
        FileFormatError: If it cannot be read, or a bit of it has changed.
    """
    facts, tensors = read_file(path, _Facts, identity)
    return tensors, facts.epochs
