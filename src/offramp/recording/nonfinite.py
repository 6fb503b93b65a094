"""Examples for which a network gives NaN or infinity: refused, left out, or counted as wrong.

They are stored as they come, as NaN, and treated when the trace is written. So an interrupted
recording goes on under whichever choice it is called with.

Layer: recording.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, final

import numpy as np

from offramp._core.errors import InputError
from offramp._core.ids import shown_id
from offramp._core.types import BoolArray, Ids, IntArray
from offramp.recording.said import Said

Nonfinite = Literal["error", "skip", "wrong"]
HOW: tuple[Nonfinite, ...] = ("error", "skip", "wrong")

_NAMED = 20  # examples that a note names


@final
class Treatment:
    """What becomes of the examples of one recording that hold NaN.

    Args:
        how: "skip" leaves them out; "wrong" lets the stage answer another class than the label,
            as unsure as it can be.
        parts: All that was said, in order.

    Raises:
        InputError: If there is one and `how` is "error", or "skip" leaves nothing.
    """

    def __init__(
        self, how: Nonfinite, parts: Iterable[Said], ids: Ids, stages: Sequence[str]
    ) -> None:
        self.bad: BoolArray = np.concatenate([part.missing() for part in parts])
        self._how = how
        rows: BoolArray = np.asarray(self.bad.any(axis=1))
        self.keep: BoolArray = ~rows if how == "skip" else np.full_like(rows, True)
        if how == "error" and rows.any():
            row = int(rows.argmax())
            raise InputError(refusal(ids[row], stages[int(self.bad[row].argmax())]))
        if not self.keep.any():
            raise InputError(
                f"Every one of the {len(ids)} examples has a stage that gives NaN or infinity; "
                "nothing is left to record. Find out why the networks give such an output."
            )
        self.notes = (_note(how, self.bad, ids, stages),) if rows.any() else ()

    def said(self, parts: Iterable[Said], labels: IntArray) -> Iterator[Said]:
        """What the trace holds, part by part."""
        start = 0
        for part in parts:
            stop = start + len(part)
            bad, keep = self.bad[start:stop], self.keep[start:stop]
            if bad.any():
                skip, own = self._how == "skip", labels[start:stop]
                part = part.take(keep) if skip else part.wrong_at(bad, own)
            if len(part):
                yield part
            start = stop


def refusal(name: Any, stage: str, failed: Sequence[str] = ()) -> str:  # noqa: ANN401
    """What is wrong with an example without a finite answer, and what can be done.

    Args:
        name: Its id, of numpy.
        stage: Who has not answered.
        failed: Of a service why calls have failed.
    """
    what = (
        f"logits must be finite, got NaN or infinity for example {shown_id(name)}, stage "
        f"{stage!r}. Find out why the network gives such an output"
    )
    if failed:
        what = (
            f"Stage {stage!r} has not answered example {shown_id(name)} ({'; '.join(failed)}). The "
            "same call asks again where it did not, and pays for nothing twice"
        )
    return (
        f"{what}; or record with nonfinite='skip' (--on-nonfinite skip), which leaves such "
        "examples out, or 'wrong', which counts them as wrong."
    )


def _note(how: Nonfinite, bad: BoolArray, ids: Ids, stages: Sequence[str]) -> str:
    rows = np.flatnonzero(bad.any(axis=1))
    names = ", ".join(str(ids[row]) for row in rows[:_NAMED])
    more = "" if len(rows) <= _NAMED else f" and {len(rows) - _NAMED} more"
    broken = np.flatnonzero(bad.any(axis=0)).tolist()
    who = ", ".join(f"{stages[k]!r} for {bad[:, k].sum()}" for k in broken)
    what = "left out" if how == "skip" else "counted as wrong where that is so"
    return (
        f"{len(rows)} of {len(ids)} examples {what}, because stages gave NaN or infinity ({who}): "
        f"{names}{more}."
    )
