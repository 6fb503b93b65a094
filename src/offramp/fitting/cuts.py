"""The exact choice of a threshold: every cut of a score is tried, by sums along its ranking.

Layer: fitting.  Source: methods.md 1 c (the bias is set by an exact scan of the weighted 0/1
objective).
"""

from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64


class Cut(NamedTuple):
    """The action is taken by the `taken` examples of highest score.

    Args:
        taken: How many of those that were ranked.
        total: Sum of their gains.
    """

    taken: int
    total: float


@final
class Ranking:
    """Examples by falling score, sorted once for any number of gains.

    Args:
        scores: `(n,)`, float32; equal scores stand on the same side of every cut.

    >>> ranking = Ranking(np.array([0.1, 0.9, 0.5], dtype=np.float32))
    >>> cut = ranking.best(np.array([1.0, -2.0, 1.0]))
    >>> cut, round(ranking.value(cut), 3)
    (Cut(taken=1, total=-2.0), 0.7)
    """

    def __init__(self, scores: Float32[np.ndarray, " n"]) -> None:
        #: The examples by falling score, `(n,)`; equals as they come.
        self.order, self._falling = falling(scores)
        differ = self._falling[1:] != self._falling[:-1]
        #: The last of each run of equals; None where no two are equal.
        self._ends = None if differ.all() else np.flatnonzero(np.append(differ, True))

    def best(self, gains: Float64[np.ndarray, " n"], *, below: float = np.inf) -> Cut:
        """The cut that minimizes the sum of `gains` over the examples above it, exactly.

        Args:
            gains: What taking the action adds to the objective, `(n,)`; negative is good, and 0
                of examples that do not count.
            below: A cut with a higher sum is of no use; then nobody is taken.

        Returns:
            Among equal sums the cut that takes the most, the cheaper action by convention.
        """
        sums = np.empty(len(gains))  # PyTorch fetches faster, NumPy has memory faster
        into = torch.from_numpy(sums)
        torch.index_select(torch.from_numpy(gains), 0, torch.from_numpy(self.order), out=into)
        running_sum(sums, out=sums)  # sums[i]: the i + 1 highest are taken
        sums = sums if self._ends is None else sums[self._ends]
        least = float(sums.min(initial=0.0))
        if least > below:
            return Cut(0, 0.0)
        limit = least + 1e-12 * max(1.0, -least, float(sums.max(initial=0.0)))
        found = np.flatnonzero(sums <= limit)
        if not len(found):
            return Cut(0, 0.0)
        last = found[-1]
        end = last if self._ends is None else self._ends[last]
        return Cut(int(end) + 1, float(sums[last]))

    def value(self, cut: Cut, rows: Bool[np.ndarray, " n"] | None = None) -> float:
        """The score to cut at, half-way between two examples.

        Args:
            cut: Of this ranking.
            rows: Examples that count; by default all. The others stand on either side.

        Returns:
            A float32 number: the action is taken where score >= value. Infinity takes nobody,
            -infinity everybody.
        """
        falling, taken = self._falling, cut.taken
        if rows is not None and not rows.all():
            counted = np.flatnonzero(rows[self.order])
            falling, taken = falling[counted], int(np.searchsorted(counted, taken))
        if taken == 0:
            return np.inf
        if taken == len(falling):
            return -np.inf
        return _between(falling[taken], falling[taken - 1])

    def above(self, value: float) -> Bool[np.ndarray, " n"]:
        """Examples with a score of at least `value`, a float32 number."""
        found = np.zeros(len(self.order), dtype=np.bool_)
        found[self.order[: np.count_nonzero(self._falling >= np.float32(value))]] = True
        return found


def falling(
    scores: Float32[np.ndarray, " n"],
) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Indices by falling score, and the scores in this order; equal ones stay as they come.

    >>> order, scores = falling(np.array([0.5, -1.0, 2.0, 0.5], dtype=np.float32))
    >>> order.tolist(), scores.tolist()
    ([2, 0, 3, 1], [2.0, 0.5, 0.5, -1.0])
    """
    # The bits of floats, read as whole numbers, rise with them, or fall where they are negative.
    # With the index behind them they are sorted in half the time of an argsort.
    keys = _rising((0.0 - scores).view(np.int32)).astype(np.int64)
    keys <<= 32
    keys |= np.arange(len(scores))
    keys.sort()
    # Read back, which is faster than fetching each from where it stands.
    found = 0.0 - _rising((keys >> 32).astype(np.int32)).view(np.float32)
    keys &= 0xFFFFFFFF
    return keys, found


def _rising(bits: Int32[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
    """Numbers that rise with the floats whose bits these are; twice is as before."""
    found: Int32[np.ndarray, " n"] = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return found


def running_sum(
    values: Float64[np.ndarray, "*k n"], *, out: Float64[np.ndarray, "*k n"] | None = None
) -> Float64[np.ndarray, "*k n"]:
    """Sums of the first 1, 2, ... along the last axis; PyTorch adds several at a time.

    Args:
        values: What is summed.
        out: Where to put them; `values` itself will do.
    """
    into = None if out is None else torch.from_numpy(out)
    return torch.cumsum(torch.from_numpy(values), dim=-1, out=into).numpy()


def _between(low: np.floating, high: np.floating) -> float:
    """A float32 number in (low, high]: the middle where it is one."""
    middle = np.float32(0.5) * np.float32(low) + np.float32(0.5) * np.float32(high)
    return float(middle if low < middle <= high else high)


def best_cut_reference(scores: Float[np.ndarray, " n"], gains: Float64[np.ndarray, " n"]) -> float:
    """The slow obvious twin: the smallest sum over all cuts."""
    cuts = [np.inf, *np.unique(scores)]
    return min(float(gains[scores >= cut].sum()) for cut in cuts)
