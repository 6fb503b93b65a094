"""A large job in shards: each is written whole, and a job that was stopped goes on.

Layer: batch.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final, runtime_checkable

from offramp._core.checks import check_not_negative
from offramp._core.errors import InputError, OfframpError
from offramp._core.files import atomic_file, read_json, remove_folder, write_json
from offramp._core.optional import imported
from offramp._core.ownership import check_place, is_empty
from offramp._core.spending import Spending
from offramp.batch.cluster import Workers, ray_data, resources
from offramp.batch.table import Columns, arrow_table

if TYPE_CHECKING:
    from offramp.batch.answering import Answering, Loading

_JOB = "job.json"
_FORMAT = "offramp-answers"
_OURS = re.compile(r"job\.json|part-[0-9]{6}\.parquet")
_SAID = b"offramp"  # what a shard says of itself, in the metadata of its table


@final
@dataclass(frozen=True, kw_only=True)
class Shard:
    """A part of a job.

    Args:
        n: How many examples it has, at most.
        what: Says to whoever reads it which these are; pickled.
    """

    n: int
    what: Any


@runtime_checkable
class Read(Protocol):
    """Reads a shard; pickled, so it is a function of a module or an object of plain data."""

    def __call__(self, shard: Shard, answering: "Answering") -> Iterable[Columns]:
        """The answers to its examples."""
        ...


@final
@dataclass
class Tally:
    """What came of a job.

    Args:
        n: Examples in the table.
        errors: How many of them have no answer, because of an error.
        invalid: How many have none because nothing finite was said.
        cost: Of all of them.
        exits: How many left at which stage.
        left: Shards that were not begun, because they might have cost too much.
    """

    n: int = 0
    errors: int = 0
    invalid: int = 0
    cost: float = 0.0
    exits: Counter[str] = field(default_factory=Counter)
    left: int = 0

    def add(self, told: Mapping[str, Any]) -> None:
        """Count a shard."""
        self.n += told["n"]
        self.errors += told["errors"]
        self.invalid += told["invalid"]
        self.cost += told["cost"]
        self.exits.update(told["exits"])


def predict_shards(
    shards: Sequence[Shard],
    read: Read,
    how: "Loading",
    out: Path,
    *,
    asked: Mapping[str, Any],
    workers: Workers | None = None,
    max_cost: float | None = None,
    overwrite: bool = False,
    told: Callable[[int], object] = lambda _: None,
) -> Tally:
    """Answer a job shard by shard, each a table of its own in a folder; finished ones are kept.

    A shard whose process dies is run again by another. Its table is written in one step, so it is
    there whole or not at all.

    Args:
        shards: The parts, always the same for the same job.
        read: Reads one and has it answered.
        how: Which bundle.
        out: The folder; every machine of the cluster writes there.
        asked: What else makes it this job: if it differs from that of the tables that are there,
            they are answers to something else.
        workers: As in `classify`.
        max_cost: The most that the whole job may cost, in the bundle's unit, with what earlier
            runs of it have paid. No shard is begun that might go beyond.
        overwrite: Whether the answers of another job may be removed.
        told: Called with the number of examples of each shard that is finished.

    Returns:
        What came of it, with the shards that were finished before.

    Raises:
        InputError: If `out` holds something else, the costs are not known, or a process cannot
            load the bundle or read a shard.
        MissingExtraError: If Ray or pyarrow is not installed.
    """
    imported("pyarrow", "parquet")
    if max_cost is not None:
        check_not_negative("max_cost", max_cost)
    out = Path(out).absolute()
    tally, done = Tally(), _begun(out, asked, shards, overwrite=overwrite)
    for said in done.values():
        tally.add(said)
        told(said["n"])
    todo = [(k, shard) for k, shard in enumerate(shards) if k not in done]
    if not todo:
        return tally
    ray = ray_data()
    purse = None
    if max_cost is not None:
        spending = ray.remote(num_cpus=0)(Purse)
        purse = spending.remote(max_cost, tally.cost)
    items = ray.data.from_items(
        [{"k": k, "shard": shard} for k, shard in todo], override_num_blocks=len(todo)
    )
    results = items.map_batches(
        _Shards,
        batch_size=1,
        fn_constructor_kwargs={"how": how, "read": read, "out": out, "purse": purse},
        **resources(ray, how.threads, workers),
    )
    for row in results.iter_rows():
        said = json.loads(row["said"])
        if said is None:
            tally.left += 1
        elif "failed" in said:
            raise InputError(f"A process of the cluster cannot go on: {said['failed']}")
        else:
            tally.add(said)
            told(said["n"])
    return tally


def _begun(
    out: Path, asked: Mapping[str, Any], shards: Sequence[Shard], *, overwrite: bool
) -> dict[int, dict[str, Any]]:
    """What is finished of a job already, by shard; the folder says afterwards which job it is."""
    job = {"format": _FORMAT, "asked": dict(asked), "shards": [shard.n for shard in shards]}
    job = json.loads(json.dumps(job))  # as it will be read
    check_place(out, keep=())
    if out.is_dir() and not is_empty(out):
        held = read_json(out / _JOB) if (out / _JOB).is_file() else {}
        if held.get("format") != _FORMAT:
            raise InputError(
                f"out must be a folder for the answers alone; {out} holds something else. Choose "
                "another. Nothing was changed."
            )
        if held != job:
            before = held.get("asked", {})
            parts = [name for name in asked if before.get(name) != job["asked"][name]]
            if not overwrite:
                raise InputError(
                    f"{out} holds answers of another job: other {', '.join(parts or ['shards'])}. "
                    "Choose another folder, or replace it with --overwrite."
                )
            remove_folder(out, _OURS)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / _JOB, job)
    found = {k: _told(_table(out, k)) for k in range(len(shards)) if _table(out, k).is_file()}
    return found


def _table(out: Path, k: int) -> Path:
    return out / f"part-{k:06d}.parquet"


def _told(path: Path) -> dict[str, Any]:
    """What a finished shard says of itself."""
    from pyarrow import parquet

    found: dict[str, Any] = json.loads(parquet.read_schema(path).metadata[_SAID])
    return found


@final
class Purse:
    """What a job may cost, shared by its processes; a shard that runs again pays once.

    Args:
        most: The ceiling.
        paid: What earlier runs have paid.
    """

    def __init__(self, most: float, paid: float) -> None:
        self._spending, self._reserved = Spending(most), dict[int, float]()
        self._spending.add(paid)

    def reserve(self, k: int, amount: float) -> bool:
        """Set aside what a shard may come to; False where it does not fit."""
        self.settle(k, 0.0)  # of a process that died
        fits = self._spending.reserve(amount)
        if fits:
            self._reserved[k] = amount
        return fits

    def settle(self, k: int, paid: float) -> None:
        """A shard is over."""
        if (reserved := self._reserved.pop(k, None)) is not None:
            self._spending.settle(reserved, paid)


@final
class _Shards:
    """What a process of the pool runs."""

    def __init__(self, how: "Loading", read: Read, out: Path, purse: Any) -> None:  # noqa: ANN401
        self._how, self._read, self._out, self._purse = how, read, out, purse

    @cached_property
    def _answering(self) -> "Answering":
        from offramp.batch.answering import Answering

        return Answering(self._how)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        each = zip(batch["k"].tolist(), batch["shard"].tolist(), strict=True)
        return {"said": [json.dumps(self._safely(k, shard)) for k, shard in each]}

    def _safely(self, k: int, shard: Shard) -> dict[str, Any] | None:
        """What came of a shard; of an error of ours its text, since Ray loses what it was."""
        try:
            return self._of(k, shard)
        except OfframpError as error:
            return {"failed": str(error)}

    def _of(self, k: int, shard: Shard) -> dict[str, Any] | None:
        import ray

        path = _table(self._out, k)
        if path.is_file():  # of a process that died after it had written it
            said = _told(path)
        else:
            if self._purse is not None:
                most = shard.n * self._answering.most
                if not ray.get(self._purse.reserve.remote(k, most)):
                    return None
            said = _written(path, list(self._read(shard, self._answering)))
        if self._purse is not None:
            ray.get(self._purse.settle.remote(k, said["cost"]))
        return said


def _written(path: Path, parts: Iterable[Columns]) -> dict[str, Any]:
    """Write a shard, and say what is in it."""
    from pyarrow import concat_tables, parquet

    table = concat_tables([arrow_table(part) for part in parts])
    stages = [stage for stage in table["stage"].to_pylist() if stage]
    labels, errors = table["label"].to_pylist(), table["error"].to_pylist()
    costs = [cost for cost in table["cost"].to_pylist() if cost == cost]  # not NaN
    said = {
        "n": len(table),
        "errors": sum(error is not None for error in errors),
        "invalid": sum(
            label < 0 and error is None for label, error in zip(labels, errors, strict=True)
        ),
        "cost": sum(costs),
        "exits": dict(Counter(stages)),
    }
    kept = table.replace_schema_metadata({_SAID: json.dumps(said).encode()})
    with atomic_file(path) as temporary:
        parquet.write_table(kept, temporary)
    return said
