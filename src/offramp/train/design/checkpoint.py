"""The state of a training of branches in one safetensors file, written whole or not at all.

Layer: train.  Source: none.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import whole_file

_KEY = "offramp"
_AGAIN = "Delete it to train from the beginning."


def write_state(
    path: Path, tensors: Mapping[str, Tensor], identity: Mapping[str, str], epochs: int
) -> None:
    """Write tensors with whose they are and how many epochs they have seen."""
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    facts = json.dumps({"version": 1, "identity": dict(identity), "epochs": epochs})
    with whole_file(path) as temporary:
        save_file(held, temporary, metadata={_KEY: facts})


def read_state(path: Path, identity: Mapping[str, str]) -> tuple[dict[str, Tensor], int]:
    """Read what `write_state` wrote.

    Raises:
        InputError: If it is of another training.
        FileFormatError: If it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get(_KEY, ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found, epochs = dict(facts["identity"]), int(facts["epochs"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError(
            f"{path} cannot be read as a checkpoint: {error}. {_AGAIN}"
        ) from error
    other = sorted(k for k in {*identity, *found} if identity.get(k) != found.get(k))
    if other:
        raise InputError(
            f"{path} belongs to a training with other {', '.join(other)}. Give another path, or "
            "delete it to train from the beginning."
        )
    return tensors, epochs
