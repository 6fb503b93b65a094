"""The folder of a run: what one command writes and the next one reads.

    run.json        that this folder is a run, which files in it are ours, the trace it is about
    frontier.json   every setting of the sweep with what it does on `fit` and `calibrate`
    chosen.json     the setting that was chosen, why, and its numbers

Layer: cli.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import read_json, write_json

if TYPE_CHECKING:
    from offramp.evaluate import (
        DoNotCascade,
        Evaluation,
        Frontier,
        FrontierPoint,
        OperatingPoint,
    )
    from offramp.policy import Setting

MARKER = "run.json"
FRONTIER = "frontier.json"
CHOSEN = "chosen.json"
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

        Raises:
            InputError: If it is not empty and offramp did not make it.
        """
        if _is_filled(path):
            if (path / MARKER).exists():
                return cls.open(path)
            raise InputError(
                f"{path} is not empty and no run of offramp. Choose another folder; nothing in it "
                "was changed."
            )
        run = cls(path, {"files": []})
        run.remember()
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of a run.

        Raises:
            FileFormatError: If it is none, or was written by a newer version.
        """
        value = read_json(path / MARKER)
        if value.get("format") != _FORMAT or not isinstance(value.get("files"), list):
            raise FileFormatError(f"{path / MARKER} does not describe a run of offramp.")
        if value.get("version", 0) > _FORMAT_VERSION:
            raise FileFormatError(
                f"{path / MARKER} was written by a newer version. Update offramp."
            )
        known = ("format", "version", "software")
        return cls(path, {name: fact for name, fact in value.items() if name not in known})

    def remember(self, *files: str, **facts: object) -> None:
        """Note in `run.json` which files in the folder are ours, and other facts."""
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

    def trace_path(self) -> Path:
        """Where the trace lies that this run is about.

        Raises:
            FileFormatError: If nobody said so yet.
        """
        if "trace" not in self.facts:
            raise FileFormatError(f"{self.path} names no trace; run `offramp fit` first.")
        return self.path / self.facts["trace"]

    def frontier(self) -> "Frontier":
        """Read `frontier.json`."""
        return frontier_from_dict(read_json(self.path / FRONTIER), self.path / FRONTIER)


def check_replaceable(path: Path) -> None:
    """Raise `InputError` unless a folder may be replaced: new, empty, or all of it ours."""
    if not _is_filled(path):
        return
    ours = {MARKER, *RunFolder.claim(path).facts["files"]}
    strange = sorted(entry.name for entry in path.iterdir() if entry.name not in ours)
    if strange:
        raise InputError(
            f"{path} holds {strange[0]!r}, which offramp did not write. Move it away or choose "
            "another folder; nothing was changed."
        )


def _is_filled(path: Path) -> bool:
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} must be a folder, but it is a file.")
    return path.is_dir() and any(path.iterdir())


def frontier_to_dict(frontier: "Frontier") -> dict[str, Any]:
    """A frontier as JSON values, each setting once."""
    return {
        "reference": frontier.reference,
        "points": [_point_to_dict(p) for p in frontier.points],
        "singles": [_point_to_dict(p) for p in frontier.singles],
    }


def frontier_from_dict(value: Mapping[str, Any], path: Path) -> "Frontier":
    """Read what `frontier_to_dict` wrote.

    Raises:
        FileFormatError: If it is something else; it names the file `path`.
    """
    from offramp.evaluate import Frontier

    try:
        return Frontier(
            reference=value["reference"],
            points=tuple(_point_from_dict(p) for p in value["points"]),
            singles=tuple(_point_from_dict(p) for p in value["singles"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FileFormatError(f"{path} does not hold a frontier: {error!r}.") from error


def choice_to_dict(choice: "OperatingPoint | DoNotCascade") -> dict[str, Any]:
    """What was chosen and why, as JSON values; `setting` can be read by `setting_from_file`."""
    from offramp.evaluate import OperatingPoint

    cascade = isinstance(choice, OperatingPoint)
    point = choice if isinstance(choice, OperatingPoint) else choice.best_single
    single = choice.best_single
    return {
        "outcome": "cascade" if cascade else "do not cascade",
        "sentence": choice.sentence,
        "limit": {"risk": choice.risk, "max_loss": choice.max_loss, "max_cost": choice.max_cost},
        "setting": choice.setting.to_dict(),
        "fit": evaluation_to_dict(point.fit),
        "calibrate": None if point.calibrate is None else evaluation_to_dict(point.calibrate),
        "best_single": None if single is None else _point_to_dict(single),
    }


def choose_again(frontier: "Frontier", value: Mapping[str, Any]) -> "OperatingPoint | DoNotCascade":
    """The choice that `chosen.json` describes, made once more from the frontier."""
    limit = value["limit"]
    if limit["max_loss"] is not None:
        return frontier.cheapest(max_loss=limit["max_loss"], risk=limit["risk"])
    return frontier.best(max_cost=limit["max_cost"], risk=limit["risk"])


def setting_from_file(path: Path) -> "Setting":
    """A setting from the folder of a run, from its `chosen.json`, or from a file of its own.

    Raises:
        FileFormatError: If there is none; it names the file.
    """
    from offramp.policy import Setting

    path = path / CHOSEN if path.is_dir() else path
    value = read_json(path)
    try:
        return Setting.from_dict(value.get("setting", value))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FileFormatError(f"{path} does not hold a setting: {error!r}.") from error


def evaluation_to_dict(evaluation: "Evaluation") -> dict[str, Any]:
    """The numbers of an evaluation; its setting stands beside them."""
    return {name: v for name, v in evaluation.to_dict().items() if name != "setting"}


def _point_to_dict(point: "FrontierPoint") -> dict[str, Any]:
    return {
        "setting": point.setting.to_dict(),
        "label": point.setting.label,
        "on_front": point.on_front,
        "fit": evaluation_to_dict(point.fit),
        "calibrate": None if point.calibrate is None else evaluation_to_dict(point.calibrate),
    }


def _point_from_dict(value: Mapping[str, Any]) -> "FrontierPoint":
    from offramp.evaluate import FrontierPoint
    from offramp.policy import Setting

    setting = Setting.from_dict(value["setting"])
    seen = value["calibrate"]
    return FrontierPoint(
        setting=setting,
        fit=_evaluation_from_dict(value["fit"], setting),
        calibrate=None if seen is None else _evaluation_from_dict(seen, setting),
        on_front=value["on_front"],
    )


def _evaluation_from_dict(value: Mapping[str, Any], setting: "Setting") -> "Evaluation":
    from offramp.evaluate import Evaluation

    fields = {
        name: tuple(v) if isinstance(v, list) else v
        for name, v in value.items()
        if name in Evaluation.__dataclass_fields__  # to_dict adds what follows from others
    }
    return Evaluation(setting=setting, **fields)
