"""Inputs for a cascade, from images, folders of images, npz files and tables, in batches.

Layer: project.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from offramp._core.arrays import tensor_of
from offramp._core.batch import RowList
from offramp._core.errors import FileFormatError, InputError
from offramp._core.ids import as_ids
from offramp._core.naming import utf8_name
from offramp._core.types import Raw
from offramp.bundle import read_manifest
from offramp.bundle.pictures import IMAGE_OPTIONS, ImageFiles, read_image_options
from offramp.data.arrays import read_arrays
from offramp.data.listing import ENDINGS, is_picture, pictures_in
from offramp.data.picture import damage
from offramp.data.table import TABLES, as_numbers, read_table
from offramp.data.texts import LINES, read_texts
from offramp.project.config.sections import DataSection
from offramp.stages import Chain, Columns, Decode, Resize

Id = int | str


@final
@dataclass(kw_only=True)
class InputReader:
    """Reads what the command line names; images that cannot be decoded are skipped and kept.

    Args:
        files: Images and npz files, in order, each with the name its examples go by.
        shape: Shape of one input, `(channels, h, w)` for images; None where nobody knows.
        image_options: "resize" and "orient" of images, as `offramp.data.read_image` takes them.
        array: Name of the inputs in npz files.
        ids: Name of their ids in npz files and tables, or None to count.
        column: Name of the texts in tables.
        columns: Those of numbers in tables that the cascade reads by name; none where it reads
            texts.
        decode: False where the cascade decodes images itself: it is given rows, the bytes of files.
        ignored: How many files in folders are no images, by ending.
        skipped: Files that could not be decoded, filled while reading.
        alone: Whether there is one file, so that its name says nothing; by default where
            `files` holds one.
        kept: What was read of the last file of many examples, for whoever takes `part` after
            `part`; None to keep nothing. Arrays that are not compressed are mapped.
    """

    files: Sequence[tuple[str, Path]]
    shape: tuple[int, ...] | None
    image_options: Mapping[str, Any]
    array: str
    ids: str | None
    decode: bool = True
    ignored: Mapping[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    column: str = "text"
    columns: tuple[str, ...] = ()
    alone: bool | None = None
    kept: dict[Path, Any] | None = None

    @classmethod
    def of(
        cls,
        bundle: Path,
        paths: Sequence[Path],
        *,
        array: str,
        ids: str | None,
        orient: bool | None = None,
        column: str = "text",
    ) -> "InputReader":
        """A reader of the inputs that a bundle takes.

        Args:
            bundle: The folder, which says how its images are cut and turned.
            paths: Images, folders, npz files and texts.
            array: As in the class.
            ids: As in the class.
            column: As in the class.
            orient: True turns images as their EXIF tags say; None as those were that the bundle
                was fitted on, and upright where it was fitted on no folder of images.

        Raises:
            InputError: If a path is missing, is no image, npz file or table, or nothing is there;
                if `orient` is said of a bundle that decodes images itself; or if the bundle reads
                columns by name and a file has none.
        """
        manifest = read_manifest(bundle)
        transforms = [getattr(entry, "transform", None) for entry in manifest.stages]
        options = read_image_options(bundle)
        reads = (Decode,) if manifest.input_shape is not None else (Decode, Resize)
        decode = options.get("decode", True) and not decodes_itself(transforms, reads)
        if not decode and orient is not None:
            raise InputError(
                "--orient and --no-orient must be left out: the bundle decodes images itself, and "
                "its transforms say how they are turned."
            )
        ignored: Counter[str] = Counter()
        files = [f for path in paths for f in _found(path, ignored, alone=len(paths) == 1)]
        columns = columns_read(transforms)
        images = manifest.input_shape is not None or not decode
        texts = [f for _, f in files if images and f.suffix.lower() in (*LINES, *TABLES)]
        if texts:
            raise InputError(
                "The bundle reads images or arrays, and no texts or tables; give images, folders "
                f"of them, or npz files, got {texts[0]}."
            )
        bare = [path for _, path in files if columns and path.suffix.lower() not in TABLES]
        if bare:
            raise InputError(
                f"The bundle reads the columns {list(columns)} by name; give a table with them "
                f"({', '.join(TABLES)}), got {bare[0]}."
            )
        return cls(
            files=files,
            shape=manifest.input_shape,
            image_options={**options, **({} if orient is None else {"orient": orient})},
            array=array,
            ids=ids,
            decode=decode,
            ignored=ignored,
            column=column,
            columns=columns,
        )

    def batches(self, size: int) -> Iterator[tuple[list[Id], Any]]:
        """Ids and inputs `(m, ...)`, or `m` rows, at most `size` at a time, in order."""
        names: list[Id] = []
        images: list[Tensor | bytes] = []
        for name, path in self.files:
            if holds_many(path):
                yield from self._flushed(names, images)
                yield from self._of_many(name, path, size)
                continue
            try:
                images.append(self._image(path))
                names.append(name)
            except FileFormatError:
                self.skipped.append(name)
            if len(images) == size:
                yield from self._flushed(names, images)
        yield from self._flushed(names, images)

    def _flushed(
        self, names: list[Id], images: list[Tensor | bytes]
    ) -> Iterator[tuple[list[Id], Raw]]:
        if images:
            pixels = [image for image in images if isinstance(image, Tensor)]
            yield list(names), torch.stack(pixels) if self.decode else RowList(images)
        names.clear()
        images.clear()

    def _image(self, path: Path) -> Tensor | bytes:
        if not self.decode:
            if wrong := damage(path):
                raise FileFormatError(wrong)
            return path.read_bytes()
        files = ImageFiles(
            shape=self.shape or (),
            resize=self.image_options.get("resize"),
            orient=self.image_options.get("orient", True),
        )
        return torch.from_numpy(files.pixels(path))

    def part(self, turn: int, size: int) -> tuple[list[Id], Raw]:
        """One of the `batches` of a single file of many examples, without those before it."""
        ((name, path),) = self.files
        return self._slice(name, path, turn * size, size)

    def _of_many(self, name: str, path: Path, size: int) -> Iterator[tuple[list[Id], Raw]]:
        held = self._held(path)
        for start in range(0, _count(held[0]), size):
            yield self._slice(name, path, start, size, held)

    def _held(self, path: Path) -> tuple[Any, Any]:
        """Examples of a file and their ids, or None where they are counted."""
        kept = self.kept
        if kept is not None and path in kept:
            return kept[path]  # type: ignore[no-any-return]
        if path.suffix.lower() == ".npz":
            wanted = [self.array] if self.ids is None else [self.array, self.ids]
            found = read_arrays(path, wanted, mapped=kept is not None)
            given = found[self.array]
            if given.ndim == 0:
                raise InputError(f"{path} must hold examples along the first axis, got one number.")
            tensor_of(self.array, given[:0])  # raises where they are no numbers
            ids = None if self.ids is None else as_ids(found[self.ids])
            if ids is not None and len(ids) != len(given):
                raise InputError(
                    f"{path} must have as many ids as inputs ({len(given)}), got {len(ids)}."
                )
            held: tuple[Any, Any] = (given, ids)
        else:
            held = self._table(path)
        if kept is not None:
            kept.clear()
            kept[path] = held
        return held

    def _table(self, path: Path) -> tuple[Any, Any]:
        """Columns of numbers, or texts, and ids of a table; of a .txt its lines."""
        if path.suffix.lower() not in TABLES:
            return RowList(read_texts(path)), None
        wanted = list(self.columns) or [self.column]
        found = read_table(path, [*wanted, *([] if self.ids is None else [self.ids])])
        ids = None if self.ids is None else np.array([str(value) for value in found[self.ids]])
        if not self.columns:
            return RowList(found[self.column]), ids
        return as_numbers(path, {name: found[name] for name in wanted}), ids

    def _slice(
        self, name: str, path: Path, start: int, size: int, held: tuple[Any, Any] | None = None
    ) -> tuple[list[Id], Raw]:
        given, ids = self._held(path) if held is None else held
        some = slice(start, start + size)
        counted = self._counted(name, start, min(start + size, _count(given)))
        named = counted if ids is None else ids[some].tolist()
        if isinstance(given, Mapping):
            return named, {column: values[some] for column, values in given.items()}
        if isinstance(given, list):  # texts
            return named, RowList(given[some])
        rows = given[some]
        rows = np.array(rows)  # of its own: what is mapped is read-only
        taken = (
            _arranged(tensor_of(self.array, rows), self.shape, path)
            if self.decode
            else RowList(rows)
        )
        return named, taken

    def _counted(self, name: str, start: int, stop: int) -> list[Id]:
        """Ids of rows: their numbers, with the file's name where there are several."""
        alone = len(self.files) == 1 if self.alone is None else self.alone
        return [k if alone else f"{name}[{k}]" for k in range(start, stop)]


