"""Where to cut a cascade between places, and which policy suits the whole, links included.

Every cut has costs of its own, and where a carry is sent rounded a trace of its own; for each of
them policies are fitted and certified as for any cascade. As the cheapest of several is taken, each
is certified with its part of delta.

Layer: tuning.  Source: docs/adr/0056.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any, final

import numpy as np
import torch

from offramp._core.checks import check_kind, check_known
from offramp._core.costs import Costs
from offramp._core.cut import Cut, Send
from offramp._core.errors import InputError
from offramp._core.link import Link, Toll
from offramp._core.packing import LOSSLESS, WIDTHS, Packing
from offramp._core.types import BoolArray
from offramp.evaluation import fit, replay
from offramp.evaluation.choice import Choice
from offramp.policy import Evidence, Policy
from offramp.recording import record
from offramp.recording.rows import Loader
from offramp.risk.paired import upper_limit
from offramp.stages import Cascade
from offramp.trace import Trace
from offramp.tuning.carries import RAW, rounded


@final
@dataclass(frozen=True, kw_only=True)
class Offline:
    """What is known of the device's own answers, where the cloud cannot be had.

    Args:
        accuracy: On the examples that promises rest on.
        at_least: The accuracy on new examples is at least that, with probability 1 - `delta`.
        delta: Chance that this is wrong.
        n: Number of these examples.
    """

    accuracy: float
    at_least: float
    delta: float
    n: int


@final
@dataclass(frozen=True, kw_only=True)
class EdgePlan:
    """A cut, what is sent, and the policy for the whole.

    Args:
        places: Where the stages run, by name of the place; those of the first are the device's.
        send: What goes over the links.
        choice: The policy, with what is promised of the whole.
        costs: Of all stages where they run, and of the links.
        cost: Mean cost of an example, in their unit.
        alone: Mean cost of the reference alone in each place, what it reads being sent there.
        bytes: What one example sends on average.
        offline: Of the device's own answers.
        gateway_offline: Of three places: of the answers of the first two, without the last.
    """

    places: Mapping[str, tuple[str, ...]]
    send: Send
    choice: Choice
    costs: Costs
    cost: float
    alone: Mapping[str, float]
    bytes: float
    offline: Offline
    gateway_offline: Offline | None = None

    @property
    def device(self) -> tuple[str, ...]:
        """Names of the stages on the device."""
        return next(iter(self.places.values()))

    @property
    def worth(self) -> bool:
        """Whether it costs less than the reference alone, wherever that runs."""
        return self.choice.cascade and self.cost < min(self.alone.values())

    @property
    def sentence(self) -> str:
        """The plan in plain words."""
        unit = self.costs.unit
        where, least = min(self.alone.items(), key=lambda one: one[1])
        if not self.worth:
            return (
                f"Use the {where} alone: the reference costs {least:.4g} {unit} there, and no cut "
                f"is cheaper (the best costs {self.cost:.4g})."
            )
        cuts = "; ".join(f"{place}: {', '.join(names)}" for place, names in self.places.items())
        return (
            f"{cuts}; sent is {self.send}. An example costs {self.cost:.4g} {unit} on average, "
            f"{self.cost / least:.2f} of the {where} alone. Without the cloud the device is right "
            f"in at least {100 * self.offline.at_least:.1f} % of the cases (delta = "
            f"{self.offline.delta:.2g}).{self._of_the_gateway}"
        )

    @property
    def _of_the_gateway(self) -> str:
        known = self.gateway_offline
        if known is None:
            return ""
        return f" With the gateway it is right in at least {100 * known.at_least:.1f} %."


def plan_edge(
    trace: Trace,
    cascade: Cascade,
    places: Mapping[str, Costs],
    links: Sequence[Link | Toll] | Link | Toll,
    *,
    sizes: Mapping[str, Any],
    max_drop: float,
    delta: float = 0.1,
    policy: str = "threshold",
    sends: Sequence[Send] = ("raw", "float32"),
    data: Loader | None = None,
    device: Sequence[str] | None = None,
    reference: str | None = None,
    **options: Any,  # noqa: ANN401  (of the policies)
) -> EdgePlan:
    """Choose the cut, what is sent and the policy that cost the least, and certify the whole.

    Args:
        trace: Of the cascade, with the splits `fit` and `calibrate`.
        cascade: Whose stages are placed, in their order: a later stage never before an earlier one.
        places: For each place, beginning with the device, what the stages cost there, all in one
            unit.
        links: Between one place and the next: of seconds, or a toll in another unit.
        sizes: Of `sizes_of`.
        max_drop: The accuracy that the whole may lose against the reference, in (0, 1).
        delta: Largest chance that what is promised is wrong, for all cuts together.
        policy: Which policies are fitted.
        sends: What may be sent; "float16" and "int8" need `data`.
        data: The examples of the trace, in order, to record what rounded carries do to answers.
        device: Take this cut; by default the best.
        reference: Name of the reference; by default the most accurate stage.
        **options: As for `offramp.fit`.

    Raises:
        InputError: If units differ, places and links do not fit each other, the given cut costs
            more than the best other one because of what it sends, or there is none to choose from.

    >>> from torch import nn
    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=3000, stages=2, seed=0)
    >>> trace = trace.split_into({"fit": 0.5, "calibrate": 0.5}, seed=0)
    >>> cascade = Cascade.from_models({name: nn.Linear(4, 4) for name in trace.stages})
    >>> seconds = {"device": [0.01, 0.16], "cloud": [0.001, 0.016]}
    >>> places = {name: Costs.simple("seconds", each) for name, each in seconds.items()}
    >>> link, sizes = Link.parse("1 Mbit/s, 10 ms"), {"": 12_000.0}
    >>> plan = plan_edge(
    ...     trace, cascade, places, link, sizes=sizes, max_drop=0.05, combines=["last"]
    ... )
    >>> plan.device, plan.send, plan.worth
    (('stage0',), 'raw', True)
    """
    check_kind("trace", trace, Trace, read="offramp.load_trace(path)")
    way = _Way(cascade, dict(places), _links(links, places), sizes, trace.classes)
    name = reference or trace.stages[trace.subset("fit").most_accurate()]
    check_known("reference", name, trace.stages)
    tried = list(way.cuts(tuple(sends), data is not None, name))
    if not tried:
        raise InputError(
            "sends leaves no cut to choose from: networks that read the raw input need 'raw', and "
            "'float16' and 'int8' need data."
        )
    share = delta / len(tried)
    found: list[EdgePlan] = []
    for at, send, costs in tried:
        here = tuple(n for n, place in zip(trace.stages, at, strict=True) if place == 0)
        own = trace
        if send == "float16" or send == "int8":
            own = _arriving(trace, cascade, here, send, data)
        own = own.with_costs(costs)
        frontier = fit(own, policy, reference=name, progress=False, **options)
        choice = frontier.cheapest(max_drop=max_drop, delta=share)
        found.append(way.plan(own, at, send, choice, costs, name, share))
    best = min(found, key=lambda plan: (not plan.choice.cascade, plan.cost))
    if device is None:
        return best
    wanted = [plan for plan in found if set(plan.device) == set(device)]
    if not wanted:
        raise InputError(
            f"device must be a cut of {list(trace.stages)} that leaves something on both sides, "
            f"got {list(device)}."
        )
    chosen = min(wanted, key=lambda plan: plan.cost)
    if chosen.cost > min(chosen.alone.values()) and best is not chosen and best.worth:
        raise InputError(
            f"device={list(device)} costs {chosen.cost:.4g} {chosen.costs.unit}, more than the "
            f"reference alone ({min(chosen.alone.values()):.4g}): what it sends ({chosen.send}) is "
            f"too large for the link. The best cut is device={list(best.device)}, send="
            f"{best.send!r}: {best.cost:.4g}."
        )
    return chosen


@final
@dataclass(frozen=True)
class _Way:
    """Stages, the places where they may run, and what lies between."""

    cascade: Cascade
    places: dict[str, Costs]
    links: tuple[Link | Toll, ...]
    sizes: Mapping[str, Any]
    classes: int

    def cuts(
        self, sends: Sequence[Send], lossy: bool, reference: str
    ) -> Iterator[tuple[tuple[int, ...], Send, Costs]]:
        """For each stage its place, what is sent, and the costs; both ends hold something."""
        s, p = len(self.cascade), len(self.places)
        groups = self.cascade.topology.groups
        for at in combinations_with_replacement(range(p), s):
            if at[0] != 0 or at[-1] != p - 1 or len(set(at)) != p:
                continue
            if any(at[j] != at[k] for j in range(s) for k in range(j) if groups[j] == groups[k]):
                continue
            for send in sends:
                usable = send in ("raw", LOSSLESS) or (lossy and p == 2)
                costs = self.costs(at, send, reference) if usable else None
                if costs is not None:
                    yield at, send, costs

    def costs(self, at: Sequence[int], send: Send, reference: str) -> Costs | None:
        """Costs of the whole; None where that cannot be sent."""
        topology, tables = self.cascade.topology, list(self.places.values())
        links = []
        for place, link in enumerate(self.links, start=1):
            here = [topology.names[k] for k, where in enumerate(at) if where < place]
            try:
                cut = Cut.of(topology, here, send, reference=reference)
            except InputError:
                return None
            again = sum(tables[place].segment[k] for k in cut.again)
            links.append(link.cost(self.size(cut)) + again)

        def row(name: str) -> tuple[float, ...]:
            return tuple(getattr(tables[place], name)[k] for k, place in enumerate(at))

        return Costs(
            unit=tables[0].unit,
            segment=row("segment"),
            head=row("head"),
            decision=row("decision"),
            note="; ".join(map(str, self.links)),
            places=tuple(at),
            links=tuple(links),
        )

    def size(self, cut: Cut) -> float:
        """Bytes that one example sends."""
        total = 4.0 * len(cut.asked) * self.classes
        total += self.sizes[RAW] if cut.raw else 0.0
        for group in cut.carries:
            for count, width, dtype in self.sizes[group]:
                small = dtype == torch.float32
                total += count * (WIDTHS[cut.packing] if small else width)
                total += 4.0 * (small and cut.send == "int8")
        return total

    def plan(
        self,
        trace: Trace,
        at: Sequence[int],
        send: Send,
        choice: Choice,
        costs: Costs,
        reference: str,
        share: float,
    ) -> EdgePlan:
        names = list(self.places)
        stage = trace.topology.index(reference)
        alone = {}
        for place, (name, table) in enumerate(self.places.items()):
            sent = sum(link.cost(self.sizes[RAW]) for link in self.links[:place])
            alone[name] = sent + table.alone(trace.topology, stage)
        here = frozenset(k for k, place in enumerate(at) if place == 0)
        near = frozenset(k for k, place in enumerate(at) if place <= 1)
        part = trace.subset("calibrate")
        found = choice.point.calibrate or choice.point.fit
        names_here = [trace.stages[k] for k in here]
        cut = Cut.of(trace.topology, names_here, send, reference=reference)
        goes = _goes_on(part, choice.candidate.policy, here)
        return EdgePlan(
            places={
                name: tuple(n for n, p in zip(trace.stages, at, strict=True) if p == place)
                for place, name in enumerate(names)
            },
            send=send,
            choice=choice,
            costs=costs,
            cost=found.cost,
            alone=alone,
            bytes=float(goes.mean()) * self.size(cut),
            offline=offline_of(part, choice.candidate.policy, here, share),
            gateway_offline=(
                offline_of(part, choice.candidate.policy, near, share) if len(names) == 3 else None
            ),
        )


def offline_of(part: Trace, policy: Policy, here: frozenset[int], delta: float) -> Offline:
    """How often the device is right by itself: by the last stage that it ran on the way.

    Args:
        part: Examples that nothing was fitted on.
        policy: Of the whole.
        here: Stages on the device.
        delta: Chance that the limit is wrong.
    """
    went = replay(part, policy)
    right = np.zeros(len(part), dtype=bool)
    outputs = [part.output(k) for k in range(len(part.topology))]
    ids = torch.arange(len(part))
    for k, path in enumerate(went.paths):
        rows = torch.from_numpy(np.flatnonzero(went.path == k))
        own = tuple(stage for stage in path if stage in here)
        if len(rows) and own:
            said = policy.predict(Evidence(policy, own, outputs, ids[rows], rows))[:, 0]
            right[rows.numpy()] = (said == part.labels[rows]).numpy()
    hits, n = int(right.sum()), len(part)
    at_least = 1 - upper_limit(n - hits, n, delta)
    return Offline(accuracy=hits / n, at_least=at_least, delta=delta, n=n)


def _goes_on(part: Trace, policy: Policy, here: frozenset[int]) -> BoolArray:
    went = replay(part, policy)
    away = np.array([not set(path) <= here for path in went.paths])
    return np.asarray(away[went.path])


def _arriving(
    trace: Trace, cascade: Cascade, here: Sequence[str], send: Packing, data: Loader | None
) -> Trace:
    """The trace of the stages as carries arrive there."""
    assert data is not None  # noqa: S101  (only such cuts are tried)
    made = record(rounded(cascade, here, send), data, costs=trace.costs, progress=False)
    if not np.array_equal(made.ids, trace.ids) or not torch.equal(made.labels, trace.labels):
        raise InputError("data must hold the examples of the trace, in order, and holds others.")
    return replace(trace, logits=made.logits, lossy=True)


def _links(
    links: Sequence[Link | Toll] | Link | Toll, places: Mapping[str, Costs]
) -> tuple[Link | Toll, ...]:
    found = (links,) if isinstance(links, Link | Toll) else tuple(links)
    if len(places) < 2 or len(found) != len(places) - 1:
        raise InputError(
            f"links must lead from each of the places {list(places)} to the next, of which there "
            f"are at least two, got {len(found)} links."
        )
    units = {table.unit for table in places.values()} | {link.unit for link in found}
    if len(units) > 1:
        raise InputError(
            f"places and links must be in one unit, got {sorted(units)}. A Link is in seconds; of "
            "other units give a Toll."
        )
    return found
