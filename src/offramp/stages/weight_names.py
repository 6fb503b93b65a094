"""The names that the weights of a cut network have in files: the network's own.

A segment names what it holds after the graph that torch.export made, so those names depend on the
version of torch. In its `state_dict` weights are called as in the network that was cut. What only
following the network made, constants among them, is in no state dict: cutting makes it again.

Layer: stages.  Source: none.
"""

import hashlib
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

_NAMES = "own_names"  # in a segment's `meta`: the own name of each tensor that it holds, or None


def names_in(net: nn.Module) -> dict[int, str]:
    """Names of what a network's state dict holds, by the identity of the tensors.

    Weights that layers share have the first of their names.
    """
    lasting: Mapping[str, Any] = net.state_dict(keep_vars=True)
    found: dict[int, str] = {}
    # Parameters as well: a hook may put copies into the state dict.
    for name, value in chain(lasting.items(), net.named_parameters()):
        if isinstance(value, Tensor):
            found.setdefault(id(value), name)
    return found


def call_by_own_names(segment: fx.GraphModule, names: Mapping[int, str]) -> None:
    """Let a segment's state dict have the names of the network.

    Args:
        segment: Holds tensors of the network.
        names: Of `names_in`.
    """
    segment.meta[_NAMES] = {held: names.get(id(value)) for held, value in _held(segment).items()}
    segment.register_state_dict_post_hook(_give)  # type: ignore[no-untyped-call]
    segment.register_load_state_dict_pre_hook(_take)  # type: ignore[no-untyped-call]


def own_names(segment: nn.Module) -> dict[str, str | None]:
    """For each tensor of a segment its name in the network, None where it has none there.

    >>> from offramp.stages import cut
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> first, last = cut(net, ["1"], torch.zeros(1, 4))
    >>> sorted(own_names(first).values()), list(last.state_dict())
    (['0.bias', '0.weight'], ['2.weight', '2.bias'])
    """
    return dict(getattr(segment, "meta", {}).get(_NAMES, {}))


def weights_digest(modules: Mapping[str, nn.Module]) -> str:
    """SHA-256 of what modules compute with, 64 hexadecimal digits.

    That is, under each name, a state dict and, of segments, the constants without a name, each
    value once. No name of torch.export takes part.

    >>> layer = nn.Linear(2, 3)
    >>> weights_digest({"a": layer}) == weights_digest({"b": layer})
    False
    """
    digest = hashlib.sha256()
    for name, module in modules.items():
        digest.update(f"{name}\n".encode())
        _add_weights(digest, module)
    return digest.hexdigest()


def _add_weights(digest: "hashlib._Hash", module: nn.Module) -> None:
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {_form(value)}".encode())
        digest.update(_bytes(value))
    constants: set[tuple[str, bytes]] = set()
    for part in module.modules():
        names = own_names(part)
        held = _held(part) if None in names.values() else {}
        constants |= {(_form(held[k]), _bytes(held[k])) for k in held if names.get(k, "") is None}
    for form, content in sorted(constants):
        digest.update(f" {form}".encode())
        digest.update(content)


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _held(segment: nn.Module) -> dict[str, Tensor]:
    """Shared tensors under each of their names."""
    return {
        **dict(segment.named_parameters(remove_duplicate=False)),
        **dict(segment.named_buffers(remove_duplicate=False)),
    }


def _give(segment: nn.Module, state: dict[str, Any], prefix: str, _metadata: object) -> None:
    """Rename what a state dict holds."""
    names = own_names(segment)
    taken = {held: state.pop(prefix + held) for held in names if prefix + held in state}
    for held, value in taken.items():
        if (own := names[held]) is not None:
            state[prefix + own] = value


def _take(segment: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Give the weights the names that the segment has for them; what else it holds stays."""
    names, present = own_names(segment), _held(segment)
    wanted = {own for own in names.values() if own is not None}
    given = {own: state.pop(prefix + own) for own in wanted if prefix + own in state}
    for held, own in names.items():
        if own is None and held in present:
            state[prefix + held] = present[held]
        elif own in given:
            state[prefix + held] = given[own]
