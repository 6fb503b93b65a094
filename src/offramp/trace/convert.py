"""Arrays of any origin as the tensors that a trace holds.

Layer: trace.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from offramp._core.checks import check_split
from offramp._core.errors import InputError
from offramp._core.types import SPLITS, Split


def scores(name: str, values: ArrayLike | Tensor) -> Tensor:
    """Numbers as float32, or float16 where they are given so."""
    given = _tensor(name, values)
    return given if given.dtype == torch.float16 else given.to(torch.float32)


def ranks(name: str, values: ArrayLike | Tensor) -> Tensor:
    """Labels `(n,)` or ranked labels `(n, r)` as int64 `(n, r)`."""
    given = integers(name, values)
    return given[:, None] if given.dim() == 1 else given


def integers(name: str, values: ArrayLike | Tensor) -> Tensor:
    """Whole numbers as int64, also where they are held as floats.

    Raises:
        InputError: If one is not whole.
    """
    given = _tensor(name, values)
    if given.is_floating_point():
        fractional = given[~(given == given.round())]  # NaN is among them
        if len(fractional):
            raise InputError(f"{name} must be whole numbers, got {float(fractional[0])!r}.")
    return given.to(torch.int64)


def _tensor(name: str, values: ArrayLike | Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} must be numbers, got an array of {array.dtype}.")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch computes with few of these
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def split_indices(split: ArrayLike | Split, n: int) -> Tensor:
    """Index into `SPLITS` of each of `n` examples, int8, from names, indices or one name for all.

    Raises:
        InputError: If a name or an index is none of a split's.
    """
    if isinstance(split, str):
        return torch.full((n,), SPLITS.index(check_split("split", split)), dtype=torch.int8)
    given = np.asarray(split)
    if given.dtype.kind in "OU":
        names, inverse = np.unique(given.astype(str), return_inverse=True)
        indices = [SPLITS.index(check_split("split", str(name))) for name in names]
        return torch.tensor(indices, dtype=torch.int8)[torch.from_numpy(inverse.reshape(-1))]
    found = integers("split", given)
    outside = (found < 0) | (found >= len(SPLITS))
    if bool(outside.any()):
        raise InputError(f"split must hold indices into {SPLITS}, got {int(found[outside][0])}.")
    return found.to(torch.int8)