def holds_many(path: Path) -> bool:
    """Whether a file has several examples: arrays, or texts."""
    return path.suffix.lower() in (".npz", *LINES, *TABLES)


def decodes_itself(
    transforms: Iterable[nn.Module | None], reads: tuple[type[nn.Module], ...] = (Decode,)
) -> bool:
    """Whether networks with these transforms read files as they are: one begins so.

    Args:
        transforms: Of the networks.
        reads: With what one begins then. `Resize` takes files as well as pixels.

    >>> decodes_itself([None, Chain([Decode()])]), decodes_itself([None])
    (True, False)
    """
    first = [each.steps[0] if isinstance(each, Chain) else each for each in transforms]
    return any(isinstance(step, reads) for step in first)


def columns_read(transforms: Iterable[nn.Module | None]) -> tuple[str, ...]:
    """The columns of numbers that networks with these transforms read by name, each once.

    >>> columns_read([Columns(["a", "b"]), Chain([Columns(["b", "c"])]), None])
    ('a', 'b', 'c')
    """
    first = [each.steps[0] if isinstance(each, Chain) else each for each in transforms]
    read = [step for step in first if isinstance(step, Columns) and step.stack]
    names = [name for step in read if not isinstance(step.names, str) for name in step.names]
    return tuple(dict.fromkeys(names))


