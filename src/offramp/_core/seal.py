"""Digests of descriptions and tensors, so that a bit that flipped on a disk is found.

A digest proves that nothing changed by accident. It is no signature: who changes a file on purpose
can write a new digest.

Layer: _core.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

SEAL = "sha256"  # the key that holds it


@runtime_checkable
class Digest(Protocol):
    """A running checksum of hashlib, which has no name for its type when it runs."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Go on with more bytes."""

    def hexdigest(self) -> str:
        """Of all bytes so far, in hexadecimal digits."""


def digest_of(value: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, 64 hexadecimal digits; spaces, order and a `SEAL` do not count.

    Raises:
        ValueError: If a number is not finite.

    >>> digest_of({"a": 1, "b": [2.5]}) == digest_of({"b": [2.5], "a": 1, "sha256": "old"})
    True
    """
    rest = {key: part for key, part in value.items() if key != SEAL}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with their digest; an older one is replaced.

    >>> is_sealed(sealed({"a": 1})), is_sealed({**sealed({"a": 1}), "a": 2}), is_sealed({"a": 1})
    (True, False, False)
    """
    rest = {key: part for key, part in value.items() if key != SEAL}
    return {**rest, SEAL: digest_of(rest)}


def is_sealed(value: Mapping[str, Any]) -> bool:
    """Whether a digest is there and is the right one."""
    try:
        return bool(value.get(SEAL) == digest_of(value))
    except ValueError:
        return False


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names, types, shapes and every bit; their order does not count.

    >>> import torch
    >>> one = tensors_digest({"a": torch.zeros(2), "b": torch.ones(1)})
    >>> one == tensors_digest({"b": torch.ones(1), "a": torch.zeros(2)})
    True
    >>> one == tensors_digest({"a": torch.zeros(2), "b": -torch.ones(1)})
    False
    """
    found = hashlib.sha256()
    for name in sorted(tensors):
        held = tensors[name].detach().cpu().contiguous()
        found.update(json.dumps([name, str(held.dtype), list(held.shape)]).encode("ascii"))
        found.update(held.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
