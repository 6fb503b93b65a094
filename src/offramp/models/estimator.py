"""A fitted classifier of scikit-learn as a module that reads rows of any type.

It keeps the classifier as skops writes it, in a buffer: so its bytes are weights like others, in
the safetensors of a bundle and in every digest. Whoever reads them opens them, naming the types
that may be made.

Layer: models.  Source: docs/adr/0050.
"""

import io
import re
import zipfile
from collections.abc import Collection
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from offramp._core.arrays import kind_of
from offramp._core.batch import RowList, is_table
from offramp._core.errors import FileFormatError, InputError, MissingExtraError, UnsupportedError
from offramp._core.optional import imported

Method = Literal["predict_proba", "decision_function"]
_SCHEMA = "schema.json"
_YEAR = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can say


@final
class Estimator(nn.Module):
    """Asks a classifier about the rows of a batch.

    Args:
        size: Number of bytes that hold it; 0 where none do.
        method: What it is asked: "predict_proba" or "decision_function".
        classes: How many classes it has.

    Raises:
        InputError: If a number is none of these.
    """

    reads_rows = True
    skops: Tensor

    def __init__(self, *, size: int, method: Method, classes: int) -> None:
        super().__init__()
        if size < 0 or classes < 2 or method not in ("predict_proba", "decision_function"):
            raise InputError(
                "size must be at least 0, classes at least 2, and method 'predict_proba' or "
                f"'decision_function', got {size}, {classes} and {method!r}."
            )
        self.method, self.classes = method, classes
        self.why_not = ""  # it cannot be part of a bundle
        self._asked: Any = None
        self.register_buffer("skops", torch.empty(size, dtype=torch.uint8))

    @classmethod
    def holding(cls, estimator: Any, method: Method, classes: int) -> "Estimator":  # noqa: ANN401
        """A module of a fitted classifier; what skops cannot write is held without its bytes."""
        content, why = b"", ""
        try:
            content = stored(estimator)
        except (MissingExtraError, UnsupportedError) as error:
            why = str(error)
        made = cls(size=len(content), method=method, classes=classes)
        if content:
            made.skops.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        made._asked, made.why_not = estimator, why
        return made

    @property
    def content(self) -> bytes:
        """The classifier as skops writes it."""
        return bytes(self.skops.cpu().numpy().tobytes())

    def open(self, allow_types: Collection[str] = ()) -> None:
        """Make the classifier out of its bytes.

        Args:
            allow_types: Types that may be made beside those that skops trusts, by name.

        Raises:
            UnsupportedError: If there are others in it; they are named.
            FileFormatError: If the bytes are none of a classifier with these classes.
            MissingExtraError: Without the extra "sklearn".
        """
        found = opened(self.content, allow_types)
        count = np.shape(getattr(found, "classes_", ()))
        if count != (self.classes,) or not callable(getattr(found, self.method, None)):
            raise FileFormatError(
                f"A {type(found).__name__} is no classifier of {self.classes} classes with "
                f"{self.method}."
            )
        self._asked = found

    def forward(self, rows: Any) -> Tensor:  # noqa: ANN401  (rows of any type)
        """Probabilities or scores `(m, c)`, float32."""
        if self._asked is None:
            raise UnsupportedError("The classifier has not been opened; offramp.load does it.")
        given = rows_of(rows)
        if len(given) == 0:
            return torch.zeros(0, self.classes)
        said = np.asarray(getattr(self._asked, self.method)(given), dtype=np.float32)
        if said.ndim == 1 and self.classes == 2:
            said = np.stack([np.zeros_like(said), said], axis=1)
        if said.shape != (len(given), self.classes):
            raise InputError(
                f"{self.method} of {type(self._asked).__name__} must give ({len(given)}, "
                f"{self.classes}) numbers, got the shape {said.shape}."
            )
        return torch.from_numpy(np.ascontiguousarray(said))

    def extra_repr(self) -> str:
        """Whom it asks what."""
        return f"{type(self._asked).__name__}, {self.method}"


def rows_of(rows: Any) -> Any:  # noqa: ANN401
    """Rows as a classifier takes them: an array, a list or a table."""
    if isinstance(rows, Tensor):
        return rows.cpu().numpy()
    if isinstance(rows, RowList):
        return list(rows)
    if is_table(rows):
        return rows
    raise InputError(
        "A classifier of scikit-learn must get an array, a list or a table of rows, got "
        f"{kind_of(rows)}. Of columns make a table: pandas.DataFrame(columns)."
    )


def stored(estimator: Any) -> bytes:  # noqa: ANN401
    """A classifier as skops writes it: equal ones give equal bytes in every process.

    Raises:
        MissingExtraError: If skops is not installed.
        UnsupportedError: If skops cannot write it.
    """
    skops = imported("skops.io", "sklearn")
    try:
        content = skops.dumps(estimator)
    except Exception as error:
        raise UnsupportedError(
            f"skops cannot write a {type(estimator).__name__}: {error}"
        ) from error
    return _in_order(content)


def _in_order(content: bytes) -> bytes:
    """The same with objects numbered as they come, in place of addresses in memory."""
    with zipfile.ZipFile(io.BytesIO(content)) as held:
        schema = held.read(_SCHEMA).decode()
        named = dict.fromkeys(re.findall(r'"(?:__id__": |file": ")([\w-]+)', schema))
        numbers = {name: str(k) for k, name in enumerate(named)}
        pattern = r'("__id__": |"file": ")([\w-]+)'
        schema = re.sub(pattern, lambda found: found[1] + numbers[found[2]], schema)
        files = {_SCHEMA: schema.encode()}
        for name in sorted(set(held.namelist()) - {_SCHEMA}):
            stem, dot, ending = name.partition(".")
            files[numbers.get(stem, stem) + dot + ending] = held.read(name)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as out:
        for name in sorted(files):
            out.writestr(zipfile.ZipInfo(name, _YEAR), files[name])
    return made.getvalue()


def untrusted(content: bytes) -> list[str]:
    """The types in it that skops does not trust, by name."""
    found: list[str] = imported("skops.io", "sklearn").get_untrusted_types(data=content)
    return found


def opened(content: bytes, allow_types: Collection[str] = ()) -> Any:  # noqa: ANN401
    """What `stored` has written; as `Estimator.open` says."""
    skops = imported("skops.io", "sklearn")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as held:
            if sum(info.file_size for info in held.infolist()) > len(content):
                raise ValueError("it is compressed, or parts of it overlap")
        unknown = sorted(set(untrusted(content)) - set(allow_types))
        if not unknown:
            return skops.loads(content, trusted=sorted(allow_types))
    except Warning:
        raise
    except Exception as error:
        raise FileFormatError(f"It cannot be read as a classifier: {error}") from error
    raise UnsupportedError(
        f"It would make objects of the types {unknown}, which skops does not trust. If you trust "
        f"where it comes from, say so: load(..., allow_types={unknown}), or on the shell "
        f"{' '.join(f'--allow-types {name}' for name in unknown)}."
    )
