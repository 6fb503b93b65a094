"""What may be replaced: a folder or file is only ever overwritten if that loses nothing.

A folder of ours is known by its manifest, which lists what else is in it. It is replaced by one of
its own kind, if the user says so, and only while it holds nothing that is not listed. Nothing that
lies above the working folder, the home folder or the inputs of a command is ever replaced.

Layer: _core.
"""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from offramp._core.errors import InputError
from offramp._core.temporaries import is_temporary

_LONGEST = 255  # bytes of a name, on every usual file system
_UNCHANGED = "Nothing was changed."


@final
@dataclass(frozen=True, kw_only=True)
class FolderKind:
    """How to recognize a folder that offramp wrote.

    Args:
        name: What it is, in words, with its article.
        manifest: Its file that says so, and lists others under "files".
        format: What "format" is in the manifest.
        others: Files that belong to it and are not listed.
        open: Whether it may hold folders of other kinds, and more can be written into it.
    """

    name: str
    manifest: str
    format: str
    others: frozenset[str] = frozenset()
    open: bool = False


TRACE = FolderKind(
    name="a trace",
    manifest="trace.json",
    format="offramp-trace",
    others=frozenset({"arrays.safetensors"}),
)
BUNDLE = FolderKind(name="a bundle", manifest="manifest.json", format="offramp-bundle")
ONNX_FOLDER = FolderKind(
    name="a folder of ONNX files",
    manifest="manifest.json",
    format="offramp-onnx",
    others=frozenset({"policy.json", "run.py", "device.mjs"}),
)
RUN = FolderKind(name="a run", manifest="run.json", format="offramp-run", open=True)
SPLIT = FolderKind(name="a split", manifest="split.json", format="offramp-split", open=True)
_CLOSED = (TRACE, BUNDLE, ONNX_FOLDER)


def check_folder(
    path: Path, kind: FolderKind | None, *, overwrite: bool = False, keep: Iterable[Path] = ()
) -> None:
    """Check that a folder of some kind can be written at `path` without a loss.

    Args:
        path: Where it shall lie.
        kind: What will be written; None for what is never replaced.
        overwrite: Whether a folder of that kind, with nothing else in it, may be replaced.
        keep: Inputs and other folders that must not lie in it.

    Raises:
        InputError: If something is there that is not ours, or that may not be overwritten; if
            `path` lies above the working folder, the home folder or what is to be kept, or in a
            bundle, a trace or a folder of ONNX files; if it is a link; or if the place cannot be
            written to.
    """
    check_place(path, keep=keep)
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise InputError(f"{path} must be a folder, but it is a file. {_UNCHANGED}")
    if is_empty(path):
        return
    strange = strangers(path, kind)
    if strange:
        other = "" if kind is None else f" and not only {kind.name} of offramp"
        raise InputError(
            f"{path} is not empty{other}: it holds {strange[0]!r}. Choose another path. "
            f"{_UNCHANGED}"
        )
    if not overwrite:
        raise InputError(_exists(path))


def check_file(path: Path, *, overwrite: bool = False, keep: Iterable[Path] = ()) -> None:
    """Check that a file can be written at `path` without a loss.

    Args:
        path: Where it shall lie.
        overwrite: Whether a plain file that is there may be replaced.
        keep: Inputs, which it must not replace.

    Raises:
        InputError: If it exists and may not be overwritten, or is no plain file; or as
            `check_folder`.
    """
    check_place(path, keep=keep)
    if not os.path.lexists(path):
        return
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no plain file"
        raise InputError(f"{path} must be a file to write, but it is {what}. {_UNCHANGED}")
    if not overwrite:
        raise InputError(_exists(path))


def check_place(path: Path, *, keep: Iterable[Path] = ()) -> None:
    """Check where something shall be written, whatever is there; the errors are `check_folder`'s.

    Args:
        path: Where.
        keep: What must not lie in it.
    """
    if len(os.fsencode(path.name)) > _LONGEST:
        raise InputError(
            f"{path.name[:40]}... must be a name of at most {_LONGEST} bytes, got "
            f"{len(os.fsencode(path.name))}."
        )
    if path.is_symlink():
        raise InputError(f"{path} is a link; name what it leads to. {_UNCHANGED}")
    whole = path.resolve()
    for what, kept in _kept(keep):
        if whole == kept or whole in kept.parents:
            raise InputError(
                f"{path} cannot be written: {what} {kept} lies there. Choose another path. "
                f"{_UNCHANGED}"
            )
    for parent in whole.parents:
        for kind in _CLOSED:
            if _manifest(parent, kind) is not None:
                raise InputError(
                    f"{path} lies in {parent}, which is {kind.name}, where nothing else belongs. "
                    "Choose another path."
                )
    _check_writable(whole)


def strangers(path: Path, kind: FolderKind | None) -> list[str]:
    """Names in a folder that do not belong to a folder of that kind; all, if it is none."""
    value = None if kind is None else _manifest(path, kind)
    listed = set()
    if kind is not None and value is not None:
        listed = {kind.manifest, *kind.others, *_listed(value)}
    found = []
    with os.scandir(path) as entries:
        for entry in entries:
            if is_temporary(entry.name):
                continue
            known = entry.name in listed and not entry.is_symlink()
            if known and entry.is_dir():
                inner = path / entry.name
                known = kind is not None and kind.open
                known = known and (
                    is_empty(inner) or any(not strangers(inner, one) for one in _CLOSED)
                )
            if not known:
                found.append(entry.name)
    return sorted(found)


def is_empty(path: Path) -> bool:
    """True for a folder that holds nothing, or only what a kill left of ours."""
    with os.scandir(path) as entries:
        return all(is_temporary(entry.name) for entry in entries)


def _exists(path: Path) -> str:
    return f"{path} exists already. Choose another path, or pass overwrite=True to replace it."


def _kept(keep: Iterable[Path]) -> Iterable[tuple[str, Path]]:
    """What is never replaced, nor what lies above it."""
    with suppress(OSError):
        yield "the working folder", Path.cwd().resolve()
    with suppress(RuntimeError):
        yield "the home folder", Path.home().resolve()
    for path in keep:
        yield "what this call needs,", Path(path).resolve()


def _manifest(folder: Path, kind: FolderKind) -> dict[str, Any] | None:
    """The manifest of a folder of that kind; None if it is none."""
    path = folder / kind.manifest
    try:
        if path.is_symlink() or not path.is_file():
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value.get("format") == kind.format else None


def _listed(manifest: dict[str, Any]) -> set[str]:
    files = manifest.get("files")
    names = files if isinstance(files, list | dict) else ()
    return {name for name in names if isinstance(name, str)}


def _check_writable(path: Path) -> None:
    """Find out before the work, not after it."""
    parent = next((parent for parent in path.parents if os.path.lexists(parent)), path)
    if not parent.is_dir():
        raise InputError(f"{path} cannot be written: {parent} is no folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: {parent} is read-only. Choose another path.")
