"""What data sets and units of cost promise.

Layer: testing.
"""

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import InputError, MissingExtraError, UnsupportedError
from offramp._core.units import UNITS, Unit
from offramp.data import SOURCES, Dataset
from offramp.stages import METERS, Cascade, measure_costs
from offramp.testing.promise import documented, member, require

_AMOUNTS = (0.0, 1e-12, 0.004, 1.0, 123456.0, 1e15)


def check_source(source: Callable[..., Dataset] | str) -> None:
    """Raise unless what returns a data set keeps what all of them promise.

    One that needs no path is loaded as well.

    Args:
        source: Takes a path first, or arguments by name alone; or its name in `SOURCES`.

    Raises:
        AssertionError: If a promise is broken; it says which.

    >>> check_source("digits")
    """
    name, make = member(SOURCES, source)
    documented(make, name)
    parameters = list(inspect.signature(make).parameters.values())
    open_ended = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    require(not open_ended, "it refuses an option that it does not have", whose=name)
    if not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        _check_dataset(name, make(), make())
        return
    with TemporaryDirectory() as folder:
        nowhere = Path(folder) / "nowhere"
        try:
            make(nowhere)
        except (OSError, ValueError) as error:
            require("nowhere" in str(error), "it names the path that is not there", whose=name)
        else:
            require(False, "it refuses a path that is not there", whose=name)


def check_unit(unit: Unit | str) -> None:
    """Raise unless a unit of cost keeps what every unit promises.

    What measures it, if it is in `METERS`, measures a small cascade, as far as this machine can.

    Args:
        unit: Its name in `UNITS` or `METERS`; or the member.

    Raises:
        AssertionError: If a promise is broken; it says which.

    >>> check_unit("flops")
    """
    known = isinstance(unit, Unit) or unit in UNITS
    if known:
        name, made = member(UNITS, unit)
        require(made.words.strip(), "it has words for a heading", whose=name)
        factors = [factor for factor, _ in made.prefixes]
        falling = factors == sorted(set(factors), reverse=True)
        require(falling and all(f > 0 for f in factors), "its prefixes fall", whose=name)
        texts = [made.text(value) for value in _AMOUNTS]
        whole = all(text.strip() == text and text for text in texts)
        require(whole, "every amount can be written", whose=name)
        require(len(set(texts)) == len(texts), "different amounts read differently", whose=name)
    if isinstance(unit, str) and unit in METERS:
        _check_measured(unit)
    elif isinstance(unit, str) and not known:
        raise InputError(f"unit must be one of {[*UNITS, *METERS]}, got {unit!r}.")


def _check_dataset(name: str, found: Dataset, again: Dataset) -> None:
    require(len(found) > 0, "there are examples", whose=name)
    require(len(set(found.ids.tolist())) == len(found), "each has an id of its own", whose=name)
    require(found.fingerprint == again.fingerprint, "they are the same each time", whose=name)
    low, high = int(found.labels.min()), int(found.labels.max())
    require(low >= 0 and high < found.classes, "labels are classes, from 0 on", whose=name)


def _check_measured(unit: str) -> None:
    small, large = nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 3))
    cascade = Cascade.from_models({"small": small.eval(), "large": large.eval()})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # networks as small as these hardly differ in cost
            costs = measure_costs(cascade, torch.zeros(2, 4), unit, batch_size=2)
    except (MissingExtraError, UnsupportedError):
        return  # it says itself why this machine cannot
    require(isinstance(costs, Costs), "what measures it returns costs", whose=repr(unit))
    require(costs.unit == unit, "they are in this unit", whose=repr(unit))
    require(len(costs) == 2, "each stage has a cost", whose=repr(unit))
    require(all(c > 0 for c in costs.segment), "what runs costs something", whose=repr(unit))
