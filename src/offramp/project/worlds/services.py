"""Recorded answers of services, each a label, a confidence and a price: no network has to run.

A folder may hold `<set>.npz` with `labels` `(n,)`, `meta` (a header and a row of id, provider,
cost per 10,000 calls, classes for each service), and for each id `pred_<id>` and `conf_<id>`
`(n,)`. The first set by name is shown, or that of a file. Without a folder the answers are made up.

Layer: project.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import sha256
from offramp._core.types import Split
from offramp.data.arrays import read_arrays
from offramp.project.worlds.world import Learned, World
from offramp.trace import Trace, from_predictions

_SHARES: dict[Split, float | int] = {"fit": 0.4, "calibrate": 0.2, "test": 0.4}
_PRICES = {"local model": 0.0, "cheap service": 0.00015, "expensive service": 0.001}  # dollars
_RIGHT = {"local model": 0.75, "cheap service": 0.87, "expensive service": 0.93}
_CLASSES, _CALLS = 5, 10_000
_MOST = 10_000  # answers of each that are read


def _learn(
    folder: Path | None, *, seed: int, progress: bool, tell: Callable[[str], None]
) -> Learned:
    del progress  # nothing here takes long
    tell("reading what services answered" if folder else "making up what services answer")
    trace, data = (_made_up(seed), "made up") if folder is None else _of_file(_file_in(folder))
    costs = ", ".join(
        f"{name} {_CALLS * cost:.3g} dollars"
        for name, cost in zip(trace.stages, trace.stage_costs(), strict=True)
    )
    notes = [f"Prices of {_CALLS:,} calls: {costs}."]
    if folder is None:
        notes.append("These answers are made up; services that err together save less.")
    some = np.random.default_rng(seed).permutation(len(trace))[:_MOST]
    parts = trace.take(torch.from_numpy(some)).split_into(_SHARES, seed=seed)
    return Learned(trace=parts, data=data, notes=tuple(notes))


def _made_up(seed: int) -> Trace:
    """Three services that err independently, surer where they are right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, _CLASSES, 5000)
    said: dict[str, NDArray[Any]] = {}
    sure: dict[str, NDArray[Any]] = {}
    for name, share in _RIGHT.items():
        right = rng.random(len(labels)) < share
        other = (labels + rng.integers(1, _CLASSES, len(labels))) % _CLASSES
        said[name] = np.where(right, labels, other)
        sure[name] = np.where(right, rng.beta(6, 1, len(labels)), rng.beta(2, 2, len(labels)))
    return from_predictions(said, labels, confidences=sure, costs=_PRICES, unit="usd")


def _file_in(folder: Path) -> Path:
    if folder.is_file():
        return folder
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise InputError(
            f"{folder} holds no recorded answers (*.npz). Without a folder, `offramp demo "
            "--services` makes some up."
        )
    return files[0]


def _of_file(path: Path) -> tuple[Trace, str]:
    """The services of one set, the cheapest first."""
    held = read_arrays(path)
    services = _services(path, held)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says how often a service refused
        trace = from_predictions(
            {name: held[f"pred_{key}"] for name, (key, _) in services.items()},
            held["labels"],
            confidences={name: held[f"conf_{key}"] for name, (key, _) in services.items()},
            costs={name: price for name, (_, price) in services.items()},
            unit="usd",
            classes=int(held["labels"].max()) + 1,
        )
    return trace, f"{path.name}, SHA-256 {sha256(path)}"


def _services(path: Path, held: Mapping[str, NDArray[Any]]) -> dict[str, tuple[str, float]]:
    """By name the key of each service in the file and its price per call, the cheapest first."""
    try:
        rows = [str(row).split(",") for row in held["meta"][1:].tolist()]
        found = {name: (key, float(cost) / 10_000) for key, name, cost, *_ in rows}
        missing = [
            array
            for key, _ in found.values()
            for array in (f"pred_{key}", f"conf_{key}")
            if array not in held
        ]
    except (KeyError, ValueError) as error:
        missing = [f"meta, with id, provider and cost per 10,000 calls ({error})"]
    if missing or "labels" not in held:
        raise FileFormatError(
            f"{path} holds no recorded answers: it lacks {', '.join(missing) or 'labels'}."
        )
    return dict(sorted(found.items(), key=lambda one: one[1][1]))


SERVICES = World(
    name="services",
    title="A cascade of services",
    inputs="examples",
    learn=_learn,
    policies=("learned", "threshold", "random"),
)
