"""Run every stage of a cascade on every example once and keep what they said.

Layer: recording.
"""

import json
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from offramp._core.checks import check_choice, check_kind, check_positive_int, check_split
from offramp._core.costs import Costs
from offramp._core.device import check_device
from offramp._core.errors import InputError
from offramp._core.ids import shown_id
from offramp._core.outputs import StageOutput
from offramp._core.ownership import TRACE, check_folder
from offramp._core.progress import progress_bar
from offramp._core.schema import to_json
from offramp._core.spending import Spending
from offramp._core.types import Ids, Split
from offramp.recording.nonfinite import HOW, Nonfinite, refusal
from offramp.recording.paid import ceiling_of, keeping, listed_prices
from offramp.recording.partial import PartialStore, finished, parts_of
from offramp.recording.rows import Loader, Rows, dataset_of, labeled_rows, row_splits, total_rows
from offramp.recording.said import ODD, Said
from offramp.recording.store import Facts, MemoryStore, Store
from offramp.stages import (
    Cascade,
    check_company,
    evaluating,
    measure_flops,
    take_in,
    take_rows,
    tell_classes,
    to_device,
    weights_digest,
)
from offramp.stages.company import compared
from offramp.trace import Trace
from offramp.trace.files import StoredDtype


def record(
    cascade: Cascade,
    loader: Loader,
    *,
    path: Path | str | None = None,
    split: Split | None = None,
    device: torch.device | str = "cpu",
    dtype: StoredDtype = "float32",
    costs: Costs | str = "flops",
    other_costs: Sequence[Costs] = (),
    seen_in_training: bool = False,
    class_names: tuple[str, ...] | list[str] | None = None,
    batch_size: int = 256,
    progress: bool = True,
    resume: bool = True,
    overwrite: bool = False,
    nonfinite: Nonfinite = "error",
    max_spend: float | None = None,
    concurrency: int | None = None,
) -> Trace:
    """Record a cascade over labeled examples.

    With a `path` the rows go to disk as they come, so memory does not grow with their number. If
    the run is interrupted, even killed, the same call goes on where it stopped: it walks through
    the loader again, checks that labels and ids of the recorded rows are the same, and runs the
    stages on the rest. The trace appears at `path` whole or not at all.

    Each answer of a service is on the disk before it is counted, so none is paid for twice. Where
    stages tell prices, and the costs are in their unit or left out, the trace has the price of each
    answer, and the means as costs.

    Args:
        cascade: Is moved to `device`, and put into evaluation mode meanwhile.
        loader: Gives batches (inputs, labels) or (inputs, labels, ids) in the same order each
            time; or a data set that makes such a loader by `.loader(batch_size)`. Inputs are
            what the cascade reads: tensors, or rows of any type. Without ids examples are numbered
            from 0. Labels are whole numbers, or names where the classes have names.
        path: Folder of the trace, by convention `*.trace`; None keeps everything in memory.
        split: Name of the split of all examples. A data set with an array `split` says it for
            each example instead.
        device: Where the stages run.
        dtype: "float16" halves the trace and marks it as lossy.
        costs: A table, or "flops" to count them on the first example; of services that tell prices
            these, unless the table is in another unit.
        other_costs: Tables in other units, which reports show beside, such as measured seconds.
        seen_in_training: Whether the stages were trained on these examples.
        class_names: Names of the classes; by default those of the cascade or of the data set. Where
            several of the three name a class, it must have the same number in each. An empty list
            leaves the names out, and nothing is compared.
        batch_size: For a data set that makes its own loader.
        progress: Whether to show a progress bar.
        resume: False throws away what an interrupted run has left.
        overwrite: Whether a trace at `path` may be replaced once the new one is complete. Anything
            else that is there is refused, whatever is said here.
        nonfinite: What becomes of an example for which a stage gives NaN or infinity: "error"
            stops, "skip" leaves it out of the trace, "wrong" keeps it and lets that stage answer
            another class than the label, as unsure as it can be. The trace's `notes` and a warning
            count and name such examples. An interrupted recording goes on under any of these. The
            same holds where a service has failed for good; with "error" it is asked again when the
            recording goes on.
        max_spend: The most that answers of services may cost in all, with those of before an
            interruption, in their unit. It is never exceeded: the most that a call may come to is
            set aside before it is made.
        concurrency: Calls of a service at a time; by default as its limits say.

    Raises:
        UnsupportedError: If what a stage says about an example depends on the others of its batch.
        InputError: If there are no examples; a label lies outside the classes; the cascade and the
            data set have the classes in another order; a logit is NaN or infinite and `nonfinite`
            is "error"; stages have different numbers of classes; ids repeat; `path` exists; or an
            interrupted recording belongs to another cascade or to another order of the examples.
        BusyError: If another process records to `path`.
        StorageError: If the disk is full; rows that were recorded are kept.
        SpendingError: If one more answer might exceed `max_spend`. What was paid is kept with a
            `path`: the same call with a larger one goes on.
        ServiceError: If a service cannot be used as it is set up.

    >>> from torch import nn
    >>> cascade = Cascade.from_models({"small": nn.Linear(4, 3)})
    >>> trace = record(cascade, [(torch.zeros(5, 4), torch.tensor([0, 1, 2, 0, 1]))])
    >>> trace.logits.shape, trace.costs.unit
    (torch.Size([5, 1, 3]), 'flops')
    """
    check_kind("cascade", cascade, Cascade, read="offramp.load(path).cascade")
    check_choice("dtype", dtype, ("float32", "float16"))
    check_positive_int("batch_size", batch_size)
    if cascade.outputs == "features":
        raise InputError(
            "Stages that give features have no classes, and a recording compares labels. Run them "
            "on the examples, say what their answers lose, and give both to trace.from_losses."
        )
    check_choice("nonfinite", nonfinite, HOW)
    if split is not None:
        check_split("split", split)
    for table in (costs, *other_costs):
        _check_costs(cascade, table)
    listed = listed_prices(cascade, costs)
    ceiling = ceiling_of(cascade, max_spend)
    names = _class_names(cascade, loader, class_names)
    if names:
        tell_classes(cascade, len(names))
    device = check_device(device)
    if path is not None and not overwrite:
        done = _finished(cascade, loader, Path(path), dtype)
        if done is not None:
            return done
    cascade.to(device)
    with ExitStack() as stack:
        store = _store(
            stack,
            cascade,
            loader,
            path,
            dtype,
            priced=listed is not None,
            resume=resume,
            overwrite=overwrite,
        )
        stack.enter_context(evaluating(cascade))
        work = _Work(cascade, names, device, nonfinite, listed, ceiling)
        parts = None if path is None else parts_of(Path(path))
        with keeping(cascade, parts, ceiling, concurrency=concurrency, resume=resume):
            table = _record_rows(work, loader, store, costs, batch_size, progress)
        ids = store.ids()
        _check_unique(ids)
        facts = Facts(
            topology=cascade.topology,
            costs=table,
            other_costs=tuple(other_costs),
            class_names=names,
            seen_in_training=seen_in_training,
            lossy=dtype == "float16",
            nonfinite=nonfinite,
        )
        trace = store.finish(facts, row_splits(loader, ids, split))
        for note in trace.notes:
            if not note.endswith(ODD):
                warnings.warn(note, stacklevel=2)
        return trace


