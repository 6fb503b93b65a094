"""What a server counts, for Prometheus: base units, and no label without bound.

Labels are names of models, gears and stages, which a bundle bounds, and words of a fixed list.
Each server has a registry of its own.

Layer: serve.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Final, final

import numpy as np
import torch

from offramp._core.optional import imported
from offramp.runtime import REASONS, Executor, Prediction, Ran

#: Why a request was not answered.
REFUSED: Final = ("full", "stopping", "deadline", "cancelled", "invalid", "error")

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@final
class Metrics:
    """The metrics of one server.

    Thread-safe.

    Raises:
        MissingExtraError: If prometheus_client is not installed.

    >>> metrics = Metrics()
    >>> metrics.refused("m", "full")
    >>> 'offramp_refused_total{model="m",why="full"} 1.0' in metrics.text()
    True
    """

    def __init__(self) -> None:
        client = imported("prometheus_client", "serve")
        self._client, self.registry = client, client.CollectorRegistry()
        self._labels_of: list[tuple[Any, tuple[str, ...]]] = []
        self._examples = self._counter(
            "examples", "Examples answered, by where and why they left.", "gear", "stage", "reason"
        )
        self._requests = self._histogram(
            "request_duration_seconds", "From a request to its answer.", _SECONDS
        )
        self._refused = self._counter("refused", "Requests that were not answered.", "why")
        self._batch = self._histogram(
            "stage_batch_size", "Examples in a batch that a stage has run.", _SIZES, "stage"
        )
        self._fill = self._histogram(
            "stage_batch_fill_ratio", "The same over a full batch.", _SHARES, "stage"
        )
        self._stage = self._histogram(
            "stage_duration_seconds", "What a batch took at a stage.", _SECONDS, "stage"
        )
        self._failures = self._counter("stage_failures", "Batches that raised an error.", "stage")
        self._queue = self._gauge("queue_examples", "Examples that wait for a stage.", "stage")
        self._cost = self._counter("cost", "What was spent on answers.", "unit")
        self._instead = self._counter(
            "reference_cost", "What the reference alone would have cost.", "unit"
        )
        self._nonfinite = self._counter(
            "nonfinite", "Answers of stages that were not finite, or failed."
        )
        self._audits = self._counter(
            "audits", "Answers drawn to be compared with the reference's.", "gear", "outcome"
        )
        self._labels = self._counter("labels", "Late labels.", "outcome")
        self._capital = self._gauge(
            "audit_capital", "What bets against a promise hold; 1 at first.", "gear", "risk"
        )
        self._capital_limit = self._gauge(
            "audit_capital_alarm", "Capital at which a promise is broken.", "gear", "risk"
        )
        self._drift = self._gauge(
            "drift_capital", "What bets on a change hold; 1 at first.", "gear", "kind"
        )
        self._drift_limit = self._gauge(
            "drift_capital_alarm", "Capital at which there is a change.", "gear", "kind"
        )
        self._alarm = self._gauge("alarm", "1 once something was refuted, else 0.", "kind")
        self._gear = self._gauge("gear", "1 for the gear in use, else 0.", "gear")
        info = client.Gauge("offramp_build_info", "Always 1.", ["version"], registry=self.registry)
        info.labels(version("offramp")).set(1)
        self._executors: dict[str, Executor] = {}
        self._flushes: dict[str, Callable[[], None]] = {}

    # ---- what is told

    def ran(self, model: str) -> Callable[[Ran], None]:
        """For `Executor(observer=...)`: counts the batches of one model."""

        def observe(ran: Ran) -> None:
            self._batch.labels(model, ran.stage).observe(ran.examples)
            self._fill.labels(model, ran.stage).observe(min(ran.examples / ran.full, 1.0))
            self._stage.labels(model, ran.stage).observe(ran.seconds)
            if ran.failed:
                self._failures.labels(model, ran.stage).inc()

        return observe

    def answered(
        self,
        model: str,
        gear: str,
        answers: Sequence[tuple[Prediction, float]],
        *,
        unit: str = "",
        reference_cost: float = float("nan"),
    ) -> None:
        """Some requests were answered.

        Args:
            model: Its name.
            gear: What answered.
            answers: Each with the seconds from its request to it; at least one.
            unit: Of the costs; where there is none, none are counted.
            reference_cost: Of one example, in this unit.
        """
        observe = self._requests.labels(model).observe
        for _, seconds in answers:
            observe(seconds)
        each = [prediction for prediction, _ in answers]
        stage, reason, nonfinite = (
            torch.cat([getattr(prediction, name) for prediction in each])
            for name in ("stage", "reason", "nonfinite")
        )
        costs = [prediction.cost for prediction in each if prediction.cost is not None]
        spent = float(torch.cat(costs).nansum()) if costs else 0.0
        bad, n = int(nonfinite.sum()), len(stage)
        names = (*each[0].stage_names, "none")  # stage -1: nobody has answered
        codes = (stage * len(REASONS) + reason).cpu().numpy()
        kinds, counts = np.unique(codes, return_counts=True)
        for code, count in zip(kinds.tolist(), counts.tolist(), strict=True):
            at, why = divmod(code, len(REASONS))
            self._examples.labels(model, gear, names[at], REASONS[why]).inc(count)
        if bad:
            self._nonfinite.labels(model).inc(bad)
        if unit:
            self._cost.labels(model, unit).inc(spent)
            if reference_cost >= 0:
                self._instead.labels(model, unit).inc(n * reference_cost)

    def refused(self, model: str, why: str) -> None:
        """A request was not answered; `why` is one of `REFUSED`."""
        self._refused.labels(model, why if why in REFUSED else "error").inc()

    def audited(self, model: str, gear: str, outcome: str) -> None:
        """An answer was drawn: it "agrees", "differs", was "dropped", or "failed"."""
        self._audits.labels(model, gear, outcome).inc()

    def labeled(self, model: str, counted: int, unknown: int) -> None:
        """Labels have come, for audited answers and for others."""
        self._labels.labels(model, "counted").inc(counted)
        self._labels.labels(model, "unknown").inc(unknown)

    def capital(self, model: str, gear: str, risk: str, value: float, limit: float) -> None:
        """What the bets against a promise hold, and where the alarm is."""
        self._capital.labels(model, gear, risk).set(value)
        self._capital_limit.labels(model, gear, risk).set(limit)

    def drift(self, model: str, gear: str, kind: str, value: float, limit: float) -> None:
        """What the bets on a change hold, and where the alarm is."""
        self._drift.labels(model, gear, kind).set(value)
        self._drift_limit.labels(model, gear, kind).set(limit)

    def alarm(self, model: str, kind: str, *, on: bool) -> None:
        """Whether something of a kind was refuted."""
        self._alarm.labels(model, kind).set(on)

    def gear(self, model: str, gear: str, names: Sequence[str]) -> None:
        """The gear in use, of all that there are."""
        for name in {*names, gear}:
            self._gear.labels(model, name).set(name == gear)

    def queue(self, model: str, executor: Executor) -> None:
        """From now on the queues of an executor are read whenever somebody asks."""
        self._executors[model] = executor

    def before(self, model: str, flush: Callable[[], None]) -> None:
        """From now on call something before anybody is told of the numbers of a model."""
        self._flushes[model] = flush

    def forget(self, model: str, executor: Executor | None = None) -> None:
        """Show nothing of a model any more, which is not served now.

        Args:
            model: Its name.
            executor: Its own; where another has taken the name over since, nothing is forgotten.
        """
        if executor is not None and self._executors.get(model) is not executor:
            return
        self._executors.pop(model, None)
        self._flushes.pop(model, None)
        for metric, names in self._labels_of:
            samples = [sample.labels for family in metric.collect() for sample in family.samples]
            held = {tuple(of[name] for name in names) for of in samples if of["model"] == model}
            for key in held:
                metric.remove(*key)

    @property
    def kind(self) -> str:
        """The content type of `text`."""
        return str(self._client.CONTENT_TYPE_LATEST)

    def text(self) -> str:
        """Everything in Prometheus' text form."""
        for flush in list(self._flushes.values()):
            flush()
        for model, executor in list(self._executors.items()):
            for stage, count in executor.waiting().items():
                self._queue.labels(model, stage).set(count)
        text: bytes = self._client.generate_latest(self.registry)
        return text.decode()

    # ---- making

    def _made(self, kind: Any, name: str, text: str, labels: Sequence[str], **options: Any) -> Any:  # noqa: ANN401
        names = ("model", *labels)
        metric = kind(f"offramp_{name}", text, names, registry=self.registry, **options)
        self._labels_of.append((metric, names))
        return metric

    def _counter(self, name: str, text: str, *labels: str) -> Any:  # noqa: ANN401
        return self._made(self._client.Counter, f"{name}_total", text, labels)

    def _gauge(self, name: str, text: str, *labels: str) -> Any:  # noqa: ANN401
        return self._made(self._client.Gauge, name, text, labels)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Any:  # noqa: ANN401
        return self._made(self._client.Histogram, name, text, labels, buckets=buckets)
