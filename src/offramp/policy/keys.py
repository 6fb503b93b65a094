"""Keys of examples: the integers that random rules draw their numbers by.

Layer: policy.
"""

import hashlib

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from offramp._core.types import Ids


def example_keys(ids: Ids) -> Int[Tensor, " n"]:
    """One int64 for each id: integers as they are, names by a hash that never changes.

    Args:
        ids: Names of examples, `(n,)`, integers or str.

    >>> import numpy as np
    >>> example_keys(np.array([3, 1]))
    tensor([3, 1])
    """
    if np.issubdtype(ids.dtype, np.integer):
        return torch.from_numpy(ids.astype(np.int64))
    digests = (hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in ids)
    # 63 bits, so that no key is negative: remainders of negatives differ between runtimes
    keys = [int.from_bytes(digest, "big") >> 1 for digest in digests]
    return torch.tensor(keys, dtype=torch.int64)
