"""What transforms promise.

Layer: testing.
"""

import copy
import json

import torch
from torch import Tensor, nn

from offramp._core.batch import RowList, as_batch, as_rows, batch_size, take_rows
from offramp._core.schema import from_json, to_json
from offramp._core.types import Raw
from offramp.stages import TRANSFORMS, Stage, Transform
from offramp.stages.transforms import key_of
from offramp.testing.promise import documented, require, same


def check_transform(transform: nn.Module, rows: Raw) -> None:
    """Raise unless a transform keeps what cascades, bundles and the runtime rely on.

    Args:
        transform: A member of `TRANSFORMS`, with arguments that are not the default ones.
        rows: Some raw input that it takes: at least two examples that differ.

    Raises:
        AssertionError: If a promise is broken; it says which.

    >>> from offramp.stages import Normalize
    >>> check_transform(Normalize(1 / 255), torch.arange(48.0).reshape(3, 1, 4, 4))
    """
    name = type(transform).__name__
    documented(type(transform), name)
    taken = as_rows(rows) if getattr(transform, "reads_rows", False) else as_batch(rows)
    count = batch_size(taken)
    require(count >= 2, "it is shown two examples or more", whose=name)
    before = copy.deepcopy(taken)
    with torch.no_grad():
        whole = transform(taken)
        require(_alike(taken, before), "what it reads stays what it was", whose=name)
        require(batch_size(whole) == count, "no example is lost or added", whose=name)
        require(_alike(transform(taken), whole), "it repeats itself", whose=name)
        for row in range(count):
            one = torch.tensor([row])
            alone = transform(take_rows(taken, one))
            equal = _alike(alone, take_rows(whole, one), padded=True)
            require(equal, "an example does not depend on the others", whose=name)
        back = torch.arange(count).flip(0)
        equal = _alike(transform(take_rows(taken, back)), take_rows(whole, back))
        require(equal, "an example does not depend on its place", whose=name)
        _check_stored(name, transform, taken, whole)


def _check_stored(name: str, transform: nn.Module, taken: Raw, whole: Raw) -> None:
    value = json.loads(json.dumps(to_json(transform), allow_nan=False))
    kind = value.get("kind")
    known = kind in TRANSFORMS and isinstance(transform, TRANSFORMS[kind])  # type: ignore[arg-type]
    require(known, "it is registered under the kind that it is stored with", whose=name)
    again = from_json(Transform, value)
    read = to_json(again) == value and key_of(again) == key_of(transform)
    alike = read and _alike(again(taken), whole)
    require(alike, "it survives JSON bit by bit", whose=name)
    require(not transform.state_dict(), "it has no weights", whose=name)
    found = Stage("a", nn.Identity(), transform=transform).prepare(taken)
    require(_alike(found, whole), "a stage reads what it makes", whose=name)


def _alike(one: object, other: object, *, padded: bool = False) -> bool:
    """Whether two batches are equal; `padded` where the second may be longer.

    A list of tensors counts as the tensor that they make, since images of one size are one.
    """
    if padded and isinstance(one, Tensor) and isinstance(other, RowList):
        one = RowList(one)
    if padded and isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.dim() == other.dim():
            other = other[tuple(map(slice, one.shape))]
        return same(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = list(zip(one.values(), other.values(), strict=True))
        return list(one) == list(other) and all(_alike(*pair, padded=padded) for pair in pairs)
    if isinstance(one, RowList | tuple | list) and isinstance(other, RowList | tuple | list):
        pairs = list(zip(one, other, strict=True))
        return all(_alike(*pair, padded=padded) for pair in pairs)
    equals = getattr(one, "equals", None)  # of a table
    return bool(equals(other)) if equals is not None else same(one, other)
