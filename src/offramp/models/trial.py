"""Whether a network fits a file of weights, found out before any memory is taken.

A description that came from others may ask for a network of any size. So it is built on torch's
"meta" device first, where tensors have shapes and no values, and given up as soon as it has more
layers than the file could fill.

Layer: models.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from offramp._core.errors import FileFormatError
from offramp._core.schema import from_json
from offramp.models.spec import WRAPPERS, ModelSpec, build
from offramp.models.weights import check_fit

_DEEPEST = 4  # networks in networks
# Parameters are registered once, in few layers twice; of modules most have parameters.
_PARAMETERS, _MODULES = 2, 16  # for each tensor of the file
_SPARE = 64


def check_spec(spec: ModelSpec, held: Mapping[str, Tensor], path: Path | str) -> None:
    """Raise unless a network is of the size of a file of weights, and names no other file.

    Of "module:callable" nothing is called: who allows imports runs code anyway. What `WRAPPERS`
    makes runs its network, so here only that one is looked at.

    Args:
        spec: How to build it.
        held: What the file holds, by name; only shapes and types are looked at.
        path: The file, for messages.

    Raises:
        FileFormatError: If there are more layers, or others, than the file has weights for; or if
            a network within the network has a file of its own.

    >>> import torch
    >>> held = {"weight": torch.empty(3, 4, device="meta")}
    >>> check_spec(ModelSpec(name="small_cnn", arguments={"depth": 10**9}), held, "a.safetensors")
    Traceback (most recent call last):
    ...
    offramp._core.errors.FileFormatError: small_cnn has more layers than a.safetensors has weights.
    """
    inner = _innermost(spec)
    if ":" in inner.name:
        return
    with torch.device("meta"), _no_larger_than(len(held), f"{inner.name} has", path):
        net = build(inner)
    if inner is spec:
        check_fit(net, held, path)
        return
    have, want = (sum(map(_bytes, each)) for each in (held.values(), net.state_dict().values()))
    if want > 2 * have + 2**20:  # a wrapper leaves out what no answer needs
        raise FileFormatError(f"{inner.name} takes {want} bytes, but {path} holds {have}.")


def _innermost(spec: ModelSpec) -> ModelSpec:
    for _ in range(_DEEPEST):
        if spec.name not in WRAPPERS:
            return spec
        spec = from_json(
            ModelSpec, spec.arguments.get("model", {}), where=f"The argument 'model' of {spec.name}"
        )
        if spec.weights is not None or spec.weights_sha256 is not None:
            raise FileFormatError(
                f"{spec.name} must have no weights of its own, got {spec.weights!r}: a network "
                "within a network takes them from the file of the whole."
            )
    raise FileFormatError(f"More than {_DEEPEST} networks stand within each other.")


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@contextmanager
def _no_larger_than(tensors: int, who: str, path: Path | str) -> Iterator[None]:
    """Within, this thread builds no module of much more layers than there are tensors."""
    mine, left = threading.get_ident(), {"p": _PARAMETERS * tensors, "m": _MODULES * tensors}

    def counted(kind: str) -> Any:  # noqa: ANN401  (a hook of torch)
        def hook(module: nn.Module, name: str, value: object) -> None:
            if threading.get_ident() != mine or value is None:
                return
            left[kind] -= 1
            if left[kind] < -_SPARE:
                raise FileFormatError(f"{who} more layers than {path} has weights.")

        return hook

    hooks = (
        register_module_parameter_registration_hook(counted("p")),
        register_module_module_registration_hook(counted("m")),
    )
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
