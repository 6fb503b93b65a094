"""What watches over a model that is served: drift, audits, late labels, and the alarms they raise.

Of `delta`, the largest chance of any false alarm, ever, one half is for promises and one for drift,
each divided evenly over the gears.

Layer: serve.  Source: docs/adr/0053.
"""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch

from offramp._core.checks import check_choice, check_known, check_probability
from offramp._core.errors import InputError, StorageError
from offramp._core.ids import as_ids
from offramp._core.schema import to_json
from offramp._core.types import AnyBatch, Ids
from offramp.policy import Policy
from offramp.policy.gears import REFERENCE
from offramp.runtime import Adaptive, Executor, Prediction, policy_of
from offramp.serve.alarms import Alarm, Feedback
from offramp.serve.answered import Answered, Told, told
from offramp.serve.audit import Audits, Case, rows_of
from offramp.serve.drift import Drift, Watch
from offramp.serve.exits import Exits
from offramp.serve.metrics import Metrics
from offramp.serve.order import InOrder
from offramp.serve.promises import Promises, best_labels, monitors_of
from offramp.serve.state import State
from offramp.serve.watch import BLOCK, DriftMonitor, Learning

_log = logging.getLogger(__name__)

OWN = "model"  # how the model itself is called where it runs in no gear
LATE = 1.0  # seconds that it may take from an answer until it is told of

OnAlarm = Literal["reference", "keep"]


