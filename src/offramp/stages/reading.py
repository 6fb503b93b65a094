"""Networks that write into their input (`x -= mean`), and batches that stay what they were.

Layer: stages.  Source: docs/adr/0030.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offramp._core.batch import RowList, is_table
from offramp._core.errors import UnsupportedError

_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})  # that nobody can write into


@final
class Reading:
    """Has something read a batch, which is afterwards what it was.

    The first batch is handed out as a copy and looked at afterwards: what writes into its input
    gets copies from then on, what does not gets the batch itself. Should it write later all the
    same, torch's version counter tells; tensors made in inference mode have none.

    Args:
        what: Who reads, for the message.
        copies: True where it is known that only copies are safe.

    >>> x = torch.ones(2)
    >>> reading = Reading("Stage 'a'")
    >>> reading(lambda given: given.sub_(1), x).tolist(), x.tolist(), reading.writes
    ([0.0, 0.0], [1.0, 1.0], True)
    """

    def __init__(self, what: str, *, copies: bool = False) -> None:
        self._what = what
        self.writes = True if copies else None  # None until the first batch has been read

    def __call__(self, read: Callable[[Any], Any], batch: Any) -> Any:  # noqa: ANN401
        """What `read` gives for a batch or a carry.

        It costs less than a microsecond more than `read`, as it happens to every batch.
        """
        if self.writes is False:
            if type(batch) is not Tensor:
                return self._watched(read, batch)
            if batch.is_inference():
                return read(batch)
            version = batch._version
            result = read(batch)
            if batch._version != version:
                self._check_again(read, batch)
            return result
        if torch.compiler.is_compiling():  # a graph has no state to look at
            return read(batch)
        return read(copied(batch)) if self.writes else self._first(read, batch)

    def _watched(self, read: Callable[[Any], Any], batch: Any) -> Any:  # noqa: ANN401
        """Of several tensors."""
        kind = type(batch)
        if kind is not dict and kind is not tuple:
            return read(batch)
        parts = batch.values() if kind is dict else batch
        versions = [p._version for p in parts if type(p) is Tensor and not p.is_inference()]
        result = read(batch)
        if versions and versions != [
            p._version for p in parts if type(p) is Tensor and not p.is_inference()
        ]:
            self._check_again(read, batch)
        return result

    def _first(self, read: Callable[[Any], Any], batch: Any) -> Any:  # noqa: ANN401
        given = copied(batch)
        versions = _versions(given)
        result = read(given)
        self.writes = _versions(given) != versions or not _same(given, batch)
        return result

    def _check_again(self, read: Callable[[Any], Any], batch: Any) -> None:  # noqa: ANN401
        """Raise if it writes into a copy as well; else somebody else wrote meanwhile."""
        given = copied(batch)
        versions = _versions(given)
        read(given)
        if _versions(given) == versions:
            return
        self.writes = True
        raise UnsupportedError(
            f"{self._what} has written into its input, which it did not do on the first batch, so "
            "this batch is spoiled for whoever reads it next. From now on it is given copies: give "
            "the batch again, from its source. Better, let the network compute x = x - mean "
            "instead of x -= mean."
        )


def copied(batch: Any) -> Any:  # noqa: ANN401  (a batch or a carry)
    """A copy of a batch or carry, down to the arrays and pictures within its rows.

    Tensors get a version counter. What nobody can copy, such as a lock or a picture whose file is
    broken, is handed on as it is.

    >>> rows = [{"pixels": np.ones(2)}]
    >>> copied(rows)[0]["pixels"] += 1
    >>> rows
    [{'pixels': array([1., 1.])}]
    """
    rows = type(batch) is RowList and _PLAIN.issuperset(map(type, batch))  # nothing of torch
    if rows or not torch.is_inference_mode_enabled():
        return _own(batch)
    with torch.inference_mode(False), torch.no_grad():
        return _own(batch)


def _own(batch: Any) -> Any:  # noqa: ANN401
    kind = type(batch)
    if kind in _PLAIN or isinstance(batch, np.generic | nn.Module):
        return batch
    if isinstance(batch, Tensor):
        return batch.clone()
    if isinstance(batch, Mapping):
        return _own_mapping(batch)
    if isinstance(batch, tuple | list):
        make: Any = kind
        parts = batch if _PLAIN.issuperset(map(type, batch)) else [_own(part) for part in batch]
        return make(*parts) if hasattr(batch, "_fields") else make(parts)
    if isinstance(batch, np.ndarray):
        return _own_array(batch)
    if is_table(batch):
        return _own_table(batch)
    try:
        return _own_picture(batch) if kind.__module__.startswith("PIL.") else copy.deepcopy(batch)
    except Exception:  # noqa: BLE001  (whatever objects of others raise)
        return batch


def _own_mapping(batch: Mapping[Any, Any]) -> Any:  # noqa: ANN401
    parts = {name: _own(part) for name, part in batch.items()}
    if type(batch) is dict:
        return parts
    made: Any = copy.copy(batch)  # of its own kind: a head may read attributes of it
    for name, part in parts.items():
        if part is not batch[name]:
            made[name] = part
    return made


def _own_array(batch: NDArray[Any]) -> NDArray[Any]:
    made = batch.copy()
    if made.dtype.hasobject and not made.dtype.names:
        for place, part in enumerate(batch.flat):
            made.flat[place] = _own(part)
    return made


def _own_table(batch: Any) -> Any:  # noqa: ANN401  (of pandas)
    made = batch.copy()  # pandas copies no objects
    for k, kind in enumerate(batch.dtypes):
        values = batch.iloc[:, k].to_numpy()
        if str(kind) == "object" and not _PLAIN.issuperset(map(type, values)):
            series = sys.modules["pandas"].Series
            made.isetitem(k, series(_own_array(values), index=made.index, dtype=object))
    return made


def _own_picture(picture: Any) -> Any:  # noqa: ANN401  (of Pillow)
    if getattr(picture, "is_animated", False):  # a copy would have one frame
        return picture
    made = picture.copy()
    for name in ("format", "filename"):
        if hasattr(picture, name):
            setattr(made, name, getattr(picture, name))
    return made


def _leaves(batch: Any) -> Iterator[Tensor | NDArray[Any]]:  # noqa: ANN401
    """The tensors and arrays of a batch or carry, in order."""
    if isinstance(batch, Tensor | np.ndarray):
        yield batch
    elif isinstance(batch, Mapping):
        yield from _leaves(list(batch.values()))
    elif isinstance(batch, tuple | list) and not _PLAIN.issuperset(map(type, batch)):
        for part in batch:
            yield from _leaves(part)


def _versions(batch: Any) -> list[int]:  # noqa: ANN401
    tensors = [leaf for leaf in _leaves(batch) if isinstance(leaf, Tensor)]
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401
    return all(map(_equal, _leaves(one), _leaves(other)))


def _equal(one: Tensor | NDArray[Any], other: Tensor | NDArray[Any]) -> bool:
    if isinstance(one, np.ndarray):
        if one.dtype.hasobject:
            return True
        return bool(((one == other) | ((one != one) & (other != other))).all())
    if not isinstance(other, Tensor) or one.layout != torch.strided or one.is_meta:
        return True
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
