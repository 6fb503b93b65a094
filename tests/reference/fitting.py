"""The slow twins of the fits: each node from nothing, each rule with a sort of its own.

Nothing is remembered, bounded, shared or started from a neighbor, as `offramp.fitting.weighted` and
`offramp.fitting.thresholds` do; what they find has to be the same.
"""

from typing import Any, NamedTuple

import numpy as np

from offramp._core.topology import Path, Topology
from offramp.fitting import thresholds
from offramp.fitting.search import without
from offramp.fitting.tables import Tables
from offramp.fitting.weighted import IDLE_SHARE


class FitSlow(NamedTuple):
    """A topology, the objective there, and at the end of each path who leaves and who is routed."""

    topology: Topology
    objective: float
    takes: dict[Path, list[np.ndarray]]


def logistic_slow(columns: np.ndarray, positive, weights, ridge: float) -> np.ndarray:
    """Newton's method as it stands in books, from 0, in float64."""
    share, sign = weights / weights.sum(), np.where(positive, 1.0, -1.0)
    penalty = np.full(columns.shape[1], ridge)
    penalty[-1] = 0.0

    def loss(at):
        return share @ np.logaddexp(0, -sign * (columns @ at)) + 0.5 * penalty @ at**2

    at = np.zeros(columns.shape[1])
    for _ in range(60):
        wrong = np.exp(-np.logaddexp(0, sign * (columns @ at)))
        gradient = penalty * at - columns.T @ (share * sign * wrong)
        if np.abs(gradient).max() < 1e-6:
            break
        bend = (columns * (share * wrong * (1 - wrong))[:, None]).T @ columns
        step = np.linalg.solve(bend + np.diag(penalty + 1e-10), gradient)
        length = 1.0
        while loss(at - length * step) > loss(at) - 1e-4 * length * gradient @ step:
            length /= 2
            if length < 1e-12:
                return at
        at = at - length * step
    return at


