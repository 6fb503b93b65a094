"""Policies learned stage by stage, as weighted binary classification on the tree of visit paths.

For a trade-off `cost_weight` the policy minimizes the mean of loss + cost_weight * cost of
everything that ran. Deepest first: with the decisions further down fixed, leaving here costs `e`,
going on costs `V`; so "leave" is a binary label with weight |e - V|. With several
children, routing comes first: the last child is the champion, each earlier child in turn is
compared with the champion found so far (a filter tree), which makes the cost-sensitive choice a
row of weighted binary problems.

Layer: fitting.  Source: Bolukbasi et al., ICML 2017, sections 3 and 4; methods.md 1 a-e.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np

from offramp._core.checks import check_choice, check_not_negative
from offramp._core.costs import Bill
from offramp._core.errors import InputError
from offramp._core.topology import Path, Topology
from offramp._core.types import BoolArray, FloatArray, IntArray
from offramp.fitting.cuts import Ranking
from offramp.fitting.fits import Choice, Fit, Trial
from offramp.fitting.newton import fit_weighted_logistic
from offramp.fitting.search import without
from offramp.fitting.tables import Tables

Family = str  # one of FAMILIES
_MOST_ROWS = 50_000
IDLE_SHARE = 0.02  # an exact scan finds a few lucky examples even where nothing can be gained
FAMILIES: tuple[Family, ...] = ("constant", "threshold", "linear")


@final
@dataclass
class _Fitted:
    """Rules at one node and the value of standing there, `(n,)`."""

    leave: Choice
    routes: list[Choice]
    value: FloatArray


@final
@dataclass
class TreeFit:
    """Fits the rules of one topology for one trade-off after another.

    Args:
        tables: Features and losses.
        topology: The part of the cascade used.
        costs: Of the stages, divided by the reference's own mean cost.
        families: What a rule may be: "constant", "threshold" on one confidence, "linear".
        passes: Coordinate passes over the decisions after the first fit.
        ridge: Of the logistic regression, on standardized features.
    """

    tables: Tables
    topology: Topology
    costs: Bill
    families: Sequence[Family] = FAMILIES
    passes: int = 1
    ridge: float = 1e-3
    _starts: dict[tuple[Path, int, bool], list[FloatArray]] = field(default_factory=dict)
    _found: dict[float, Fit] = field(default_factory=dict)
    _visits: dict[Path, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for family in self.families:
            check_choice("families", family, FAMILIES)
        if not self.families:
            raise InputError(f"families must name at least one of {FAMILIES}, got none.")
        self.tables.ensure(self.topology.paths())

    def on(self, topology: Topology) -> "TreeFit":
        """The same for another part of the cascade."""
        return replace(self, topology=topology, _starts={}, _found={}, _visits={})

    def fit(self, cost_weight: float) -> Fit:
        """The policy for a trade-off `cost_weight >= 0`, loss per unit of the reference's cost."""
        check_not_negative("cost_weight", cost_weight)
        if cost_weight not in self._found:
            self._found[cost_weight] = self._fit(cost_weight)
        return self._found[cost_weight]

    def _fit(self, cost_weight: float) -> Fit:
        nodes = self._nodes(cost_weight, np.ones(self.tables.n, dtype=np.bool_))
        inner = self._inner()
        for _ in range(self.passes):
            if not self._improve(inner, cost_weight, nodes):
                break
        rules = tuple(
            (path, node.leave.summed, tuple(route.summed for route in node.routes))
            for path, node in nodes.items()
        )
        objective = self._objective(cost_weight, nodes)
        return Fit(self.tables, self.topology, rules, objective, self._idle(nodes))

    def held_out(self, cost_weight: float, folds: IntArray) -> float:
        """Mean objective on examples that were left out of the fit, each fold in its turn.

        Args:
            cost_weight: The trade-off, >= 0.
            folds: The fold of each example, `(n,)`; at least two are there.
        """
        total = 0.0
        for fold in np.unique(folds):
            nodes = self._nodes(cost_weight, folds != fold)
            total += float(self._standing(nodes)[folds == fold].sum())
        return total / self.tables.n + cost_weight * self._first_visit()

    def _inner(self) -> list[Path]:
        return [p for p in self.topology.paths() if self.topology.children(p[-1])]

    def _nodes(self, cost_weight: float, rows: BoolArray) -> dict[Path, _Fitted]:
        """All decisions, deepest first, fitted on some of the examples."""
        nodes: dict[Path, _Fitted] = {}
        for path in reversed(self._inner()):  # paths stand before their continuations
            nodes[path] = self._fit_node(path, cost_weight, nodes, rows)
        return nodes

    def _improve(
        self, inner: Sequence[Path], cost_weight: float, nodes: dict[Path, _Fitted]
    ) -> bool:
        """Refit each decision on the examples that reach it; keep what lowers the objective."""
        changed = False
        for path in reversed(inner):
            current = nodes[path]
            if changed:  # what follows
                current.value = self._value(path, cost_weight, nodes, current)
            reached = self._reached(path, nodes)
            if reached.all() or not reached.any():
                continue
            new = self._fit_node(path, cost_weight, nodes, reached)
            before, after = (node.value.compress(reached).sum() for node in (current, new))
            if after < before - 1e-12 * max(1.0, abs(before)):
                nodes[path] = new
                changed = True
        return changed

    def _fit_node(
        self, path: Path, cost_weight: float, nodes: dict[Path, _Fitted], rows: BoolArray
    ) -> _Fitted:
        children = self.topology.children(path[-1])
        best = self._going(path, children[-1], cost_weight, nodes)
        decision = cost_weight * self.costs.decision[path[-1]]
        routes: list[Choice] = []
        for slot, child in reversed(list(enumerate(children[:-1]))):
            other = self._going(path, child, cost_weight, nodes)
            choice = self._choose(path, slot + 1, other - best, decision, rows)
            routes.insert(0, choice)
            best = _where(choice.take, other, best)
        loss = self.tables.loss_of_leaving(path)
        if self.tables.may_leave(path[-1]):
            leave = self._choose(path, 0, loss - best, decision, rows)
        else:
            leave = Choice(False, np.zeros(len(loss), dtype=np.bool_))
        value = _where(leave.take, loss, best)
        if not _free(leave, routes):
            value += decision
        return _Fitted(leave, routes, value)

    def _going(
        self, path: Path, child: int, cost_weight: float, nodes: dict[Path, _Fitted]
    ) -> FloatArray:
        """Loss plus cost_weight-cost from running `child` onwards, `(n,)`."""
        further = (*path, child)
        after = nodes[further].value if further in nodes else self.tables.loss_of_leaving(further)
        return after + cost_weight * self._visit(path, child)

    def _visit(self, path: Path, child: int) -> float | FloatArray:
        """Cost of going on to `child`, `(n,)` where each example has its price."""
        known = self._visits.get((*path, child))
        if known is not None:
            return known
        found: float | FloatArray = self.costs.visit(self.topology, path, child)
        if isinstance(found, float):  # prices of examples would be many numbers to keep
            self._visits[*path, child] = found
        return found

    def _value(
        self, path: Path, cost_weight: float, nodes: dict[Path, _Fitted], fitted: _Fitted
    ) -> FloatArray:
        children = self.topology.children(path[-1])
        going = self._going(path, children[-1], cost_weight, nodes)
        for child, choice in reversed(list(zip(children[:-1], fitted.routes, strict=True))):
            going = _where(choice.take, self._going(path, child, cost_weight, nodes), going)
        value = _where(fitted.leave.take, self.tables.loss_of_leaving(path), going)
        if not _free(fitted.leave, fitted.routes):
            value += cost_weight * self.costs.decision[path[-1]]
        return value

    def _reached(self, path: Path, nodes: dict[Path, _Fitted]) -> BoolArray:
        """Examples that the present decisions lead to `path`, `(n,)`."""
        here = np.ones(self.tables.n, dtype=np.bool_)
        for i in range(1, len(path)):
            node = nodes[path[:i]]
            children = self.topology.children(path[i - 1])
            target = np.full(self.tables.n, children[-1])
            for child, choice in reversed(list(zip(children[:-1], node.routes, strict=True))):
                target[choice.take] = child
            here &= ~node.leave.take & (target == path[i])
        return here

    def _objective(self, cost_weight: float, nodes: dict[Path, _Fitted]) -> float:
        return float(self._standing(nodes).mean()) + cost_weight * self._first_visit()

    def _standing(self, nodes: dict[Path, _Fitted]) -> FloatArray:
        """Value of standing at the root, `(n,)`."""
        root = (self.topology.root,)
        return nodes[root].value if root in nodes else self.tables.loss_of_leaving(root)

    def _first_visit(self) -> float:
        return float(np.mean(self.costs.visit(self.topology, (), self.topology.root)))

    def _choose(
        self, path: Path, slot: int, gains: FloatArray, decision: float, rows: BoolArray
    ) -> Choice:
        """The rule of lowest objective on `rows`; the simpler family where they tie.

        Args:
            path: Where the rule stands.
            slot: 0 for leaving, 1.. for routes; keys the warm start.
            gains: What the action adds to the objective, `(n,)`.
            decision: cost_weight times the cost of a decision that looks at something.
            rows: Examples that count.
        """
        n, every = len(gains), bool(rows.all())
        charge = decision * float(np.count_nonzero(rows))
        always = float((gains if every else gains.compress(rows)).sum())
        # At equal objective the action is taken: it is the cheaper one.
        take = always <= 1e-12 * max(1.0, float(np.abs(gains).max()))
        least, best = min(always, 0.0), None
        counted = gains if every else gains * rows
        bound = charge + float(np.minimum(counted, 0.0).sum())  # of a rule that is never wrong
        trials = self._trials(path, slot, counted, rows)
        while bound < _lower(least) and (trial := next(trials, None)):
            cut = trial.ranking.best(counted, below=_lower(least) - charge)
            if cut.total + charge < _lower(least):
                least, best = cut.total + charge, (trial, cut)
        if best is None:
            return Choice(take, np.full(n, take))
        trial, cut = best  # a rule is made of the best alone
        return trial.choice(cut, rows)

    def _trials(self, path: Path, slot: int, gains: FloatArray, rows: BoolArray) -> Iterator[Trial]:
        """Weighted sums, each made when it is asked for.

        Args:
            path: Where the rule stands.
            slot: 0 for leaving, 1.. for routes.
            gains: What the action adds to the objective, `(n,)`; 0 of examples that do not count.
            rows: Examples that count.
        """
        if "threshold" in self.families:
            signs = (1.0,) if slot == 0 else (1.0, -1.0)  # a route may prefer the less sure
            for feature, sure in self.tables.confidences(path):
                for weight in (sure * sign for sign in signs):
                    ranking = self.tables.ranking(feature, path, weight)
                    yield Trial((feature,), (weight,), ranking)
        if "linear" in self.families and self.tables.features(path):
            yield from self._linear(path, slot, gains, rows)

    def _linear(self, path: Path, slot: int, gains: FloatArray, rows: BoolArray) -> Iterator[Trial]:
        design, used, every = self.tables.design(path), _thinned(rows), bool(rows.all())
        importance = np.abs(gains[used])
        if not importance.sum() > 0:
            return
        coefficients = fit_weighted_logistic(
            design.rows(used),
            gains[used] <= 0,
            importance,
            ridge=self.ridge,
            start=self._start((path, slot, every)),
            classes=design.classes_of(used),
        )
        solved = self._starts.setdefault((path, slot, every), [])
        solved[:] = [*solved[-1:], coefficients]
        raw = design.raw_weights(coefficients).astype(np.float32)
        ranking = Ranking(self.tables.weighted_sum(path, raw))
        yield Trial(self.tables.features(path), tuple(raw.tolist()), ranking)

    def _start(self, key: tuple[Path, int, bool]) -> FloatArray | None:
        """Where to begin: where the last two trade-offs point to, or some like them were solved."""
        path, slot, every = key
        before = self._starts.get(key) or self._starts.get((path, slot, True), [])
        if every and len(before) == 2:
            return 2 * before[1] - before[0]  # trade-offs stand in equal ratios
        return before[-1] if before else None

    def _idle(self, nodes: dict[Path, _Fitted]) -> tuple[int, ...]:
        """Stages that could be bypassed and where next to nobody leaves, the idlest first."""
        arrive: dict[int, int] = {}
        leave: dict[int, int] = {}
        for path, node in nodes.items():
            reached = self._reached(path, nodes)
            stage = path[-1]
            arrive[stage] = arrive.get(stage, 0) + int(reached.sum())
            leave[stage] = leave.get(stage, 0) + int((reached & node.leave.take).sum())
        root = self.topology.root
        bypassable = [k for k in arrive if k != root or len(self.topology.children(k)) == 1]
        idle = [k for k in bypassable if leave[k] <= IDLE_SHARE * arrive[k]]
        return tuple(sorted(idle, key=lambda k: leave[k]))