@final
@dataclass(frozen=True)
class _Work:
    """What runs, where, and what it may say."""

    cascade: Cascade
    class_names: tuple[str, ...]
    device: torch.device | str
    nonfinite: Nonfinite
    listed: Costs | None  # of stages that do not tell prices, where others do
    ceiling: Spending


def _finished(cascade: Cascade, loader: Loader, path: Path, dtype: StoredDtype) -> Trace | None:
    """The trace of the same call, where a kill has only prevented that its parts were removed."""
    if not parts_of(path).is_dir() or not path.is_dir():
        return None
    return finished(path, {**_fingerprint(cascade, loader), "dtype": dtype})


def _store(
    stack: ExitStack,
    cascade: Cascade,
    loader: Loader,
    path: Path | str | None,
    dtype: StoredDtype,
    *,
    priced: bool,
    resume: bool,
    overwrite: bool,
) -> Store:
    if path is None:
        return MemoryStore(dtype)
    check_folder(Path(path), TRACE, overwrite=overwrite)
    partial = PartialStore(
        Path(path),
        stages=len(cascade),
        form=cascade.outputs,
        priced=priced,
        dtype=dtype,
        fingerprint={**_fingerprint(cascade, loader), "dtype": dtype},
        resume=resume,
        overwrite=overwrite,
    )
    return stack.enter_context(partial)


def _record_rows(
    work: _Work,
    loader: Loader,
    store: Store,
    costs: Costs | str,
    batch_size: int,
    progress: bool,
) -> Costs:
    """Fill the store and return the costs, which are counted on the first example."""
    table = costs if isinstance(costs, Costs) else work.listed
    prices = None if work.listed is None else work.listed.segment
    before, seen, checked = store.rows, 0, False
    with progress_bar("Recording", total_rows(loader), enabled=progress) as advance:
        for rows in labeled_rows(loader, batch_size, take_in(work.cascade), work.class_names):
            if table is None:
                first = take_rows(rows.inputs, torch.tensor([0]))
                table = measure_flops(work.cascade, to_device(first, work.device))
            done = min(max(before - seen, 0), len(rows))
            if done:
                _check_same(rows, *store.known(seen, seen + done))
            if done < len(rows):
                new = rows.after(done) if done else rows
                outputs = _outputs(work, new)
                said = Said.of(outputs, prices)
                _check_rows(work, new, said)
                if not checked:
                    checked = _check_company(work, new, outputs)
                store.append(new, said)
            seen += len(rows)
            advance(len(rows), "" if prices is None else f"{work.ceiling.spent:.4g} {table.unit}")
    if seen < before:
        raise InputError(
            f"The loader gave {seen} examples, but {before} were recorded before the interruption."
            " Give the same loader again, or pass resume=False to start again."
        )
    if table is None or not store.rows:
        raise InputError("The loader must give at least one example, got none.")
    return table


