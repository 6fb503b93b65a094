"""Names of the files in a bundle.

Layer: bundle.
"""

import hashlib
import re
from collections.abc import Sequence

from offramp._core.errors import InputError

MANIFEST = "manifest.json"
POLICY = "policy.json"
GEARS = "gears.json"
WEIGHTS = ".safetensors"

_SAFE_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_PLAIN_STAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,59}")
_EXTRA = re.compile(r"[a-z0-9_][a-z0-9_-]{0,59}\.json")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)  # no files on Windows


def is_safe_file(name: str) -> bool:
    """True if a name stays within its folder on every system: no separators, no dots in front."""
    return _SAFE_FILE.fullmatch(name) is not None


def weight_files(stages: Sequence[str]) -> dict[str, str]:
    """The file of each stage: its name where every system allows it, else a made-up one.

    >>> weight_files(["small", "../large"])["small"]
    'small.safetensors'
    >>> weight_files(["small", "../large"])["../large"].startswith("large-")
    True
    """
    lowered = [name.lower() for name in stages]  # some file systems ignore case
    return {
        name: f"{name if _is_plain(name) and lowered.count(name.lower()) == 1 else _made_up(name)}"
        f"{WEIGHTS}"
        for name in stages
    }


def network_file(number: int) -> str:
    """The file of a network that is cut; no stage has it, for theirs have one dot.

    >>> network_file(0)
    'network.0.safetensors'
    """
    return f"network.{number}{WEIGHTS}"


def example_file(number: int) -> str:
    """The file of what such a network is followed with.

    >>> example_file(0)
    'example.0.safetensors'
    """
    return f"example.{number}{WEIGHTS}"


def model_files(stage: str, endings: Sequence[str], *, head: bool) -> tuple[str, ...]:
    """The files of a model of another runtime: of a stage's segment, or of its head.

    >>> model_files("small", [".onnx"], head=False)
    ('small.onnx',)
    >>> model_files("small", [".xml", ".bin"], head=True)
    ('small.head.xml', 'small.head.bin')
    """
    stem = weight_files([stage])[stage].removesuffix(WEIGHTS)
    return tuple(f"{stem}{'.head' if head else ''}{ending}" for ending in endings)


def answers_file(model: str) -> str:
    """The file of what a model answered where it was made.

    >>> answers_file("small.onnx")
    'small.onnx.safetensors'
    """
    return f"{model}{WEIGHTS}"


def check_extra(name: str) -> str:
    """Return the name of an additional file if it may be one.

    Raises:
        InputError: If it is not a plain JSON file name, or taken.
    """
    if _EXTRA.fullmatch(name) is None or name in (MANIFEST, POLICY, GEARS):
        raise InputError(
            f"extra files must have names such as 'evaluation.json', of small letters, digits, "
            f"'_' and '-', and not be {MANIFEST}, {POLICY} or {GEARS}; got {name!r}."
        )
    return name


def _is_plain(name: str) -> bool:
    return _PLAIN_STAGE.fullmatch(name) is not None and _DEVICES.fullmatch(name) is None


def _made_up(name: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:40] or "stage"
    return f"{readable}-{hashlib.blake2b(name.encode(), digest_size=6).hexdigest()}"
