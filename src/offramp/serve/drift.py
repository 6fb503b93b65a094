"""What a gear's traffic is compared by: who leaves where, and how sure the answers are.

Where a bundle says how many examples left at each stage when the gear was tested, and how sure
their answers were, that is the baseline; else the first examples that come are.

Layer: serve.
"""

from collections.abc import Iterator
from typing import final

import numpy as np

from offramp._core.types import BoolArray, FloatArray, IntArray
from offramp.policy.gears import SCORES, Gear
from offramp.runtime import Adaptive
from offramp.serve.alarms import Alarm
from offramp.serve.state import State
from offramp.serve.watch import BLOCK, DriftMonitor, Learning

LEARNED = 2000  # examples that make a baseline where none is known

_OFTEN = 10  # blocks from one time that a watch is kept to the next

Watch = DriftMonitor | Learning


@final
class Drift:
    """Watches over the exits and the confidences of one gear.

    Args:
        gear: Its name.
        model: In that gear.
        tested: What is known of it from where it was tested, or None.
        delta: Largest chance of a false alarm, ever, of all its watches together.

    >>> import torch
    >>> from offramp import Cascade
    >>> cascade = Cascade.from_models({"a": torch.nn.Linear(4, 3), "b": torch.nn.Linear(4, 3)})
    >>> list(Drift("fast", Adaptive.single(cascade, "a"), None, 0.1).watches)
    ['scores']
    """

    def __init__(self, gear: str, model: Adaptive, tested: Gear | None, delta: float) -> None:
        self.gear = gear
        ends = sorted({path[-1] for path in model.policy.topology.paths()})
        # One event alone says nothing; of two the second is that the first does not happen.
        self._ends = ends if len(ends) > 2 else ends[:-1]
        events = {"exits": tuple(f"left at {model.stage_names[k]}" for k in self._ends)}
        events["scores"] = tuple(f"confidence below {score:g}" for score in SCORES)
        each = {kind: names for kind, names in events.items() if names}
        self.watches: dict[str, Watch] = {}
        exits, scores = ((), ()) if tested is None else (tested.exits, tested.scores)
        known = {"exits": tuple(exits[k] for k in self._ends) if exits else (), "scores": scores}
        for kind, names in each.items():
            share, size = delta / len(each), sum(exits)
            if known[kind] and size:
                self.watches[kind] = DriftMonitor.of(names, known[kind], size, delta=share)
            else:
                none = (0,) * len(names)
                self.watches[kind] = Learning(
                    events=names, seen=none, size=0, wanted=LEARNED, delta=share
                )

    @property
    def alarms(self) -> list[Alarm]:
        """Of everything that has changed."""
        return [self._changed(*each) for each in self.watches.items() if alarmed(each[1])]

    def restore(self, state: State, key: str) -> None:
        """Go on with watches that were kept, if they compare with the same baseline."""
        for kind, fresh in self.watches.items():
            held = state.kept(self.place(key, kind), DriftMonitor) or state.kept(
                self.place(key, kind), Learning
            )
            if held is None or (held.events, held.delta) != (fresh.events, fresh.delta):
                continue
            if isinstance(fresh, Learning) or held.seen == fresh.seen:
                self.watches[kind] = held

    def place(self, key: str, kind: str) -> str:
        """Under what a watch is kept."""
        return f"{key}/drift/{self.gear}/{kind}"

    def _changed(self, kind: str, watch: Watch) -> Alarm:
        moved = watch.moved if isinstance(watch, DriftMonitor) else ""
        text = (
            f"In gear {self.gear!r} {moved} often than in the baseline of {watch.size} examples: "
            "what comes has changed."
        )
        return Alarm(kind=kind, gear=self.gear, text=text)

    def update(
        self, stage: IntArray, confidence: FloatArray, known: BoolArray
    ) -> Iterator[tuple[str, Watch, Alarm | None]]:
        """Take in answers, in the order in which their requests came.

        Args:
            stage: Where each left, `(n,)`.
            confidence: How sure each answer is, `(n,)`; NaN where nobody says so.
            known: False where something else than the policy let it go, `(n,)`.

        Yields:
            The kinds that should be kept now, what they are, and the alarm if it is a new one.
        """
        happened = {
            "exits": stage[:, None] == np.array(self._ends),
            "scores": confidence[:, None] < np.array(SCORES),
        }
        sure = {"exits": known, "scores": known & ~np.isnan(confidence)}
        for kind, before in self.watches.items():
            after = self.watches[kind] = before.update(happened[kind], sure[kind])
            new = alarmed(after) and not alarmed(before)
            if new or _steps(after) != _steps(before):
                yield kind, after, self._changed(kind, after) if new else None


def alarmed(watch: Watch) -> bool:
    """Whether a watch has raised an alarm."""
    return isinstance(watch, DriftMonitor) and watch.alarm


def _steps(watch: Watch) -> tuple[bool, int]:
    if isinstance(watch, DriftMonitor):
        return True, watch.blocks // _OFTEN
    return False, watch.size // (BLOCK * _OFTEN)
