"""Whether what was just written to a bundle gives back the cascade it was written from.

Layer: bundle.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from offramp._core.errors import FileFormatError, InputError, OfframpError, UnsupportedError
from offramp.bundle.check import read_manifest
from offramp.bundle.manifest import WholeEntry
from offramp.bundle.rebuild import rebuild
from offramp.bundle.services import ServiceEntry
from offramp.bundle.tensors import built
from offramp.models import ModelSpec, save_weights
from offramp.models.estimator import Estimator, untrusted
from offramp.stages import Cascade, HeldStages


def write_module(module: nn.Module, spec: ModelSpec, path: Path, *, whose: str) -> None:
    """Write the weights of a network or a head, build it as a loader will, and compare.

    Args:
        module: The network or the head.
        spec: How to build it, as it stands in a manifest.
        path: File of the weights.
        whose: For messages: "stage 'small'", "the head of stage 'a'".

    Raises:
        InputError: If `spec` builds something else.
    """
    save_weights(module, path)
    try:
        again = built(spec, path, "it", allow_import=True)
    except OfframpError as error:
        raise InputError(f"The spec of {whose} does not build its network: {error}") from error
    if type(again) is not type(module):
        found = f"a {type(again).__name__} instead of a {type(module).__name__}"
    elif different := _different(again.state_dict(), module.state_dict()):
        found = f"values or types differ in {different[0]!r}"
    else:
        _check_opens(again, whose)
        return
    raise InputError(f"The spec of {whose} builds another network than the cascade has: {found}.")


def _check_opens(module: nn.Module, whose: str) -> None:
    """Raise `InputError` where a classifier is written that nobody could read back."""
    for part in module.modules():
        if isinstance(part, Estimator):
            try:
                part.open(untrusted(part.content))  # the user's own, so all of it is trusted
            except (FileFormatError, UnsupportedError) as error:
                raise InputError(
                    f"The classifier of {whose} cannot be part of a bundle, for nobody could read "
                    f"it back. {error} Functions and classes in it must stand in a module."
                ) from error


def check_loadable(folder: Path, cascade: Cascade | HeldStages) -> None:
    """Build and cut the networks of a bundle as a loader will, and compare the segments.

    Models of other runtimes are opened, and answer once.

    Args:
        folder: The bundle.
        cascade: What it was written from.

    Raises:
        InputError: If the segments are not those of the cascade, to the last bit of a weight.
    """
    try:
        manifest = read_manifest(folder)
        if all(isinstance(entry, WholeEntry | ServiceEntry) for entry in manifest.stages):
            return  # `write_module` has compared them
        stages = rebuild(folder, manifest, verify=True, allow_import=True, allow_network=True)
    except OfframpError as error:
        raise InputError(f"The specs of the cascade do not build it again: {error}") from error
    for name, stage in stages.items():
        have, want = stage.module, cascade.stage(name).module
        if not isinstance(want, fx.GraphModule):
            continue
        different = _different(_held(have), _held(want))
        if different or _operations(have) != _operations(want):
            what = f"values differ in {different[0]!r}" if different else "its operations differ"
            raise InputError(
                "The spec given to Cascade.from_network builds another network than the one that "
                f"cut: in the segment of stage {name!r} {what}. What a network needs must be in "
                "its arguments or in its state_dict."
            )


def _operations(segment: nn.Module) -> list[str]:
    """Layers with their options, and what is done with them."""
    layers = [f"{name}: {layer}" for name, layer in segment.named_children()]
    return [*layers, segment.code if isinstance(segment, fx.GraphModule) else ""]


def _held(segment: nn.Module) -> dict[str, Tensor]:
    """Weights and constants by the names that the segment has for them."""
    return {**dict(segment.named_parameters()), **dict(segment.named_buffers())}


def _different(have: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> list[str]:
    return [name for name in want if name not in have or not _same(have[name], want[name].cpu())]


def _same(have: Tensor, want: Tensor) -> bool:
    return have.dtype == want.dtype and torch.equal(have.nan_to_num(), want.nan_to_num())
