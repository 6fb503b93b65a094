"""What a model reads: told to clients, and made of what they send.

Images are decoded here, and brought to the size that all stages read where they read the same, so
that the threads that run stages do nothing else.

Layer: serve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from offramp._core.batch import RowList, batch_size, only_tensors
from offramp._core.errors import FileFormatError, InputError
from offramp._core.open_inference import WireTensor, datatype_of
from offramp._core.types import Raw
from offramp.bundle.accelerate import known_input
from offramp.bundle.pictures import ImageFiles
from offramp.runtime import Adaptive
from offramp.stages import Cascade, HeldStages, Stage
from offramp.stages.transforms import (
    Chain,
    Columns,
    Decode,
    Look,
    Normalize,
    Resize,
    Tokenize,
)

#: "tensor": numbers. "image": files of images. "text": texts. "columns": several by name, of any
#: of these. "rows": whatever a function on rows takes.
Kind = Literal["tensor", "image", "text", "columns", "rows"]
_NAMES: dict[Kind, str] = {"tensor": "input", "image": "image", "text": "text", "rows": "rows"}


@final
@dataclass(frozen=True, kw_only=True)
class Column:
    """One input of a model.

    Args:
        name: Of it.
        kind: What it holds.
        datatypes: Which may come, the first is told; any where it is empty.
        shape: Of one example, -1 for any size; None where nobody knows.
    """

    name: str
    kind: Kind
    datatypes: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = ()

    @property
    def told(self) -> dict[str, Any]:
        """As the metadata of a model tell it."""
        kind = next(iter(self.datatypes), "FP32" if self.kind == "tensor" else "BYTES")
        shape = (-1,) if self.shape is None else self.shape
        return {"name": self.name, "datatype": kind, "shape": [-1, *shape]}


@final
class Inputs:
    """What one model reads.

    Args:
        model: It.
        max_pixels: Of an image.
        files: How files of images become numbers, where the bundle says so; kept for pixels alone.

    `kind` says what is sent, `columns` the inputs, and `model` is what runs: where all stages
    begin with the same transform of images, it was taken from them and is applied here.
    """

    def __init__(self, model: Adaptive, max_pixels: int, files: ImageFiles | None = None) -> None:
        held = [stage for stage in held_by(model) if stage.source is None]  # the reference too
        self._max_pixels = max_pixels
        self.columns = _columns(held, getattr(model.cascade, "input_shape", None))
        self.kind: Kind = "columns" if any(map(_names, held)) else self.columns[0].kind
        pixels = self.kind == "tensor" and "UINT8" in self.columns[0].datatypes
        self.files = files if pixels and len(self.columns) == 1 else None
        self._transform: nn.Module | None = None
        self.model = model
        self._domains = [stage.domain for stage in held if stage.domain is not None]
        self._looks = [(s.transform, Look(f"stage {s.name!r}", s.part.domain)) for s in held]
        self._takes_bytes = all(most >= 255 for _, most in self._domains)  # bytes say enough then
        keys = {stage.transform_key for stage in held}
        if self.kind == "image" and len(keys) == 1 and None not in keys:
            self._transform, self.model = held[0].transform, _without_transforms(model)

    # ---- what comes

    def of_tensors(self, tensors: Sequence[WireTensor]) -> Raw:
        """Raw input of a request's tensors; decodes, so it takes its time.

        Raises:
            InputError: If there are others than the model reads, or they are of another type.
            FileFormatError: If an image cannot be decoded.
        """
        given = {tensor.name: tensor for tensor in tensors}
        if self.kind != "columns" and len(self.columns) == 1 and len(given) == 1:
            (tensor,) = tensors  # whatever it is called: there is only one
            return self._ready(self._column(self.columns[0], tensor))
        names = [column.name for column in self.columns]
        if set(given) != set(names):
            raise InputError(f"inputs must be {names}, got {list(given)}.")
        found = {column.name: self._column(column, given[column.name]) for column in self.columns}
        if self.kind == "tensor" and not self._by_name:
            return tuple(found.values())
        batch_size(found)
        return self._ready(found)

    @property
    def _by_name(self) -> bool:
        return not self.columns[0].name.startswith("input_")

    def of_rows(self, rows: Sequence[Any]) -> Raw:
        """Raw input of rows: bytes of images, texts, objects with fields, or nested numbers.

        Raises:
            InputError: If they are of another kind than the model reads.
            FileFormatError: If an image cannot be decoded.
        """
        if self.kind == "image":
            return self._ready(RowList(self._image(k, row) for k, row in enumerate(rows)))
        if self.kind == "text":
            odd = next((row for row in rows if not isinstance(row, str)), None)
            if odd is not None:
                raise InputError(f"rows must be texts, got {type(odd).__name__}.")
            return RowList(rows)
        if self.kind == "tensor" and len(self.columns) == 1:
            return self._ready(self._numbers(self.columns[0], self._pixels(rows)))
        if self.kind == "rows":
            return RowList(rows)
        return self._of_objects(rows)

    def _of_objects(self, rows: Sequence[Any]) -> Raw:
        names = [column.name for column in self.columns]
        for k, row in enumerate(rows):
            if not isinstance(row, Mapping) or not set(names) <= set(row):
                held = sorted(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
                raise InputError(f"rows[{k}] must be an object with {names}, got {held}.")
        found: dict[str, Any] = {}
        for column in self.columns:
            values = [row[column.name] for row in rows]
            if column.kind == "image":
                found[column.name] = RowList(self._image(k, v) for k, v in enumerate(values))
            elif column.kind == "tensor":
                found[column.name] = self._numbers(column, values)
            else:
                found[column.name] = RowList(values)
        if self.kind == "tensor" and not self._by_name:
            return tuple(found.values())
        return self._ready(found)

    def _numbers(self, column: Column, rows: Sequence[Any]) -> Tensor:
        kind = column.datatypes[0] if column.datatypes else "FP32"
        whole = kind.startswith(("INT", "UINT"))
        try:
            array = np.array(rows)
        except ValueError:
            raise InputError(f"rows must be numbers of one shape for {column.name!r}.") from None
        if array.dtype.kind not in ("iu" if whole else "iuf"):
            wanted = "whole numbers" if whole else "numbers"
            raise InputError(f"rows must be {wanted} for {column.name!r}, as {kind} says.")
        dtype = _NUMPY[kind]
        with np.errstate(over="ignore"):  # it is looked at below
            made = array.astype(dtype)
        if not (np.array_equal(made, array) if whole else bool(np.isfinite(made).all())):
            raise InputError(f"rows must be numbers that fit into {kind} for {column.name!r}.")
        return torch.from_numpy(_of_shape(column, made, kind))

    def _column(self, column: Column, tensor: WireTensor) -> Raw:
        where = f"inputs[{tensor.name!r}]"
        if column.datatypes and tensor.datatype not in column.datatypes:
            wanted = " or ".join(column.datatypes)
            raise InputError(f"{where}.datatype must be {wanted}, got {tensor.datatype}.")
        values = tensor.values
        if values.ndim == 0:
            raise InputError(f"{where}.shape must begin with the number of examples, got [].")
        if tensor.datatype != "BYTES":
            return torch.from_numpy(_of_shape(column, values, tensor.datatype))
        if values.ndim > 1 and values.size != len(values):
            raise InputError(
                f"{where}.shape must be [n] or [n, 1], one entry for each example, got "
                f"{list(values.shape)}."
            )
        rows = values.reshape(-1).tolist()
        if column.kind == "image":
            return RowList(self._image(k, row) for k, row in enumerate(rows))
        try:
            return RowList(row.decode() for row in rows)
        except UnicodeDecodeError:
            raise InputError(f"{where} must be texts in UTF-8, got other bytes.") from None

    # ---- images

    def _image(self, k: int, content: Any) -> Any:  # noqa: ANN401  (an image of Pillow)
        from PIL import Image  # here: loaded where somebody decodes

        from offramp._core.picture import FORMATS

        if not isinstance(content, bytes):
            raise InputError(
                f"Row {k} must be the bytes of an image file, or an object with them in base64 as "
                f"'b64', got {type(content).__name__}."
            )
        try:
            image = Image.open(BytesIO(content), formats=FORMATS)
            pixels = image.width * image.height
            if pixels > self._max_pixels:
                raise InputError(
                    f"Row {k} must be an image of at most {self._max_pixels} pixels, got "
                    f"{image.width} x {image.height}."
                )
            image.load()
        except InputError:
            raise
        except Exception as error:
            raise FileFormatError(f"Row {k} cannot be read as an image: {_plain(error)}") from error
        return image

    def _pixels(self, rows: Sequence[Any]) -> Sequence[Any]:
        """The rows; files of images among them become numbers, as `offramp predict` reads them."""
        if (files := self.files) is None:
            return rows
        found = enumerate(rows)
        return [files.pixels(self._image(k, x)) if isinstance(x, bytes) else x for k, x in found]

    def _ready(self, batch: Raw) -> Raw:
        sure = isinstance(batch, Tensor) and batch.dtype is torch.uint8 and self._takes_bytes
        for transform, look in () if sure else self._looks:  # each request is of somebody else
            look(transform, batch, again=True)
        if self._transform is None:
            return batch
        with torch.inference_mode():
            ready: Raw = self._transform(batch)
        return ready

    # ---- made up

    def noise(self, n: int) -> Raw | None:
        """So many made-up examples to warm stages with; None where nobody knows how they look."""
        drawn = np.random.default_rng(0)
        parts = [self._noise_of(column, n, drawn) for column in self.columns]
        if any(part is None for part in parts):
            return None
        if len(parts) == 1 and self.kind != "columns":
            return self._ready(parts[0])
        if self.kind == "tensor" and not self._by_name:
            return tuple(parts)
        return {column.name: part for column, part in zip(self.columns, parts, strict=True)}

    def _noise_of(self, column: Column, n: int, drawn: np.random.Generator) -> Any:  # noqa: ANN401
        if column.kind == "image":
            from PIL import Image

            each = (drawn.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(n))
            return RowList(Image.fromarray(pixels) for pixels in each)
        if column.kind == "text":
            return RowList("warm up " * (1 + k % 4) for k in range(n))
        if column.kind != "tensor" or column.shape is None:
            return None
        shape = (n, *(8 if size == -1 else size for size in column.shape))
        dtype = _NUMPY[column.datatypes[0] if column.datatypes else "FP32"]
        low, high = next(iter(self._domains), (0.0, 1.0))
        if dtype.kind == "f":
            return torch.from_numpy((drawn.random(shape) * (high - low) + low).astype(dtype))
        most = 1 if dtype.kind == "b" else min(int(high), np.iinfo(dtype).max)
        return torch.from_numpy(drawn.integers(0, max(1, most) + 1, shape).astype(dtype))


_NUMPY = {
    **{f"UINT{8 * k}": np.dtype(f"u{k}") for k in (1, 2, 4, 8)},
    **{f"INT{8 * k}": np.dtype(f"i{k}") for k in (1, 2, 4, 8)},
    **{f"FP{8 * k}": np.dtype(f"f{k}") for k in (2, 4, 8)},
    "BOOL": np.dtype(bool),
}


def _plain(error: Exception) -> str:
    """What Pillow says, without the address in memory that it calls unknown files by."""
    said = str(error) or type(error).__name__
    return "its format is not known." if "BytesIO" in said else said


def _of_shape(column: Column, values: Any, kind: str) -> Any:  # noqa: ANN401
    """The same array, if its examples have the shape that the model reads."""
    wanted, got = column.shape, values.shape[1:]
    if wanted is None:
        return values
    if len(got) != len(wanted) or any(w not in (-1, g) for w, g in zip(wanted, got, strict=True)):
        raise InputError(
            f"The shape of {column.name!r} must be {[-1, *wanted]} ({kind}, examples first), got "
            f"{list(values.shape)}."
        )
    return values


# ---- what stages read


def _steps(stage: Stage) -> list[nn.Module]:
    transform = stage.transform
    if transform is None:
        return []
    return list(transform.steps) if isinstance(transform, Chain) else [transform]


def _names(stage: Stage) -> tuple[str, ...]:
    """The columns that a stage takes by name."""
    first = next(iter(_steps(stage)), None)
    if not isinstance(first, Columns):
        return ()
    return (first.names,) if isinstance(first.names, str) else first.names


def _columns(stages: Sequence[Stage], input_shape: Sequence[int] | None) -> tuple[Column, ...]:
    found: dict[str, Column] = {}
    for stage in stages:
        steps = _steps(stage)
        if names := _names(stage):
            numbers = not isinstance(steps[0].names, str) and steps[0].stack
            for name in names:
                column = Column(name=name, kind="tensor") if numbers else _read(name, steps[1:])
                found[name] = found.get(name, column)
        elif not found:
            if isinstance(next(iter(steps), None), Decode | Resize | Tokenize):
                column = _read(None, steps)
                found[column.name] = column
            elif stage.reads_rows:
                found["rows"] = Column(name="rows", kind="rows", shape=None)
            else:
                return _tensors(stages, input_shape)
    return tuple(found.values())


def _read(name: str | None, steps: Sequence[nn.Module]) -> Column:
    """What the first of some transforms reads."""
    first = next(iter(steps), None)
    kind: Kind = "rows"
    if isinstance(first, Tokenize):
        kind = "text"
    elif isinstance(first, Decode | Resize):
        kind = "image"
    types = {"image": ("BYTES", "UINT8") if isinstance(first, Resize) else ("BYTES",)}
    types["text"] = ("BYTES",)
    shape = None if isinstance(first, Resize) or kind == "rows" else ()
    name = _NAMES[kind] if name is None else name
    return Column(name=name, kind=kind, datatypes=types.get(kind, ()), shape=shape)


def _tensors(stages: Sequence[Stage], input_shape: Sequence[int] | None) -> tuple[Column, ...]:
    known = known_input(list(stages), input_shape)
    if known is None:
        return (Column(name="input", kind="tensor", shape=None),)
    example, typed = known
    if not only_tensors(example):
        return (Column(name="rows", kind="rows", shape=None),)
    if isinstance(example, Tensor):
        parts = {"input": example}
    elif isinstance(example, Mapping):
        parts = dict(example)
    else:
        parts = {f"input_{k}": part for k, part in enumerate(example)}
    first = next((step for stage in stages for step in _steps(stage)), None)
    columns = []
    for name, part in parts.items():
        types: tuple[str, ...] = (datatype_of(part.numpy()),)
        if not typed and isinstance(first, Normalize):
            types = ("UINT8", "FP32") if first.scale != 1.0 else ("FP32", "UINT8")
        elif not typed and first is not None:
            types = ()
        ids = part.dtype in (torch.int32, torch.int64)  # of tokens, of texts of any length
        sizes = [-1] * (part.dim() - 1) if ids and not types[1:] else part.shape[1:]
        columns.append(Column(name=name, kind="tensor", datatypes=types, shape=tuple(sizes)))
    return tuple(columns)


def held_by(model: Adaptive) -> Cascade | HeldStages:
    """The stages of a model, those of its reference and of its gears among them."""
    cascade = model.cascade
    if isinstance(cascade, Cascade | HeldStages):
        return cascade
    raise InputError(f"model must be made of a cascade, got {type(cascade).__name__}.")


def _without_transforms(model: Adaptive) -> Adaptive:
    cascade = held_by(model)
    stages = [s if s.source is not None else s.replaced(transform=None) for s in cascade]
    held = cascade.with_stages(stages)
    return Adaptive(held, model.choice, costs=model.costs, gears=model.gears)
