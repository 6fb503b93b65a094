"""Promises under watch: one `RiskMonitor` for each risk that a gear promises.

What an audit or a label changes is written first, whole or not at all, and counts then: after a
restart nothing is counted twice. Processes that have one file have one monitor in it: each goes on
from what the others have written.

Layer: serve.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import final

from offramp.policy.promise import Guarantee
from offramp.runtime import MONITORED, Prediction, RiskMonitor
from offramp.serve.alarms import Alarm
from offramp.serve.state import Pending, State

#: Risks that take a label, and those that take the reference's answer alone.
LABELED = ("accuracy_drop", "negative_flips", "error")


Key = tuple[str, str]  # gear and risk
Monitors = dict[Key, RiskMonitor]


@final
class Promises:
    """The monitors of one model, kept in a state. Not thread-safe.

    Args:
        key: Of what is served and promised; where the state has monitors of it, they go on.
        monitors: As they begin.
        state: Where they are kept.

    >>> watch = RiskMonitor(limit=0.1, delta=0.1, risk="error")
    >>> promises = Promises("v1", {("fast", "error"): watch}, State(None))
    >>> promises.compared("x", "fast", (1,), (2,)), promises.labeled("x", 1)
    ([], [])
    >>> promises.labeled("x", 1) is None, promises.monitors["fast", "error"].n
    (True, 1)
    """

    def __init__(self, key: str, monitors: Monitors, state: State) -> None:
        self._key, self._state = key, state
        self.monitors, self._seen = dict(monitors), -1
        self.refresh()

    def refresh(self) -> bool:
        """Go on from what other processes have written; False where nobody has."""
        if self._state.version == self._seen:
            return False
        self._seen = self._state.version
        for at, watch in self.monitors.items():
            held = self._state.kept(self._place(at), RiskMonitor)
            if held is not None and _same(held, watch):
                self.monitors[at] = held
        return True

    @property
    def alarms(self) -> list[Alarm]:
        """Of all promises that are broken."""
        return [_broken(*each) for each in self.monitors.items() if each[1].alarm]

    def compared(
        self, name: int | str, gear: str, answer: tuple[int, ...], reference: tuple[int, ...]
    ) -> list[Alarm]:
        """Count an audit, and wait for its label if one is of use.

        Args:
            name: Id of the example.
            gear: What answered.
            answer: Its best labels.
            reference: Those of the reference.

        Returns:
            The alarms that this has raised.

        Raises:
            StorageError: If it cannot be written.
        """

        def after() -> Monitors:
            if any((gear, risk) in self.monitors for risk in LABELED):
                pending = Pending(gear=gear, answer=answer, reference=reference)
                self._state.remember(self._key, name, pending)
            watch = self.monitors.get((gear, "disagreement"))
            differs = float(answer[:1] != reference[:1])
            return {} if watch is None else {(gear, "disagreement"): watch.update(differs)}

        return self._count(after) or []

    def labeled(self, name: int | str, label: int) -> list[Alarm] | None:
        """Count the label of an audited answer.

        Returns:
            The alarms that this has raised; None if nobody waits for the label.

        Raises:
            StorageError: If it cannot be written.
        """

        def after() -> Monitors | None:
            held = self._state.recall(self._key, name)
            if held is None:
                return None
            return {
                (held.gear, risk): watch.update(loss_of(risk, held.answer, held.reference, label))
                for risk in LABELED
                if (watch := self.monitors.get((held.gear, risk))) is not None
            }

        return self._count(after)

    def _count(self, find: Callable[[], Monitors | None]) -> list[Alarm] | None:
        with self._state.together():
            self.refresh()
            after = find()
            for at, watch in (after or {}).items():
                self._state.keep(self._place(at), watch)
        if after is None:
            return None
        new = [at for at, watch in after.items() if watch.alarm and not self.monitors[at].alarm]
        self.monitors |= after
        return [_broken(at, after[at]) for at in new]

    def _place(self, at: Key) -> str:
        return f"{self._key}/promise/{at[0]}/{at[1]}"


def monitors_of(promises: Mapping[str, Guarantee | None], delta: float) -> Monitors:
    """A monitor of each promised risk that can be watched, by gear and risk.

    Args:
        promises: By gear.
        delta: Largest chance that any of them raises a false alarm, ever; they share it evenly.

    >>> monitors_of({"reference": None}, 0.1)
    {}
    """
    found = {
        (gear, limit.risk): limit.at_most
        for gear, guarantee in promises.items()
        for limit in (() if guarantee is None else guarantee.limits)
        if limit.risk in MONITORED and limit.label is None
    }
    return {
        (gear, risk): RiskMonitor(limit=at_most, delta=delta / len(found), risk=risk)
        for (gear, risk), at_most in found.items()
    }


def loss_of(risk: str, answer: Sequence[int], reference: Sequence[int], label: int) -> float:
    """The loss of one answer whose label is known.

    Args:
        risk: One of `LABELED`.
        answer: The best labels, of which one has to be right.
        reference: Those of the reference.
        label: The right one.

    >>> loss_of("accuracy_drop", [1], [2], 2), loss_of("negative_flips", [2], [1], 2)
    (1.0, 0.0)
    """
    own, others = float(label not in answer), float(label not in reference)
    if risk == "error":
        return own
    return own - others if risk == "accuracy_drop" else max(0.0, own - others)


def best_labels(prediction: Prediction, top: int) -> list[tuple[int, ...]]:
    """The best labels of each answer, the first first; -1 where there is none.

    >>> import torch
    >>> from offramp import Adaptive, Cascade
    >>> model = Adaptive.single(Cascade.from_models({"a": torch.nn.Identity()}), "a")
    >>> best_labels(model(torch.tensor([[0.0, 2.0, 1.0]])), 2)
    [(1, 2)]
    """
    if top == 1 or prediction.log_probs is None:
        return [(label,) for label in prediction.labels.tolist()]
    best = prediction.log_probs.topk(top, dim=1).indices
    best = best.where(prediction.valid[:, None], -1)
    return [tuple(row) for row in best.tolist()]


def _same(held: RiskMonitor, fresh: RiskMonitor) -> bool:
    """Whether two monitors watch the same promise at the same level."""
    return (held.limit, held.delta, held.risk) == (fresh.limit, fresh.delta, fresh.risk)


def _broken(at: Key, watch: RiskMonitor) -> Alarm:
    gear, risk = at
    text = (
        f"The promise {risk} <= {watch.limit:g} of gear {gear!r} is broken: audit {watch.alarm_at} "
        f"has refuted it (delta = {watch.delta:g})."
    )
    return Alarm(kind="promise", gear=gear, text=text)
