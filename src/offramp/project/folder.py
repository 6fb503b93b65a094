"""The folder of a run: what one command writes and the next one reads.

    run.json        that this folder is a run, which files in it are ours, the trace it is about
    frontier.json   every candidate of the sweep with what it does on `fit` and `calibrate`
    chosen.json     the choice: the candidate, why, and what is promised of it

Layer: project.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, final

from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import read_json, write_json
from offramp._core.ownership import BUNDLE, RUN, check_folder, check_place, is_empty

if TYPE_CHECKING:
    from offramp.evaluation import Choice, Frontier
    from offramp.policy import Candidate

MARKER = "run.json"
FRONTIER = "frontier.json"
CHOSEN = "chosen.json"
REPORT = "report.html"
CLASS_EXITS = "class_exits.json"
JOINT = "joint.json"
_FORMAT = "offramp-run"
_FORMAT_VERSION = 1


@final
class RunFolder:
    """A folder that is ours.

    Args:
        path: The folder; `claim` and `open` make sure of it.
        facts: What `run.json` holds beside its format: "files", "trace", "seed"...
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path = path
        self.facts = dict(facts)

    @classmethod
    def claim(cls, path: Path) -> "RunFolder":
        """Take a folder for a run: a new or empty one, or one that is a run already.

        Nothing is written before there is something to remember. A folder with nothing but what a
        kill has left of ours counts as empty.

        Raises:
            InputError: If it is not empty and offramp did not make it, or cannot be written to.
        """
        filled = _is_filled(path)
        check_place(path / MARKER)
        if filled:
            if (path / MARKER).exists():
                return cls.open(path)
            raise InputError(
                f"{path} is not empty and no run of offramp. Choose another folder; nothing in it "
                "was changed."
            )
        return cls(path, {"files": []})

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of a run.

        Raises:
            FileFormatError: If it is none, or was written by a newer version.
        """
        value = _read(path / MARKER)
        if value.get("format") != _FORMAT:
            raise FileFormatError(f"{path / MARKER} does not describe a run of offramp.")
        if _is_whole(found := value.get("version")) and found > _FORMAT_VERSION:
            raise FileFormatError(
                f"{path / MARKER} was written by a newer version. Update offramp."
            )
        for name, sound, wanted in _FACTS:
            if (name in value or name in _NEEDED) and not sound(value.get(name)):
                raise FileFormatError(
                    f"{path / MARKER} is damaged: {name} must be {wanted}, got {value.get(name)!r}."
                )
        known = ("format", "version", "software")
        return cls(path, {name: fact for name, fact in value.items() if name not in known})

    def remember(self, *files: str, **facts: object) -> None:
        """Note in `run.json` which files in the folder are ours, and other facts.

        Call it before they are written, so that a kill leaves nothing that is nobody's.

        Raises:
            InputError: If there is a file of that name that is not ours.
        """
        for name in files:
            if name not in self.facts["files"] and os.path.lexists(self.path / name):
                raise InputError(
                    f"{self.path / name} would be replaced, and this run did not write it. Move "
                    "it away or choose another folder; nothing in it was changed."
                )
        self.facts["files"] = sorted({*self.facts["files"], *files})
        self.facts |= facts
        head = {
            "format": _FORMAT,
            "version": _FORMAT_VERSION,
            "software": f"offramp {version('offramp')}",
        }
        write_json(self.path / MARKER, {**head, **self.facts})

    def write(self, name: str, value: Mapping[str, object]) -> Path:
        """Write a JSON file into the folder."""
        self.remember(name)
        write_json(self.path / name, value)
        return self.path / name

    @property
    def name(self) -> str:
        """Its own name, also where it was given as "."."""
        return self.path.resolve().name

    def trace_path(self) -> Path:
        """Where the trace lies that this run is about.

        Raises:
            FileFormatError: If nobody said so yet.
        """
        if "trace" not in self.facts:
            raise FileFormatError(
                f"{self.path} names no trace: `offramp record` comes first, or name one: "
                "`offramp fit a.trace`."
            )
        return self.path / str(self.facts["trace"])

    def frontier(self) -> "Frontier":
        """Read `frontier.json`."""
        from offramp._core.schema import from_json
        from offramp.evaluation import Frontier

        return from_json(Frontier, read_json(path := self.path / FRONTIER), where=path)

    def choice(self) -> "Choice":
        """Read `chosen.json`.

        Raises:
            FileFormatError: If it is none, or of a version that chose once more to read it.
        """
        from offramp._core.schema import from_json
        from offramp.evaluation import Choice

        value = read_json(path := self.path / CHOSEN)
        if "limit" in value:
            raise FileFormatError(f"{path} was written by version 0.1; run `offramp fit` again.")
        return from_json(Choice, value, where=path)


def check_replaceable(path: Path, command: str) -> bool:
    """Whether there is a run to be replaced by the same command, and nothing else.

    Args:
        path: The folder; it may be new or empty.
        command: What its command line begins with.

    Raises:
        InputError: If anything else is there, or as `check_folder`.
    """
    same = False
    if _is_filled(path) and (path / MARKER).is_file():
        made_by = str(RunFolder.open(path).facts.get("command", ""))
        same = made_by.startswith(command)
        if not same:
            raise InputError(
                f"{path} is the folder of a run that `{command}` did not write. Choose another "
                "folder; nothing in it was changed."
            )
    check_folder(path, RUN, overwrite=same)
    return same


def check_bundle(
    run: RunFolder, bundle: Path, *, overwrite: bool, keep: Iterable[Path | None] = ()
) -> bool:
    """Check before the work that a bundle can be written; the same check follows after it.

    Args:
        run: The run that it is of. A bundle that it has written into its own folder may be renewed.
        bundle: Where it shall lie.
        overwrite: Whether a bundle that is there may be replaced.
        keep: Inputs, which must not lie there.

    Returns:
        Whether a bundle that is there may be replaced.

    Raises:
        InputError: As `check_folder`.
    """
    renewed = _is_of(run, bundle) and bundle.name in run.facts["files"]
    allowed = overwrite or renewed
    kept = [path for path in keep if path is not None]
    check_folder(bundle, BUNDLE, overwrite=allowed, keep=[run.path, *kept])
    return allowed


def claim_bundle(run: RunFolder, bundle: Path) -> None:
    """Note, before it is written, that a bundle in the folder of a run is the run's own."""
    if _is_of(run, bundle) and bundle.name not in run.facts["files"]:
        run.facts["files"].append(bundle.name)  # what is there, if anything, has been checked
        run.remember()


