"""The heads that `offramp train` trained: a file beside the run, and whose heads they are.

Tensors are named "position of the stage.name of the weight"; what else there is to know is JSON in
the metadata. Weights of the network itself are not in it.

Layer: project.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from torch import Tensor

from offramp._core.errors import FileFormatError, InputError
from offramp._core.schema import to_json
from offramp.stages import Cascade, Stage
from offramp.train.checkpoint import read_file, write_file
from offramp.train.features import backbone_digest

HEADS = "heads.safetensors"


@final
@dataclass(frozen=True, kw_only=True)
class _Facts:
    version: Literal[1]
    heads: dict[str, dict[str, Any]]  # how to build each, by stage
    backbone: str


def save_heads(path: Path, cascade: Cascade) -> None:
    """Write the weights of all heads, whole or not at all."""
    tensors = {
        f"{k}.{name}": value
        for k, stage in enumerate(cascade)
        if stage.head is not None
        for name, value in stage.head.state_dict().items()
    }
    write_file(path, tensors, _facts_of(cascade))


def check_heads(path: Path, cascade: Cascade, config: Path) -> dict[str, Tensor]:
    """Check that heads which were trained before fit a cascade.

    Args:
        path: Of `save_heads`.
        cascade: Of the configuration.
        config: The configuration's file, for messages.

    Returns:
        Their weights.

    Raises:
        InputError: If they belong to other exits, to heads of another kind or to another network.
        FileFormatError: If the file is damaged.
    """
    again = f"Run `offramp train -c {config} --restart`."
    found, tensors = read_file(path, _Facts, what="heads", repair=again)
    problem = _difference(found, _facts_of(cascade))
    if problem:
        raise InputError(
            f"The heads in {path} were trained for another configuration: {problem}. Run "
            f"`offramp train -c {config} --restart`, or name another folder in [output]."
        )
    return tensors


def load_heads(path: Path, cascade: Cascade, config: Path) -> None:
    """Give the heads of a cascade the weights that were trained for them.

    Raises:
        InputError: If nobody trained them yet, or as `check_heads`; all heads stay as they were.
        FileFormatError: If the file is damaged.
    """
    if not path.exists():
        raise InputError(
            f"The heads are not trained yet: {path} is missing. Run `offramp train -c {config}` "
            "first."
        )
    tensors = check_heads(path, cascade, config)
    try:
        for k, stage in enumerate(cascade):
            if stage.head is not None:
                stage.head.load_state_dict(_under(f"{k}.", tensors))
    except RuntimeError as error:
        raise FileFormatError(
            f"{path} does not fit: {error}. Run `offramp train -c {config} --restart`."
        ) from error


def _facts_of(cascade: Cascade) -> _Facts:
    heads = {stage.name: _kind(stage) for stage in cascade if stage.head is not None}
    return _Facts(version=1, heads=heads, backbone=backbone_digest(cascade))


def _kind(stage: Stage) -> dict[str, Any]:
    return {} if stage.head_spec is None else to_json(stage.head_spec)


def _difference(found: _Facts, wanted: _Facts) -> str:
    """What is different, in words; nothing if the heads fit."""
    if list(found.heads) != list(wanted.heads):
        return f"its exits are {', '.join(found.heads)}, here they are {', '.join(wanted.heads)}"
    for name, head in wanted.heads.items():
        if found.heads[name] != head:
            return f"the head at {name} is {_said(found.heads[name])}, here it is {_said(head)}"
    if found.backbone != wanted.backbone:
        return "its network has other weights or another transform"
    return ""


def _said(head: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{k}={v!r}" for k, v in head.get("arguments", {}).items())
    return f"{head.get('name')}({arguments})"


def _under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
