"""Networks that write into their input (`x -= mean`), and batches that stay what they were.

Layer: stages.  Source: docs/adr/0030.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from offramp._core.batch import is_table
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
        """What `read` gives for a batch or a carry."""
        if self.writes is False:
            return self._watched(read, batch)
        if torch.compiler.is_compiling():  # a graph has no state to look at
            return read(batch)
        return read(copied(batch)) if self.writes else self._first(read, batch)

    def _watched(self, read: Callable[[Any], Any], batch: Any) -> Any:  # noqa: ANN401
        """The batch itself; costs less than a microsecond, as it happens to every batch."""
        if type(batch) is Tensor:
            if batch.is_inference():
                return read(batch)
            version = batch._version
            result = read(batch)
            if batch._version != version:
                self._check_again(read, batch)
            return result
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
    """A copy of a batch or carry: of its tensors, with a version counter, its lists and tables.

    >>> copied({"x": torch.ones(1)})
    {'x': tensor([1.])}
    """
    if not torch.is_inference_mode_enabled():
        return _mapped(batch)
    with torch.inference_mode(False), torch.no_grad():
        return _mapped(batch)


def _mapped(batch: Any) -> Any:  # noqa: ANN401
    if isinstance(batch, Tensor):
        return batch.clone()
    if isinstance(batch, Mapping):
        made: Any = copy.copy(batch)  # of its own kind: a head may read attributes of it
        for name, part in batch.items():
            if isinstance(part, Tensor):
                made[name] = part.clone()
        return made
    if isinstance(batch, tuple | list):
        make: Any = type(batch)
        parts = batch if _PLAIN.issuperset(map(type, batch)) else [_mapped(part) for part in batch]
        return make(*parts) if hasattr(batch, "_fields") else make(parts)
    return batch.copy() if is_table(batch) else batch


def _tensors(batch: Any) -> list[Tensor]:  # noqa: ANN401
    if isinstance(batch, Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if not isinstance(batch, Mapping | tuple | list):
        return []
    return [part for part in parts if isinstance(part, Tensor)]


def _versions(batch: Any) -> list[int]:  # noqa: ANN401
    return [t._version for t in _tensors(batch) if not t.is_inference()]


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401
    pairs = zip(_tensors(one), _tensors(other), strict=True)
    return all(_equal(a, b) for a, b in pairs if a.layout == torch.strided and not a.is_meta)


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
