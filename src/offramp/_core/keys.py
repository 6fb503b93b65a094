"""Keys of examples, and the numbers that random rules draw by them.

Layer: _core.
"""

import hashlib

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offramp._core.ids import as_ids
from offramp._core.types import AnyArray

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def example_keys(ids: AnyArray) -> Int[Tensor, " n"]:
    """One int64 for each id: integers as they are, names by a hash that never changes.

    Args:
        ids: Names of examples, `(n,)`, integers or str; a tensor stays on its device.

    Raises:
        InputError: If they are neither: floats would be cut.

    >>> import numpy as np
    >>> example_keys(np.array([3, 1]))
    tensor([3, 1])
    """
    if isinstance(ids, Tensor) and ids.dtype in _WHOLE:
        return ids.long()
    known = as_ids(ids)
    if known.dtype.kind == "i":
        return torch.from_numpy(np.ascontiguousarray(known))  # reversed ones are copied
    digests = (
        hashlib.blake2b(str(name).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for name in known
    )
    # 63 bits, so that no key is negative: remainders of negatives differ between runtimes
    keys = [int.from_bytes(digest, "big") >> 1 for digest in digests]
    return torch.from_numpy(np.array(keys, dtype=np.int64))  # a quarter of torch.tensor's time


def keyed_uniform(ids: Int[Tensor, " m"], seed: int, stage: int) -> Float[Tensor, " m"]:
    """A number in [0, 1) for each example, float64, fixed by (seed, id, stage).

    A 31-bit multiplicative hash, in int64 operations that every runtime has.

    >>> keyed_uniform(torch.tensor([7, 8, 7]), seed=0, stage=1).unique().numel()
    2
    """
    modulus = 2**31 - 1  # prime, so products of two residues fit into int64
    state = (ids % modulus + 1) * 48271 % modulus
    for key in (seed, stage):
        state = (state + (key % modulus) * 69621 + 1013904223) % modulus
        for multiplier in (16807, 39373, 48271):  # fewer rounds leave stages correlated
            state = state * multiplier % modulus
            state = state ^ (state >> 15)
    return (state % modulus).to(torch.float64) / modulus
