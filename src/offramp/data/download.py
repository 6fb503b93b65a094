"""Archives fetched whole or not at all, checked against a published checksum.

Layer: data.
"""

import hashlib
import shutil
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import final

from offramp._core.errors import FileFormatError, UnsupportedError
from offramp._core.files import atomic_folder, is_full, storing
from offramp._core.progress import progress_bar
from offramp._core.temporaries import sweep, temporary_folder

_CHUNK = 1 << 16  # bytes between two steps of the progress bar


@final
@dataclass(frozen=True, kw_only=True)
class Archive:
    """A tar archive on the web.

    Args:
        url: Where it lies.
        checksum: Published checksum, "md5:..." or "sha256:...".
        folder: The folder inside that is wanted; anything else in the archive is left out.
    """

    url: str
    checksum: str
    folder: str


def fetch(archive: Archive, root: Path) -> Path:
    """Download an archive into `root` and unpack its folder there, with a progress bar.

    An interrupted download leaves nothing behind; an archive that is there already and has the
    right checksum is not fetched again, and stays. One that was fetched is removed once it is
    unpacked.

    Args:
        archive: What to fetch.
        root: Where the folder shall lie; it is made if need be.

    Returns:
        The unpacked folder.

    Raises:
        FileFormatError: If the checksum is another one, or the archive cannot be unpacked or
            would write outside of its folder; nothing is left then.
        UnsupportedError: If the address cannot be reached or the download breaks off.
        InputError: If there is a folder of that name already.
        StorageError: If the disk is full.
    """
    folder, given = root / archive.folder, root / _name(archive)
    with storing(folder):
        root.mkdir(parents=True, exist_ok=True)
        sweep(root)
        with atomic_folder(folder, None) as unpacked, temporary_folder(root) as place:
            own = given.is_file() and _checksum_fits(given, archive)
            file = given if own else _download(archive, place)
            _unpack(file, archive.folder, unpacked)
    return folder


def _name(archive: Archive) -> str:
    return archive.url.rsplit("/", 1)[-1]


def _checksum_fits(file: Path, archive: Archive) -> bool:
    kind, _, expected = archive.checksum.partition(":")
    with file.open("rb") as content:
        return hashlib.file_digest(content, kind).hexdigest() == expected.lower()


def _download(archive: Archive, place: Path) -> Path:
    # Here and not above: few need it, and it takes a while to import.
    import pooch
    import requests

    name = _name(archive)
    with ExitStack() as stack:
        bar = _Bar(f"Fetching {name}", stack)
        downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=_CHUNK)
        try:
            found = pooch.retrieve(
                archive.url, archive.checksum, fname=name, path=place, downloader=downloader
            )
        except requests.RequestException as error:
            raise UnsupportedError(
                f"{archive.url} cannot be fetched: {error}. Fetch it by other means and put it, or "
                f"its folder {archive.folder!r}, where it was to be unpacked: into {place.parent}."
            ) from error
        except ValueError as error:
            raise FileFormatError(
                f"{archive.url} does not have the checksum {archive.checksum}: it was changed "
                "or damaged on its way. Nothing was kept; try again."
            ) from error
    return Path(found)


def _unpack(file: Path, folder: str, destination: Path) -> None:
    # The filters of tarfile do the same, but Python 3.11.0 to 3.11.3 (Debian 12) has none.
    root = destination.resolve()
    try:
        with tarfile.open(file) as tar:
            for member in tar:
                top, _, rest = member.name.removeprefix("./").partition("/")
                if top != folder or not rest or member.isdir():
                    continue
                path = (root / rest).resolve()
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or not path.is_relative_to(root):
                    raise tarfile.TarError(f"{member.name!r} is no file within {folder!r}")
                path.parent.mkdir(parents=True, exist_ok=True)
                with content, path.open("wb") as unpacked:
                    shutil.copyfileobj(content, unpacked)
    except (tarfile.TarError, EOFError, OSError) as error:
        if is_full(error):
            raise
        raise FileFormatError(f"{file} cannot be unpacked: {error}.") from error
    if not any(destination.iterdir()):
        raise FileFormatError(f"{file} has no folder {folder!r}.")


@final
class _Bar:
    """What pooch expects of a progress bar, passed on to ours."""

    def __init__(self, description: str, stack: ExitStack) -> None:
        self.total = 0  # pooch writes the size here once the server has told it
        self._description = description
        self._stack = stack
        self._step: Callable[[int], None] | None = None
        self._done = 0

    def update(self, count: int) -> None:
        """Count bytes; the last chunk is announced in full, so never beyond the total."""
        if self._step is None:
            bar = progress_bar(self._description, self.total or None)
            self._step = self._stack.enter_context(bar)
        count = min(count, max(self.total - self._done, 0))
        self._done += count
        self._step(count)

    def reset(self) -> None:
        """Ignored: pooch announces all bytes again at the end."""

    def close(self) -> None:
        """Nothing to do: our bar closes with its block."""
