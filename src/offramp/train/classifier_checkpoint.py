"""The state of a network in training: one safetensors file, never a pickle.

Layer: train.  Source: none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from offramp.train.checkpoint import load_state, read_file, write_file

_STATE, _MOMENTS = "state.", "optimizer."


@final
@dataclass(frozen=True, kw_only=True)
class _Facts:
    version: Literal[1]
    identity: dict[str, str]
    losses: list[float]
    candidates: list[dict[str, Any]]  # of the optimizer's groups, as its schedule left them


def write_training(
    path: Path,
    module: nn.Module,
    stepper: torch.optim.Optimizer,
    identity: Mapping[str, str],
    losses: list[float],
) -> None:
    """Write the state after as many epochs as there are losses, whole or not at all."""
    tensors = {_STATE + name: value for name, value in module.state_dict().items()}
    state = stepper.state_dict()
    for k, moments in state["state"].items():
        tensors |= {
            f"{_MOMENTS}{k}.{name}": value
            for name, value in moments.items()
            if isinstance(value, Tensor)
        }
    facts = _Facts(
        version=1, identity=dict(identity), losses=losses, candidates=state["param_groups"]
    )
    write_file(path, tensors, facts)


def read_training(
    path: Path,
    module: nn.Module,
    stepper: torch.optim.Optimizer,
    identity: Mapping[str, str],
) -> list[float]:
    """Bring network and optimizer to the state of a checkpoint; return the losses up to it.

    Raises:
        InputError: If it belongs to another training.
        FileFormatError: If it cannot be read or does not fit.
    """
    facts, tensors = read_file(path, _Facts, identity)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(_MOMENTS):
            k, _, what = name.removeprefix(_MOMENTS).partition(".")
            moments.setdefault(int(k), {})[what] = value
    own = {k.removeprefix(_STATE): v for k, v in tensors.items() if k.startswith(_STATE)}
    with load_state(path, "the network"):
        module.load_state_dict(own)
        stepper.load_state_dict({"state": moments, "param_groups": facts.candidates})
    return facts.losses
