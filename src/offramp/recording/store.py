"""Where recorded rows go, and the store that keeps them in memory.

Layer: recording.
"""

from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp._core.types import Ids, IntArray
from offramp.recording.nonfinite import Nonfinite, Treatment
from offramp.recording.rows import Rows
from offramp.recording.said import PRICES, Said, mean_costs, notes_of
from offramp.trace import Trace


@final
@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a trace says besides its rows; the fields are those of `Trace`.

    Args:
        nonfinite: What becomes of examples that hold NaN (`offramp.recording.nonfinite`).
    """

    topology: Topology
    costs: Costs
    other_costs: tuple[Costs, ...]
    class_names: tuple[str, ...]
    seen_in_training: bool
    lossy: bool
    nonfinite: Nonfinite


@runtime_checkable
class Store(Protocol):
    """What `record` needs of a place for rows."""

    @property
    def rows(self) -> int:
        """Number of rows held."""
        ...

    def known(self, start: int, stop: int) -> tuple[IntArray, Ids]:
        """Labels and ids of rows that an interrupted run has recorded."""
        ...

    def append(self, rows: Rows, said: Said) -> None:
        """Add `m` rows with what the stages said about them."""
        ...

    def ids(self) -> Ids:
        """Ids of all rows, `(n,)`."""
        ...

    def finish(self, facts: Facts, split: Tensor | None) -> Trace:
        """Make the trace of all rows."""
        ...


@final
class MemoryStore:
    """Keeps rows in memory."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._said: list[Said] = []
        self._labels: list[IntArray] = []
        self._ids: list[Ids] = []

    @property
    def rows(self) -> int:
        """Number of rows held."""
        return sum(len(part) for part in self._labels)

    def known(self, start: int, stop: int) -> tuple[IntArray, Ids]:
        """Nothing was recorded by an earlier run."""
        raise InputError(f"Rows {start} to {stop} have not been recorded yet.")

    def append(self, rows: Rows, said: Said) -> None:
        """Add rows."""
        self._said.append(said.stored(self._dtype))
        self._labels.append(rows.labels)
        self._ids.append(rows.ids)

    def ids(self) -> Ids:
        """Ids of all rows."""
        return np.concatenate(self._ids)

    def finish(self, facts: Facts, split: Tensor | None) -> Trace:
        """Join the rows."""
        ids, labels = self.ids(), np.concatenate(self._labels)
        treatment = Treatment(facts.nonfinite, self._said, ids, facts.topology.names)
        parts, keep = list(treatment.said(self._said, labels)), treatment.keep
        arrays = {
            name: torch.from_numpy(np.concatenate([part.arrays[name] for part in parts]))
            for name in parts[0].arrays
        }
        paid = arrays.get(PRICES)
        return Trace(
            topology=facts.topology,
            labels=torch.from_numpy(labels[keep]),
            classes=parts[0].classes,
            costs=facts.costs if paid is None else mean_costs(facts.costs, paid.numpy()),
            other_costs=facts.other_costs,
            logits=arrays.get("logits"),
            ranked=arrays.get("ranked"),
            confidence=arrays.get("confidence"),
            prices=paid,
            ids=ids[keep],
            split=None if split is None else split[torch.from_numpy(keep)],
            class_names=facts.class_names,
            seen_in_training=facts.seen_in_training,
            lossy=facts.lossy,
            notes=(*treatment.notes, *notes_of(self._said, facts.topology.names)),
        )
