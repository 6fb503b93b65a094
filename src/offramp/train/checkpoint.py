"""Training that can be interrupted: all of its state in one safetensors file, never a pickle.

Layer: train.  Source: none.  What is not a tensor is JSON in the file's metadata, so the two are
replaced together, in one step. Beside it stands a digest of both: a bit that flipped on the disk
would be trained on, and what comes of it would get a fresh checksum.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import atomic_file
from offramp._core.schema import from_json, from_text, to_json
from offramp._core.seal import digest_of, tensors_digest

_ENDING = ".safetensors"
_KEY = "offramp"
_MARK = "\n"  # between the facts, JSON on one line, and their digest
Facts = TypeVar("Facts")
_AGAIN = "Delete it to train from the beginning."


@final
@dataclass(frozen=True, kw_only=True)
class _Held:
    version: Literal[2]
    identity: dict[str, str]
    facts: dict[str, Any]


def check_checkpoint(path: Path | str) -> Path:
    """Return the path if its ending is the right one; else raise `InputError`."""
    if Path(path).suffix != _ENDING:
        raise InputError(f"checkpoint must end with {_ENDING}, got {Path(path).name!r}.")
    return Path(path)


def write_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], identity: Mapping[str, str], facts: object
) -> None:
    """Write the state of a training, whole or not at all.

    Args:
        path: The file.
        tensors: What it needs to go on.
        identity: What must be the same for it to go on.
        facts: What is no tensor, as a frozen dataclass.
    """
    write_file(path, tensors, {"version": 2, "identity": dict(identity), "facts": to_json(facts)})


def read_checkpoint(
    path: Path, kind: type[Facts], identity: Mapping[str, str]
) -> tuple[dict[str, Tensor], Facts]:
    """Read what `write_checkpoint` wrote.

    Args:
        path: The file.
        kind: What the facts are.
        identity: What theirs must be.

    Raises:
        InputError: If it belongs to another training.
        FileFormatError: If it cannot be read, or a bit of it has changed.
    """
    held, tensors = read_file(path, _Held, what="a checkpoint", repair=_AGAIN)
    other = [
        k for k in sorted({*identity, *held.identity}) if held.identity.get(k) != identity.get(k)
    ]
    if other:
        raise InputError(
            f"{path} belongs to a training with other {', '.join(other)}. Repeat the call that "
            "began it, give another path, or delete it to train from the beginning."
        )
    with must_fit(path, "a training"):
        return tensors, from_json(kind, held.facts, where=path)


def write_file(path: Path, tensors: Mapping[str, Tensor], facts: object) -> None:
    """Write tensors, and facts as JSON beside them, whole or not at all."""
    held = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = json.dumps(to_json(facts))
    with atomic_file(path) as temporary:
        # One entry only: safetensors writes several in an order that changes from run to run.
        save_file(held, temporary, metadata={_KEY: f"{text}{_MARK}{_digest(text, held)}"})


def _digest(facts: str, tensors: Mapping[str, Tensor]) -> str:
    return digest_of({"facts": facts, "tensors": tensors_digest(tensors)})


def read_file(
    path: Path, kind: type[Facts], *, what: str, repair: str
) -> tuple[Facts, dict[str, Tensor]]:
    """Read what `write_file` wrote, whosever it is.

    Args:
        path: The file.
        kind: What the facts are.
        what: What it should be, for messages.
        repair: What to do where it cannot be read, a sentence.

    Raises:
        FileFormatError: If it cannot be read, or a bit of it has changed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            text, _, digest = metadata.get(_KEY, "").partition(_MARK)
            facts = from_text(kind, text, where="its description")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, FileFormatError) as error:
        raise FileFormatError(f"{path} cannot be read as {what}: {error}. {repair}") from error
    if digest != _digest(text, tensors):
        raise FileFormatError(
            f"{path} was damaged, or written by a version that noted no digest. {repair}"
        )
    return facts, tensors


@contextmanager
def must_fit(path: Path, what: str) -> Iterator[None]:
    """Within, what does not fit becomes a `FileFormatError`."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        raise FileFormatError(f"{path} does not fit {what}: {error}. {_AGAIN}") from error
