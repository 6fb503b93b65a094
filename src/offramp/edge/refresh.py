"""A device's folder brought up to date, by digest.

Layer: edge.  Needs nothing but Python.
"""

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from offramp._core.errors import FileFormatError
from offramp._core.files import atomic_folder, sha256
from offramp._core.ownership import ONNX_FOLDER
from offramp.edge.device import read

_SECONDS = 60.0  # for each file
_MANIFEST = "manifest.json"


def fetched(source: Path | str, folder: Path, edge: Mapping[str, Any]) -> bool:
    """Put a device's folder in the place of another one, whole or not at all.

    Args:
        source: A folder, or its address.
        folder: What may be replaced.
        edge: What the manifest there says.

    Returns:
        False where both are of the same split.

    Raises:
        FileFormatError: If what comes is not what its manifest says.
    """
    manifest = _read(source, _MANIFEST)
    try:
        told = json.loads(manifest)["edge"]
        files: dict[str, str] = dict(told["files"])
        same = told["id"] == edge["id"]
    except (ValueError, LookupError, TypeError) as error:
        raise FileFormatError(f"{source} is no device's folder of a split: {error!r}.") from error
    if same:
        return False
    known = {digest: name for name, digest in edge["files"].items()}
    with atomic_folder(folder, ONNX_FOLDER, overwrite=True) as place:
        for name, digest in files.items():
            if Path(name).name != name or name == _MANIFEST:
                raise FileFormatError(f"{source} lists {name!r}, which is no name of a file.")
            if digest in known:
                shutil.copyfile(folder / known[digest], place / name)
            else:
                (place / name).write_bytes(_read(source, name))
            if sha256(place / name) != digest:
                raise FileFormatError(f"{name} of {source} is not what its manifest says.")
        (place / _MANIFEST).write_bytes(manifest)
        read(place)
    return True


def _read(source: Path | str, name: str) -> bytes:
    text = str(source)
    try:
        if text.startswith(("http://", "https://")):
            url = f"{text.rstrip('/')}/{quote(name)}"
            with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
                return bytes(answer.read())
        return (Path(source) / name).read_bytes()
    except (OSError, urllib.error.URLError) as error:
        raise FileFormatError(f"{name} of {source} cannot be read: {error}") from error