def _where(rows: BoolArray, these: FloatArray, others: FloatArray) -> FloatArray:
    """`numpy.where`, in half the time where no pattern is in `rows`; a new array."""
    found, index = others.copy(), np.flatnonzero(rows)
    found[index] = these[index]
    return found


def _free(leave: Choice, routes: Sequence[Choice]) -> bool:
    """Whether a decision looks at nothing."""
    return leave.free and all(route.free for route in routes)


def _lower(total: float) -> float:
    """What is lower than a total by more than rounding."""
    return total - 1e-12 * max(1.0, abs(total))


def _thinned(rows: BoolArray) -> slice | IntArray:
    """Rows to fit coefficients on: all that count, evenly thinned where they are very many.

    A dozen coefficients are settled long before; the bias is scanned on every row all the same.
    """
    if rows.all():
        return slice(None, None, max(1, len(rows) // _MOST_ROWS))
    index = np.flatnonzero(rows)
    return index[:: max(1, len(index) // _MOST_ROWS)]


def fit_topology(
    fit: TreeFit, cost_weight: float, trees: dict[Topology, TreeFit] | None = None
) -> Fit:
    """Fit one trade-off and drop the stages that do not pay.

    A stage where nobody leaves, or so few that it may be by luck, is bypassed, with its head's cost
    and the features it gave, and what used them is refitted; this stays if the objective does not
    rise. Repeated until the topology stands.

    Args:
        fit: Of the topology to begin with.
        cost_weight: The trade-off, >= 0.
        trees: Those of other topologies on the same tables, by topology; those that are missing
            are put in, so that each is fitted once for a trade-off.
    """
    trees = {} if trees is None else trees
    found = fit.fit(cost_weight)
    kept: set[int] = set()  # stages whose bypassing did not pay
    while rest := [stage for stage in found.idle if stage not in kept]:
        smaller = without(found.topology, rest[0])
        if smaller not in trees:
            trees[smaller] = fit.on(smaller)
        other = trees[smaller].fit(cost_weight)
        if other.objective <= found.objective:
            found = other
        else:
            kept.add(rest[0])
    return found