def _is_of(run: RunFolder, bundle: Path) -> bool:
    return bundle.resolve().parent == run.path.resolve()


def _is_filled(path: Path) -> bool:
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} must be a folder, but it is a file.")
    return path.is_dir() and not is_empty(path)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


_NEEDED = ("version", "files")
_FACTS: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    ("version", _is_whole, "a whole number"),
    ("files", _are_names, "a list of names"),
    ("trace", _is_text, "a path"),
    ("seed", _is_whole, "a whole number of at least 0"),
    ("command", _is_text, "a text"),
)


def _read(path: Path) -> dict[str, Any]:
    """A file in the folder of a run, or who writes it where it is missing."""
    try:
        return read_json(path)
    except FileFormatError as error:
        if path.exists():
            raise
        raise FileFormatError(f"{error} `offramp fit` writes the folder of a run.") from error


def candidate_from_file(path: Path) -> "Candidate":
    """A candidate from the folder of a run, from its `chosen.json`, or from a file of its own.

    Raises:
        FileFormatError: If there is none; it names the file.
    """
    from offramp._core.schema import from_json
    from offramp.policy import Candidate

    path = path / CHOSEN if path.is_dir() else path
    value: Any = _read(path)
    for name in ("choice", "point", "candidate"):  # of joint.json, of a choice, and of its point
        value = value.get(name, value) if isinstance(value, dict) else value
    return from_json(Candidate, value, where=path)
