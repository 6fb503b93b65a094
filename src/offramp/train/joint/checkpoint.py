"""The state of a joint training: one safetensors file, never a pickle.

Layer: train.  Source: none.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from offramp.stages import add_weights, names_in
from offramp.train.checkpoint import load_state, read_file, write_file
from offramp.train.joint.result import JointEpoch

_NOW, _BEST, _MOMENTS = "now.", "best.", "moments."


@final
@dataclass(frozen=True, kw_only=True)
class _Facts:
    version: Literal[1]
    identity: dict[str, str]
    history: list[JointEpoch]
    best_epoch: int


@final
@dataclass(kw_only=True)
class Progress:
    """How far a training is: `best` are the weights of the best epoch."""

    history: list[JointEpoch]
    best_epoch: int
    best: dict[str, Tensor]


def copied(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module, copies on the CPU."""
    return {k: v.detach().cpu().clone() for k, v in module.state_dict().items()}


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of the weights of a module, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    add_weights(digest, module)
    return digest.hexdigest()


def write_joint(
    path: Path,
    module: nn.Module,
    stepper: torch.optim.Optimizer,
    identity: Mapping[str, str],
    progress: Progress,
) -> None:
    """Write the state after an epoch, whole or not at all."""
    tensors = {_NOW + name: value for name, value in module.state_dict().items()}
    tensors |= {_BEST + name: value for name, value in progress.best.items()}
    names = _trained(module, stepper)
    for k, held in stepper.state_dict()["state"].items():
        if held.get("momentum_buffer") is not None:
            tensors[_MOMENTS + names[k]] = held["momentum_buffer"]
    facts = _Facts(
        version=1, identity=dict(identity), history=progress.history, best_epoch=progress.best_epoch
    )
    write_file(path, tensors, facts)


def read_joint(
    path: Path,
    module: nn.Module,
    stepper: torch.optim.Optimizer,
    identity: Mapping[str, str],
) -> Progress:
    """Bring module and optimizer to the state of a checkpoint.

    Raises:
        InputError: If it belongs to another cascade or another training.
        FileFormatError: If it cannot be read or does not fit.
    """
    facts, tensors = read_file(path, _Facts, identity)
    candidates = stepper.state_dict()["param_groups"]
    held = _under(_MOMENTS, tensors)
    moments: dict[int, dict[str, Any]] = {
        k: {"momentum_buffer": held[name]}
        for k, name in enumerate(_trained(module, stepper))
        if name in held
    }
    with load_state(path, "the cascade"):
        module.load_state_dict(_under(_NOW, tensors))
        stepper.load_state_dict({"state": moments, "param_groups": candidates})
    return Progress(history=facts.history, best_epoch=facts.best_epoch, best=_under(_BEST, tensors))


def _trained(module: nn.Module, stepper: torch.optim.Optimizer) -> list[str]:
    """Names of the weights that an optimizer changes, in its own order."""
    names = names_in(module)
    return [names[id(weight)] for group in stepper.param_groups for weight in group["params"]]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