@final
class Observer:
    """Told of every answer of one model; counts, audits, and raises alarms.

    Thread-safe.

    Args:
        name: Of the model.
        model: What is served.
        audit: Share of the examples whose answers are compared with the reference's, in [0, 1].
        delta: Largest chance of any false alarm, ever, in (0, 1).
        on_alarm: What answers once a promise is broken: "reference", or what was asked for.
        metrics: Where to count.
        folder: Where audits and what they came to are kept over a restart; None for nowhere.
        part: Of several processes that keep in one folder which this is.
        parts: How many these are. They share the promises; each watches its own traffic for drift,
            with its share of `delta`.
        seed: Of the draw of audits.
        clock: Gives seconds that do not go back; for tests.

    Raises:
        InputError: If `audit`, `delta` or `on_alarm` is outside its domain, or answers shall be
            audited and no reference is known; or as `State`.

    >>> import torch
    >>> from offramp import Candidate, Cascade
    >>> cascade = Cascade.from_models({"a": torch.nn.Linear(4, 3), "b": torch.nn.Linear(4, 3)})
    >>> model = Adaptive(cascade, Candidate.single(cascade.topology, "a", reference="b"))
    >>> observer = Observer("m", model)
    >>> observer.answered(torch.zeros(2, 4), ["x", "y"], model(torch.zeros(2, 4)), 0.01)
    >>> observer.status()["examples"], observer.alarms
    (2, ())
    """

    def __init__(
        self,
        name: str,
        model: Adaptive,
        *,
        audit: float = 0.0,
        delta: float = 0.1,
        on_alarm: OnAlarm = "keep",
        metrics: Metrics | None = None,
        folder: Path | None = None,
        part: int = 0,
        parts: int = 1,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_probability("delta", delta)
        check_choice("on_alarm", on_alarm, ("reference", "keep"))
        self._top = 1
        self.name, self._model, self._on_alarm = name, model, on_alarm
        self._metrics, self._clock, self._lock = metrics, clock, threading.Lock()
        self._audits = Audits(audit, seed, self._audited)
        if self._audits.rate > 0 or on_alarm == "reference":
            self._top = model.candidate.top  # raises an error where no reference is known
        self._own = OWN if model.gear is None else model.gear
        self._executor: Executor | None = None
        self._state = State(folder)
        self._key = f"{name}/{_digest(model)}"
        self._own_key = self._key if parts == 1 else f"{self._key}/{part}"
        promises = {gear.name: gear.guarantee for gear in model.gears}
        promises = promises or {OWN: getattr(model.choice, "guarantee", None)}
        self._promises = Promises(self._key, monitors_of(promises, delta / 2), self._state)
        tested = {gear.name: gear for gear in model.gears}
        self._exits = Exits(model.stage_names, {name: gear.exits for name, gear in tested.items()})
        models = {gear: model.in_gear(gear) for gear in model.gears.names} or {OWN: model}
        share = delta / 2 / len(models) / parts
        self._drift = {g: Drift(g, each, tested.get(g), share) for g, each in models.items()}
        for drift in self._drift.values():
            drift.restore(self._state, self._own_key)
        self._unit = "" if model.costs is None else model.costs.unit
        self._reference_cost = cost_of_reference(model)
        self._heard: list[Answered] = []  # and not counted yet
        self._waiting = 0  # examples in there
        self._in_order = InOrder[Told]()
        self._count = self._nonfinite = self._compared = self._differ = 0
        self._cost = self._instead = 0.0
        self._failed = False  # whether storing has failed, which is said once
        self._tell(self.alarms)
        if metrics is not None:
            metrics.before(name, self.flush)

    # ---- what the server tells

    def start(self, executor: Executor) -> None:
        """Begin to audit; the executor must have the reference among its gears (`all_gears`).

        Answers are from now on handed to the watches over drift in the order of their requests.

        Raises:
            UnknownNameError: If it has not, and something is to be audited, or answered by it.
        """
        if self._audits.rate > 0 or self._on_alarm == "reference":
            check_known("gear", REFERENCE, executor.gears)
        self._executor = executor
        self._audits.start(executor)

    def answered(
        self,
        rows: AnyBatch,
        ids: Ids | Sequence[int | str],
        prediction: Prediction,
        seconds: float,
        *,
        gear: str | None = None,
    ) -> None:
        """Take in what was answered; it is counted with others, a little later.

        Args:
            rows: What was asked, as it went to the executor.
            ids: As they went to the executor, and as whoever sends labels will call them.
            prediction: What was answered.
            seconds: From the request to its answer.
            gear: What answered; None for the model itself.
        """
        gear = self._own if gear is None else gear
        one = Answered(self._clock() - seconds, rows, as_ids(ids), prediction, seconds, gear)
        with self._lock:
            self._heard.append(one)
            self._waiting += len(prediction)
            full = self._waiting >= BLOCK
        if full:
            self.flush()

    def flush(self) -> None:
        """Count everything that was answered so far; this happens by itself after some examples."""
        until = self._clock()
        if self._executor is not None:  # before the lock: it takes the executor's
            until -= self._executor.age() + LATE
        with self._lock:
            heard, self._heard, self._waiting = self._heard, [], 0
            self._count_answers(heard)
            for one, what in zip(heard, told(heard), strict=True):
                self._in_order.add(one.came, what)
            self._drifted(self._in_order.until(until))
            if self._promises.refresh():
                self._tell([])
        self._draw(heard)

    def feedback(self, ids: Sequence[int | str], labels: Sequence[int | str]) -> Feedback:
        """Count labels that have come after the answers.

        Only those of audited answers count, which were drawn at random: whoever sends the labels
        chooses which, and a choice would say something of the answers.

        Args:
            ids: Of the examples, `(n,)`.
            labels: By name or index, `(n,)`.

        Raises:
            InputError: If they are not of one number, or a label is no class.
            UnknownNameError: If a label is the name of no class.
            StorageError: If they cannot be written; those before are counted.
        """
        if len(ids) != len(labels):
            raise InputError(
                f"labels must be one for each id, got {len(labels)} for {len(ids)} ids."
            )
        indices, counted = [self._label(label) for label in labels], 0
        for name, label in zip(ids, indices, strict=True):
            with self._lock:
                new = self._promises.labeled(name, label)
                counted += new is not None
                self._tell(new or [])
        if self._metrics is not None:
            self._metrics.labeled(self.name, counted, len(ids) - counted)
        return Feedback(counted, len(ids) - counted)

    def gear(self, wanted: str | None) -> str | None:
        """What is to answer: what was asked for, or the reference where a promise is broken."""
        return REFERENCE if self.broken and self._on_alarm == "reference" else wanted

    def close(self) -> None:
        """Nothing comes any more."""
        self.flush()
        self._audits.close()
        with self._lock:
            self._state.close()

    # ---- what the server asks

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """All that were raised, those of promises first."""
        drift = (alarm for each in self._drift.values() for alarm in each.alarms)
        return (*self._promises.alarms, *drift)

    @property
    def broken(self) -> bool:
        """Whether a promise was refuted."""
        return any(watch.alarm for watch in self._promises.monitors.values())

    def status(self) -> dict[str, Any]:
        """Everything in numbers, as JSON values."""
        self.flush()
        with self._lock:
            return {
                "examples": self._count,
                "nonfinite": self._nonfinite,
                "cost": self._cost,
                "reference_cost": self._instead,
                "stages": self._exits.told(),
                "audits": {
                    "waiting": len(self._audits),
                    "compared": self._compared,
                    "differ": self._differ,
                    "without_label": len(self._state),
                },
                "promises": [
                    {"gear": gear, "risk": risk, "limit": watch.limit, "n": watch.n}
                    | {"capital": watch.wealth, "alarm_at": 1 / watch.delta, "alarm": watch.alarm}
                    for (gear, risk), watch in self._promises.monitors.items()
                ],
                "drift": [
                    {"gear": gear, "kind": kind, **_shown(watch)}
                    for gear, drift in self._drift.items()
                    for kind, watch in drift.watches.items()
                ],
                "alarms": to_json(list(self.alarms)),
            }

    # ---- drift, audits

    def _count_answers(self, heard: Sequence[Answered]) -> None:
        for gear in dict.fromkeys(one.gear for one in heard):
            answers = [(one.prediction, one.seconds) for one in heard if one.gear == gear]
            each = [answer for answer, _ in answers]
            stage = torch.cat([answer.stage for answer in each])
            self._count += len(stage)
            self._exits.count(gear, stage.cpu().numpy())
            self._nonfinite += int(torch.cat([answer.nonfinite for answer in each]).sum())
            if costs := [answer.cost for answer in each if answer.cost is not None]:
                cost = torch.cat(costs)
                self._cost += float(cost.nansum())
                self._instead += len(cost) * self._reference_cost
            if self._metrics is not None:
                self._metrics.answered(
                    self.name,
                    gear,
                    answers,
                    unit=self._unit,
                    reference_cost=self._reference_cost,
                )

    def _drifted(self, answers: Sequence[Told]) -> None:
        for gear, drift in self._drift.items():
            of_gear = Told.joined([one for one in answers if one.gear == gear])
            if of_gear is None:
                continue
            for kind, watch, new in drift.update(*of_gear[1:]):
                with self._quietly(), self._state.together():
                    self._state.keep(drift.place(self._own_key, kind), watch)
                if self._metrics is not None and isinstance(watch, DriftMonitor):
                    self._metrics.drift(self.name, gear, kind, watch.wealth, 2 / watch.delta)
                self._tell([] if new is None else [new])

    def _draw(self, heard: Sequence[Answered]) -> None:
        """Offer who is audited."""
        for one, drawn in self._audits.drawn_of(heard):
            singles = rows_of(one.rows, self._model.program.take_in, drawn)
            labels = best_labels(one.prediction, self._top)
            for row, single in zip(drawn, singles, strict=True):
                case = Case(one.ids[row].item(), single, one.gear, labels[row])
                if not self._audits.offer(case):
                    self._count_audit(one.gear, "dropped")

    def _audited(self, case: Case, said: Prediction | None) -> None:
        """The reference has answered as well, or could not."""
        if said is None or not bool(said.valid[0]):
            self._count_audit(case.gear, "failed")
            return
        reference = best_labels(said, self._top)[0]
        differs = case.answer[:1] != reference[:1]
        with self._lock:
            self._compared += 1
            self._differ += differs
            with self._quietly():
                self._tell(self._promises.compared(case.name, case.gear, case.answer, reference))
        self._count_audit(case.gear, "differs" if differs else "agrees")

    def _label(self, label: int | str) -> int:
        names = self._model.class_names
        if isinstance(label, str):
            return names.index(check_known("class", label, names))
        most = len(names) or 2**31
        whole = isinstance(label, int | np.integer) and not isinstance(label, bool)
        if not whole or not 0 <= label < most:
            raise InputError(
                f"labels must be names of classes or integers in [0, {most}), got {label!r}."
            )
        return int(label)

    # ---- telling

    def _tell(self, alarms: Iterable[Alarm]) -> None:
        """Tell of new alarms, and of the capital as it is now."""
        for alarm in alarms:
            _log.warning("Model %r: %s", self.name, alarm.text)
        if self._metrics is not None:
            for (gear, risk), watch in self._promises.monitors.items():
                self._metrics.capital(self.name, gear, risk, watch.wealth, 1 / watch.delta)
            for kind in ("promise", "exits", "scores"):
                on = any(alarm.kind == kind for alarm in self.alarms)
                self._metrics.alarm(self.name, kind, on=on)

    def _count_audit(self, gear: str, outcome: str) -> None:
        if self._metrics is not None:
            self._metrics.audited(self.name, gear, outcome)

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Whoever is answered must not suffer from a full disk."""
        try:
            yield
        except StorageError as error:
            if not self._failed:
                _log.error("Audits are not counted any more: %s", error)
            self._failed = True


def _shown(watch: Watch) -> dict[str, Any]:
    if isinstance(watch, Learning):
        return {"learned": watch.size, "wanted": watch.wanted}
    return {
        "n": watch.n,
        "capital": watch.wealth,
        "alarm_at": 2 / watch.delta,
        "alarm": watch.alarm,
        "moved": watch.moved,
    }


def cost_of_reference(model: Adaptive) -> float:
    """What the reference alone costs for one example, in the unit of the costs; NaN if unknown."""
    if model.costs is None or isinstance(model.choice, Policy):
        return float("nan")
    topology = model.policy.topology
    return model.costs.alone(topology, topology.index(model.candidate.reference))


def _digest(model: Adaptive) -> str:
    """Of what is run and promised, so that another bundle of the same name begins anew."""
    alone = [policy_of(model.choice), getattr(model.choice, "guarantee", None)]
    held = model.gears or alone  # whichever of its gears it begins in
    return hashlib.sha256(json.dumps(to_json(held)).encode()).hexdigest()[:16]