def cut_slow(scores: np.ndarray, gains: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """The lowest sum of gains over the examples above a cut, and the cut; of equals the lowest."""
    levels = np.unique(scores[rows])[::-1]
    totals = [0.0, *(float(gains[rows & (scores >= level)].sum()) for level in levels)]
    least = min(totals) + 1e-12 * max(1.0, *np.abs(totals))
    taken = max(i for i, total in enumerate(totals) if total <= least)
    if taken == 0:
        return np.inf, 0.0
    if taken == len(levels):
        return -np.inf, totals[-1]
    low, high = levels[taken], levels[taken - 1]
    middle = np.float32(0.5) * low + np.float32(0.5) * high
    return float(middle if low < middle <= high else high), totals[taken]


class TreeSlow:
    """One topology at one trade-off, with the rules that `TreeFit` may choose from."""

    def __init__(self, tables: Tables, topology: Topology, costs: Any, weight: float, ridge: float):
        self.tables, self.topology, self.costs = tables, topology, costs
        self.weight, self.ridge = weight, ridge
        tables.ensure(topology.paths())
        self.inner = [p for p in topology.paths() if topology.children(p[-1])]
        everybody = np.ones(tables.n, dtype=bool)
        self.takes: dict[Path, list[np.ndarray]] = {}
        self.charged: dict[Path, bool] = {}
        for path in reversed(self.inner):
            self.takes[path], self.charged[path] = self.node(path, everybody)
        for path in reversed(self.inner):
            rows = self.reached(path)
            if rows.all() or not rows.any():
                continue
            before, held = self.value(path)[rows].sum(), (self.takes[path], self.charged[path])
            self.takes[path], self.charged[path] = self.node(path, rows)
            if not self.value(path)[rows].sum() < before - 1e-12 * max(1.0, abs(before)):
                self.takes[path], self.charged[path] = held

    def going(self, path: Path, child: int) -> np.ndarray:
        cost = self.weight * self.costs.visit(self.topology, path, child)
        return self.value((*path, child)) + cost

    def value(self, path: Path) -> np.ndarray:
        """Loss and weighted cost from standing at the end of a path, by the rules there are."""
        loss = self.tables.loss_of_leaving(path)
        if path not in self.takes:
            return loss
        children, (leave, *routes) = self.topology.children(path[-1]), self.takes[path]
        value = self.going(path, children[-1])
        for child, take in reversed(list(zip(children[:-1], routes, strict=True))):
            value = np.where(take, self.going(path, child), value)
        decision = self.weight * self.costs.decision[path[-1]]
        return np.where(leave, loss, value) + (decision if self.charged[path] else 0.0)

    def node(self, path: Path, rows: np.ndarray) -> tuple[list[np.ndarray], bool]:
        children = self.topology.children(path[-1])
        best, takes, charged = self.going(path, children[-1]), [], False
        for child in reversed(children[:-1]):
            other = self.going(path, child)
            take, looks = self.choose(path, other - best, rows, (1.0, -1.0))
            takes.insert(0, take)
            charged |= looks
            best = np.where(take, other, best)
        leave, looks = self.choose(path, self.tables.loss_of_leaving(path) - best, rows, (1.0,))
        return [leave, *takes], charged | looks

    def choose(self, path: Path, gains, rows, signs) -> tuple[np.ndarray, bool]:
        charge = self.weight * self.costs.decision[path[-1]] * rows.sum()
        always = float(gains[rows].sum())
        least = min(always, 0.0)
        best = np.full(len(rows), always <= 1e-12 * max(1.0, np.abs(gains).max()))
        looks = False
        for scores in self.scores(path, gains, rows, signs):
            value, total = cut_slow(scores, gains, rows)
            if np.isfinite(value) and total + charge < least - 1e-12 * max(1.0, abs(least)):
                least, best, looks = total + charge, scores >= np.float32(value), True
        return best, looks

    def scores(self, path: Path, gains, rows, signs):
        for feature, sure in self.tables.confidences(path):
            for sign in signs:
                yield np.float32(sure * sign) * self.tables.column(feature, path)
        weights = np.abs(gains[rows])
        if weights.sum() > 0:
            design = self.tables.design(path)
            found = logistic_slow(design.matrix[rows], gains[rows] <= 0, weights, self.ridge)
            yield self.tables.weighted_sum(path, design.raw_weights(found).astype(np.float32))

    def reached(self, path: Path) -> np.ndarray:
        here = np.ones(self.tables.n, dtype=bool)
        for i in range(1, len(path)):
            children, (leave, *routes) = self.topology.children(path[i - 1]), self.takes[path[:i]]
            target = np.full(self.tables.n, children[-1])
            for child, take in reversed(list(zip(children[:-1], routes, strict=True))):
                target[take] = child
            here &= ~leave & (target == path[i])
        return here

    def idle(self) -> list[int]:
        arrive = dict.fromkeys((path[-1] for path in self.inner), 0)
        leave = dict(arrive)
        for path in self.inner:
            arrive[path[-1]] += int(self.reached(path).sum())
            leave[path[-1]] += int((self.reached(path) & self.takes[path][0]).sum())
        root = self.topology.root
        found = [
            k
            for k in arrive
            if (k != root or len(self.topology.children(k)) == 1)
            and leave[k] <= IDLE_SHARE * arrive[k]
        ]
        return sorted(found, key=lambda k: leave[k])

    def fit(self) -> FitSlow:
        first = float(np.mean(self.costs.visit(self.topology, (), self.topology.root)))
        objective = float(self.value((self.topology.root,)).mean()) + self.weight * first
        return FitSlow(self.topology, objective, self.takes)


def fit_topology_slow(
    tables: Tables, topology: Topology, costs: Any, weight: float, *, ridge: float = 1e-3
) -> FitSlow:
    """As `offramp.fitting.weighted.fit_topology`, every trial fitted anew."""
    tree = TreeSlow(tables, topology, costs, weight, ridge)
    kept: set[int] = set()
    while rest := [k for k in tree.idle() if k not in kept]:
        other = TreeSlow(tables, without(tree.topology, rest[0]), costs, weight, ridge)
        if other.fit().objective <= tree.fit().objective:
            tree = other
        else:
            kept.add(rest[0])
    return tree.fit()


def thresholds_slow(search: Any) -> list[Any]:
    """As the search for the thresholds of a longer chain, every scan made when it is asked for."""
    found: list[Any] = []
    for risk in (0, 1):
        values = (None,) * len(search.inner)
        for trade_off in thresholds._TRADE_OFFS:
            for at in [*reversed(range(len(search.inner)))] * thresholds._PASSES:
                scan = search.scan(values, at)
                found += search._along(scan, values, at, thresholds._CUTS_KEPT)
                best = int(np.argmin(scan.losses[risk] + trade_off * scan.cost))
                found.append(search._trial(scan, values, at, best))
                values = found[-1].thresholds
    return found


def scan_slow(search: Any, values: tuple[float | None, ...], at: int) -> list[tuple[float, ...]]:
    """Cost, error and new errors for each threshold after a stage, one example after another."""
    n, inner = search.tables.n, search.inner
    sure = [search._sureness(i) for i in range(len(inner))]
    losses = [search.tables.losses(path) for path in search.paths]

    def outcome(each: tuple[float | None, ...]) -> tuple[float, ...]:
        total = np.zeros(3)
        for row in range(n):
            cost = 0.0
            for i, value in enumerate(each):
                cost += 0.0 if value is None else search._decision[i]
                if value is not None and sure[i][row] >= np.float32(value):
                    break
            else:
                i = len(inner)
            total += [cost + search._reach_cost[i], *losses[i][row]]
        return tuple(total / n)

    reached = [
        row
        for row in range(n)
        if not any(
            v is not None and sure[i][row] >= np.float32(v) for i, v in enumerate(values[:at])
        )
    ]
    levels = sorted({float(sure[at][row]) for row in reached}, reverse=True)
    return [outcome((*values[:at], value, *values[at + 1 :])) for value in [None, *levels]]
