"""The threshold policy: after each stage one threshold on one confidence statistic.

The statistic is of the answer's own distribution (temperature-scaled, combined), the same after
every stage; the thresholds differ. A chain of two stages takes a grid of quantiles. On longer
chains one threshold after the other is scanned exactly, all its cuts at once by cumulative sums
with the others held fixed, for a row of trade-offs between loss and cost; the cuts met on the way
are candidates too, and the Pareto front of all is kept.

Layer: fitting.  Source: methods.md 1 (references); Bolukbasi et al., ICML 2017, section 5.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from offramp._core.checks import check_choice, check_positive_int
from offramp._core.costs import Bill
from offramp._core.topology import Path, Topology
from offramp._core.types import BoolArray, FloatArray, IntArray
from offramp.fitting.baselines import inner_paths
from offramp.fitting.chains import chains_to_fit
from offramp.fitting.cuts import running_sum
from offramp.fitting.pareto import pareto_front
from offramp.fitting.tables import FeaturesOf, Tables, combines_of, telling
from offramp.fitting.temperature import fit_temperatures
from offramp.policy.candidate import Candidate
from offramp.policy.combination import Combine
from offramp.policy.features import COMBINED, CONFIDENCES, Feature
from offramp.policy.policy import Node, Policy
from offramp.policy.rules import Constant, Linear
from offramp.trace import Trace

_TRADE_OFFS = np.geomspace(
    0.003, 3.0, 20
)  # loss per the reference's cost; beyond, all leave or none does
_PASSES = 2
_CUTS_KEPT = 12  # of each scan on a longer chain
_SCANS_KEPT, _NUMBERS_KEPT = 32, 2**22  # the way to the best thresholds comes by most scans again


def fit_threshold(
    part: Trace,
    *,
    reference: str,
    top: int = 1,
    topologies: Sequence[Topology] | None = None,
    combines: Sequence[Combine] | None = None,
    confidences: Sequence[str] | None = None,
    temperatures: Sequence[float] | None = None,
    weights: Mapping[Path, Sequence[float]] | None = None,
    grid: int = 50,
) -> list[Candidate]:
    """Threshold candidates: for each chain the Pareto front on `part`, over both risks.

    Args:
        part: Examples to fit on: logits, or labels with confidences.
        reference: Name of the reference.
        top: A label is right when it is among the `top` best.
        topologies: Chains; by default those that the learned policy fits.
        combines: Ways to combine the visited stages, all tried; by default all that there are.
        confidences: Statistics to set thresholds on, all tried; by default all that there are, of
            stages without classes their numbers "value_0", "value_1"... and "-value_0"..., where
            lower is surer.
        temperatures: One per stage; by default fitted on `part`.
        weights: For the combination "log_linear"; by default fitted on `part`.
        grid: Most candidates for one chain, combination and statistic; most for one chain.

    Raises:
        InputError: If a name is unknown, a topology is no chain, or there are only rankings.

    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=300, stages=2, seed=0)
    >>> options = {"confidences": ["margin"], "combines": ["last"]}
    >>> candidates = fit_threshold(trace, reference="stage1", **options)
    >>> candidates[0].method, 2 < len(candidates) <= 50
    ('threshold', True)
    """
    check_positive_int("grid", grid)
    signs = _signs(part)
    confidences = tuple(signs) if confidences is None else confidences
    combines = combines_of(part) if combines is None else combines
    for kind in confidences:
        check_choice("confidences", kind, signs)
    if topologies is None:
        topologies = chains_to_fit(part, reference=reference, top=top)
    chains = list(topologies)
    for chain in chains:
        inner_paths(chain)  # raises unless it is a chain
    temperatures = fit_temperatures(part) if temperatures is None else list(temperatures)
    found: dict[int, list[_Trial]] = {i: [] for i in range(len(chains))}
    stage_f = part.topology.index(reference)
    costs = part.bill.relative_to(part.topology, stage_f)
    for combine in combines:
        tables = Tables(
            part,
            temperatures=temperatures,
            combine=combine,
            reference=stage_f,
            top=top,
            features_of=_features_of(part, combine, confidences),
            weights=weights if combine == "log_linear" else None,
        )
        tables.ensure(path for chain in chains for path in chain.paths())
        for i, chain in enumerate(chains):
            for kind in confidences:
                if all(_gives(part, path[-1], kind) for path in inner_paths(chain)):
                    search = _Search(tables, chain, kind, signs[kind], costs)
                    found[i] += search.candidates(grid)
    return [
        candidate.candidate(reference, top)
        for candidates in found.values()
        for candidate in _front(candidates, grid)
    ]


def _features_of(part: Trace, combine: Combine, kinds: Sequence[str]) -> FeaturesOf:
    return lambda path: [
        _feature(kind, path, combine) for kind in kinds if _gives(part, path[-1], kind)
    ]


def _gives(part: Trace, stage: int, kind: str) -> bool:
    """Whether a stage has such a number: of those without classes some give more than others."""
    count = part.feature_counts[stage] if part.features is not None else None
    return count is None or int(kind.removeprefix("-").removeprefix("value_")) < count


def _signs(part: Trace) -> dict[str, float]:
    """Statistics that thresholds may be set on, with the sign that makes higher surer."""
    if part.features is None:
        return dict(CONFIDENCES.items())
    values = [f"value_{j}" for j in sorted({j for _, j in telling(part)})]
    return {name: sign for v in values for name, sign in ((v, 1.0), (f"-{v}", -1.0))}


def _feature(kind: str, path: Path, combine: Combine) -> Feature:
    """The statistic of the answer at the end of `path`."""
    alone = combine == "last" or len(path) == 1
    return Feature(kind.removeprefix("-"), path[-1] if alone else COMBINED)


@final
@dataclass(frozen=True)
class _Trial:
    """Thresholds of one chain and what they do on the examples fitted on.

    Args:
        search: What they were found by.
        thresholds: For each stage but the last how sure is enough; None: never leave there.
        cost: Mean cost ratio.
        error: Share of wrong answers.
        negative_flips: Share of new errors.
    """

    search: "_Search"
    thresholds: tuple[float | None, ...]
    cost: float
    error: float
    negative_flips: float

    def candidate(self, reference: str, top: int) -> Candidate:
        """The candidate that replays as these thresholds."""
        search = self.search
        combination, sign = search.tables.combination, search.sign
        rules: dict[Path, Node] = {}
        parameters: dict[str, float | int | str] = {"confidence": search.kind}
        for path, value in zip(search.inner, self.thresholds, strict=True):
            stage = search.chain.names[path[-1]]
            name = "threshold" if len(search.inner) == 1 else f"threshold {stage}"
            if value is None:
                rules[path], parameters[name] = Node(Constant(False)), "never"
                continue
            feature = _feature(search.kind, path, combination.kind)
            rules[path] = Node(Linear.threshold(feature, sign * value, sign=sign))
            parameters[name] = sign * value
        policy = Policy(
            search.chain,
            rules,
            temperatures=search.tables.temperatures,
            combine=combination.kind,
            weights={p: combination.weights[p] for p in search.paths}
            if combination.kind == "log_linear"
            else None,
            outputs=search.tables.outputs,
            feature_counts=search.tables.feature_counts,
        )
        return Candidate(
            policy=policy, method="threshold", reference=reference, top=top, parameters=parameters
        )


@final
@dataclass(frozen=True)
class _Scan:
    """All cuts of one threshold: leaving are the `count` surest of those that reach the stage.

    Args:
        counts: How many leave, `(u,)`, rising from 0; only where the statistic changes.
        thresholds: The value that makes them leave, `(u,)`; the first means that nobody does.
        cost: Mean cost ratio over all examples, `(u,)`.
        losses: Mean error and mean excess, `(2, u)`.
    """

    counts: IntArray
    thresholds: FloatArray
    cost: FloatArray
    losses: FloatArray


@final
class _Search:
    """Thresholds of one statistic on one chain with one combination."""

    def __init__(
        self, tables: Tables, chain: Topology, kind: str, sign: float, costs: Bill
    ) -> None:
        self.tables, self.chain, self.kind, self.sign = tables, chain, kind, sign
        self.paths = chain.paths()
        self.inner = inner_paths(chain)
        self._decision = [costs.decision[path[-1]] for path in self.inner]
        self._reach_cost = [costs.path(chain, path, ()) for path in self.paths]
        # error and excess of leaving at the end of each path, each (2, n)
        self._losses = [np.ascontiguousarray(tables.losses(path).T) for path in self.paths]
        self._scans: dict[tuple[int, tuple[float | None, ...]], _Scan] = {}
        self._most_scans = min(_SCANS_KEPT, 1 + _NUMBERS_KEPT // tables.n)

    def candidates(self, grid: int) -> list[_Trial]:
        """Candidates on the way to the best thresholds, `grid` of them on a chain of two."""
        start: tuple[float | None, ...] = (None,) * len(self.inner)
        if len(self.inner) == 1:
            return self._along(self.scan(start, 0), start, 0, grid)
        found: list[_Trial] = []
        for risk in (0, 1):
            thresholds = start
            for trade_off in _TRADE_OFFS:
                for at in [*reversed(range(len(self.inner)))] * _PASSES:
                    key = (at, (*thresholds[:at], *thresholds[at + 1 :]))
                    scan = self._scans.pop(key, None)
                    if scan is None:
                        scan = self.scan(thresholds, at)
                        found += self._along(scan, thresholds, at, _CUTS_KEPT)
                    self._scans[key] = scan  # the last asked for stands last
                    if len(self._scans) > self._most_scans:
                        del self._scans[next(iter(self._scans))]
                    best = int(np.argmin(scan.losses[risk] + trade_off * scan.cost))
                    found.append(self._trial(scan, thresholds, at, best))
                    thresholds = found[-1].thresholds
        return _front(found, grid)

    def _along(
        self, scan: _Scan, thresholds: tuple[float | None, ...], at: int, most: int
    ) -> list[_Trial]:
        """Cuts of a scan at evenly spaced shares of examples leaving; the first leaves nobody."""
        shares = np.linspace(0, scan.counts[-1], most)
        nearest = np.searchsorted(scan.counts, shares).clip(max=len(scan.counts) - 1)
        return [self._trial(scan, thresholds, at, int(i)) for i in np.unique([0, *nearest])]

    def _trial(
        self, scan: _Scan, thresholds: tuple[float | None, ...], at: int, cut: int
    ) -> _Trial:
        value = None if scan.counts[cut] == 0 else float(scan.thresholds[cut])
        return _Trial(
            self,
            (*thresholds[:at], value, *thresholds[at + 1 :]),
            float(scan.cost[cut]),
            float(scan.losses[0, cut]),
            float(scan.losses[1, cut]),
        )

    def scan(self, thresholds: Sequence[float | None], at: int) -> _Scan:
        """Cost and losses for every threshold after stage `at`, the others held fixed."""
        n = self.tables.n
        leaves = [self._leaves(i, value) for i, value in enumerate(thresholds)]
        reached = np.ones(n, dtype=np.bool_)
        fixed_cost, fixed_losses = 0.0, np.zeros(2)
        for i in range(at):
            left = reached & leaves[i]
            fixed_cost += self._decision_charge(i, thresholds[i], reached)
            fixed_cost += _summed(self._reach_cost[i], left)
            fixed_losses += self._losses[i][:, left].sum(axis=1)
            reached &= ~leaves[i]
        later_cost, later_losses = self._onwards(thresholds, leaves, at + 1)
        order = self.tables.ranking(*self._statistic(at), self.sign).order
        order = order[reached[order]]  # (r,), the surest first
        value = self._sureness(at)[order]
        last_of_ties = np.flatnonzero(np.append(value[1:] != value[:-1], len(value) > 0))
        counts = np.concatenate([[0], last_of_ties + 1])  # (u,)
        later = later_losses.take(order, axis=1)
        gain = self._losses[at].take(order, axis=1) - later  # (2, r), from leaving here
        reach = self._reach_cost[at]
        saved = (reach if isinstance(reach, float) else reach[order]) - later_cost[order]  # (r,)
        losses = (fixed_losses + later.sum(axis=1))[:, None] + _prefix(gain)[:, counts]
        cost = fixed_cost + later_cost[order].sum() + _prefix(saved)[counts]
        cost += np.where(counts > 0, len(order) * self._decision[at], 0.0)
        return _Scan(
            counts=counts,
            thresholds=np.concatenate([[np.nan], value[counts[1:] - 1]]).astype(np.float64),
            cost=cost / n,
            losses=losses / n,
        )

    def _statistic(self, at: int) -> tuple[Feature, Path]:
        path = self.inner[at]
        return _feature(self.kind, path, self.tables.combination.kind), path

    def _sureness(self, at: int) -> np.ndarray:
        """The statistic with the sign that makes higher surer, `(n,)`, float32."""
        return np.float32(self.sign) * self.tables.column(*self._statistic(at))

    def _leaves(self, at: int, threshold: float | None) -> BoolArray:
        if threshold is None:
            return np.zeros(self.tables.n, dtype=np.bool_)
        return self._sureness(at) >= np.float32(threshold)

    def _decision_charge(self, at: int, threshold: float | None, reached: BoolArray) -> float:
        charged = 0.0 if threshold is None else self._decision[at]
        return float(charged * reached.sum())

    def _onwards(
        self, thresholds: Sequence[float | None], leaves: Sequence[BoolArray], at: int
    ) -> tuple[FloatArray, FloatArray]:
        """Cost `(n,)`, decisions from `at` on included, and losses `(2, n)` of going on to `at`."""
        cost = np.full(self.tables.n, self._reach_cost[-1], dtype=np.float64)
        losses = self._losses[-1]
        for i in reversed(range(at, len(self.inner))):
            cost = np.where(leaves[i], self._reach_cost[i], cost)
            if thresholds[i] is not None:
                cost = cost + self._decision[i]
            losses = np.where(leaves[i], self._losses[i], losses)
        return cost, losses


def _summed(cost: float | FloatArray, rows: BoolArray) -> float:
    """Cost of some examples together."""
    return float(rows.sum()) * cost if isinstance(cost, float) else float(cost[rows].sum())


def _prefix(values: FloatArray) -> FloatArray:
    """Sums of the first 0, 1, ... along the last axis."""
    zero = np.zeros((*values.shape[:-1], 1))
    return np.concatenate([zero, running_sum(values)], axis=-1)


def _front(candidates: Sequence[_Trial], most: int) -> list[_Trial]:
    """Those on the Pareto front of cost and error, or of cost and excess; at most `most`."""
    if not candidates:
        return []
    cost = np.array([c.cost for c in candidates])
    risks: tuple[Callable[[_Trial], float], ...] = (lambda c: c.error, lambda c: c.negative_flips)
    kept = np.zeros(len(candidates), dtype=np.bool_)
    for risk in risks:
        kept |= pareto_front(cost, np.array([risk(c) for c in candidates]))
    front = sorted(
        (c for c, keep in zip(candidates, kept, strict=True) if keep), key=lambda c: c.cost
    )
    unlike = list({(c.cost, c.error, c.negative_flips): c for c in reversed(front)}.values())[::-1]
    chosen = np.unique(np.linspace(0, len(unlike) - 1, most).round().astype(np.int64))
    return [unlike[int(i)] for i in chosen]