def _outputs(work: _Work, rows: Rows) -> list[StageOutput]:
    """What every stage says about some examples, an answer for each."""
    with torch.no_grad():  # not inference mode: there nobody could tell who writes into a carry
        return work.cascade.answers(to_device(rows.inputs, work.device))


def _check_rows(work: _Work, rows: Rows, said: Said) -> None:
    """Raise `InputError` where answers are missing, or labels and class names do not fit."""
    cascade, class_names, c = work.cascade, work.class_names, said.classes
    bad = np.argwhere(said.missing())
    if len(bad) and work.nonfinite == "error":
        row, stage = bad[0]
        name, counts = rows.ids[row], getattr(cascade.stage(int(stage)).module, "counts", ())
        failed = [why.removeprefix("failed: ") for why in counts if why.startswith("failed: ")]
        raise InputError(refusal(name, cascade.topology.names[stage], failed))
    outside = np.flatnonzero((rows.labels < 0) | (rows.labels >= c))
    if len(outside):
        row = outside[0]
        raise InputError(
            f"labels must be in [0, {c}), got {rows.labels[row]} for example "
            f"{shown_id(rows.ids[row])}."
        )
    if class_names and len(class_names) != c:
        raise InputError(
            f"class_names must have {c} entries, got {len(class_names)}. Of a folder with some of "
            f"the classes say which they are: image_folder(..., classes=..., class_count={c})."
        )


def _check_company(work: _Work, rows: Rows, outputs: Sequence[StageOutput]) -> bool:
    whole = [compared(said) for said in outputs]
    return check_company(list(work.cascade), to_device(rows.inputs, work.device), whole=whole)


def _check_costs(cascade: Cascade, costs: Costs | str) -> None:
    if isinstance(costs, str):
        if costs != "flops":
            raise InputError(
                f"costs must be 'flops' or a table, got {costs!r}; measure it with "
                "measure_seconds or measure_joules, or give it with given_costs."
            )
    elif len(costs) != len(cascade):
        raise InputError(f"costs must have one entry per stage ({len(cascade)}), got {len(costs)}.")


def _check_same(rows: Rows, labels: NDArray[Any], ids: Ids) -> None:
    count = len(labels)
    same = np.array_equal(rows.labels[:count], labels) and np.array_equal(rows.ids[:count], ids)
    if not same:
        raise InputError(
            f"The examples do not come in the order in which they were recorded before the "
            f"interruption, see the batch that begins with example {shown_id(rows.ids[0])}. Does "
            "the loader shuffle? Give it a fixed order, or pass resume=False to start again."
        )


def _check_unique(ids: Ids) -> None:
    names, counts = np.unique(ids, return_counts=True)
    if len(names) != len(ids):
        raise InputError(
            f"ids must be unique, got {shown_id(names[counts > 1][0])} {counts.max()} times; an "
            "example recorded twice would count twice. Correct the loader and pass resume=False."
        )


def _class_names(cascade: Cascade, loader: Loader, given: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the classes, in the order that all agree on; given ones go before all others.

    Raises:
        InputError: If a class has one number here and another one there.
    """
    if given is not None and not len(given):
        return ()
    told = {
        "class_names": tuple(given or ()),
        "the cascade": tuple(cascade.class_names),
        "the data set": tuple(getattr(dataset_of(loader), "class_names", None) or ()),
    }
    named = [(who, names) for who, names in told.items() if names]
    for (one, first), (other, second) in combinations(named, 2):
        _check_order(one, first, other, second)
    return named[0][1] if named else ()


def _check_order(one: str, first: Sequence[str], other: str, second: Sequence[str]) -> None:
    """Raise `InputError` if a name that both have stands at another place in each."""
    if first == second:
        return
    known = set(first)
    for number, name in enumerate(second):
        if name in known and (number >= len(first) or first[number] != name):
            raise InputError(
                f"class_names must be in one order, got {_shown(first)} of {one} and "
                f"{_shown(second)} of {other}: label {number} of the latter is {shown_id(name)}, "
                "and would be compared with another class. Give the data set or the stages the "
                "order of the other (in_order); or class_names=[], where only the names are wrong."
            )


def _shown(names: Sequence[str]) -> str:
    """Names, the first of many."""
    return f"{list(names[:10])}{f' and {len(names) - 10} more' if len(names) > 10 else ''}"


def _fingerprint(cascade: Cascade, loader: Loader) -> dict[str, str]:
    """What makes recorded rows belong to this cascade and, where it can say so, this data set."""
    functions = [getattr(stage.module, "fingerprint", "") for stage in cascade]
    return {
        **({"functions": "; ".join(functions)} if any(functions) else {}),
        "stages": json.dumps(to_json(cascade.topology)),
        "transform": "; ".join(repr(stage.transform) for stage in cascade),
        "weights": weights_digest({stage.name: stage for stage in cascade}),
        "examples": str(getattr(dataset_of(loader), "fingerprint", "")),
    }