def image_options(data: DataSection | None) -> dict[str, dict[str, Any]]:
    """What a bundle remembers of how the images were read that it was fitted on, as extra files."""
    if data is None or data.kind != "folder":
        return {}
    return {IMAGE_OPTIONS: {"orient": True, **data.options}}


def _found(path: Path, ignored: Counter[str], *, alone: bool) -> list[tuple[str, Path]]:
    """Names and files of what stands at a path; among several paths the names tell which."""
    if path.is_dir():
        listing = pictures_in(path)
        ignored.update(listing.ignored)
        if not listing.files:
            raise InputError(f"{path} holds no images ({', '.join(ENDINGS)}).")
        return [(_named(f.relative_to(path) if alone else f), f) for f in listing.files]
    if not path.exists():
        raise InputError(f"There is no such input: {path}.")
    if not holds_many(path) and not is_picture(path):
        raise InputError(
            f"{path} is neither an image ({', '.join(ENDINGS)}), nor an npz file, nor "
            f"texts or a table ({', '.join((*LINES, *TABLES))})."
        )
    return [(_named(Path(path.name) if alone else path), path)]


def _count(given: Any) -> int:  # noqa: ANN401  (columns, an array, or texts)
    return len(next(iter(given.values())) if isinstance(given, Mapping) else given)


def _named(path: Path) -> str:
    return utf8_name(path.as_posix())


def _arranged(inputs: Tensor, shape: tuple[int, ...] | None, path: Path) -> Tensor:
    """Inputs with the axes that the bundle takes: channels may be last, or left out if one."""
    if inputs.dtype == torch.float64:
        inputs = inputs.to(torch.float32)
    if shape is None or tuple(inputs.shape[1:]) == shape:
        return inputs
    if len(shape) == 3 and tuple(inputs.shape[1:]) == (*shape[1:], shape[0]):
        return inputs.permute(0, 3, 1, 2).contiguous()
    if len(shape) == 3 and shape[0] == 1 and tuple(inputs.shape[1:]) == shape[1:]:
        return inputs[:, None]
    raise InputError(
        f"The inputs in {path} must have shape (n, {', '.join(map(str, shape))}), got "
        f"{tuple(inputs.shape)}."
    )
