"""Policies learned stage by stage, as weighted binary classification on the tree of visit paths.

For a trade-off `cost_weight` the policy minimizes the mean of loss + cost_weight * cost of
everything that ran. Deepest first: with the decisions further down fixed, leaving here costs `e`,
going on costs `V`; so "leave" is a binary label with weight |e - V|. With several
children, routing comes first: the last child is the champion, each earlier child in turn is
compared with the champion found so far (a filter tree), which makes the cost-sensitive choice a
row of weighted binary problems.

Layer: fitting.  Source: Bolukbasi et al., ICML 2017, sections 3 and 4; methods.md 1 a-e.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch

from offramp._core.checks import check_choice, check_not_negative
from offramp._core.costs import Bill
from offramp._core.errors import InputError
from offramp._core.topology import Path, Topology
from offramp._core.types import BoolArray, FloatArray, IntArray
from offramp.fitting.newton import Cut, best_cut, fit_weighted_logistic
from offramp.fitting.search import without
from offramp.fitting.tables import Tables
from offramp.policy.features import Feature
from offramp.policy.policy import Node, Policy
from offramp.policy.rules import Constant, Linear, Rule, linear_score

Family = str  # one of FAMILIES
_MOST_ROWS = 50_000
IDLE_SHARE = 0.02  # an exact scan finds a few lucky examples even where nothing can be gained
FAMILIES: tuple[Family, ...] = ("constant", "threshold", "linear")


@final
@dataclass(frozen=True)
class _Choice:
    """A rule and what it does to the examples fitted on.

    Args:
        rule: The rule.
        take: Where it takes the action, `(n,)`.
        gain: Change of the objective, decision cost included; lower is better.
    """

    rule: Rule
    take: BoolArray
    gain: float


@final
@dataclass(frozen=True)
class _Trial:
    """A weighted sum with its best cut; most are never chosen, so its rule is made at the end.

    Args:
        features: What is summed.
        weights: Their weights.
        scores: The sum, `(n,)`, float32.
        cut: Where to take the action.
    """

    features: Sequence[Feature]
    weights: Sequence[float]
    scores: np.ndarray
    cut: Cut

    def choice(self, gain: float) -> _Choice:
        """The rule with its bias, and whom it takes."""
        rule = Linear(self.features, self.weights, -self.cut.value)
        return _Choice(rule, self.scores >= np.float32(self.cut.value), gain)


@final
@dataclass
class _Fitted:
    """Rules at one node and the value of standing there, `(n,)`."""

    leave: _Choice
    routes: list[_Choice]
    value: FloatArray


@final
@dataclass(frozen=True)
class Fit:
    """What one trade-off led to.

    Args:
        policy: The policy.
        objective: Mean loss plus cost_weight times mean cost, on the examples fitted on.
        idle: Stages where next to nobody leaves.
    """

    policy: Policy
    objective: float
    idle: tuple[int, ...]


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
    _starts: dict[tuple[Path, int], FloatArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for family in self.families:
            check_choice("families", family, FAMILIES)
        if not self.families:
            raise InputError(f"families must name at least one of {FAMILIES}, got none.")
        self.tables.ensure(self.topology.paths())

    def fit(self, cost_weight: float) -> "Fit":
        """The policy for a trade-off `cost_weight >= 0`, loss per unit of the reference's cost."""
        check_not_negative("cost_weight", cost_weight)
        nodes = self._nodes(cost_weight, np.ones(self.tables.n, dtype=np.bool_))
        inner = self._inner()
        for _ in range(self.passes):
            if not self._improve(inner, cost_weight, nodes):
                break
        return Fit(self._policy(nodes), self._objective(cost_weight, nodes), self._idle(nodes))

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
            current.value = self._value(
                path, cost_weight, nodes, current
            )  # what follows may have changed
            reached = self._reached(path, nodes)
            if reached.all() or not reached.any():
                continue
            new = self._fit_node(path, cost_weight, nodes, reached)
            before, after = current.value[reached].sum(), new.value[reached].sum()
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
        routes: list[_Choice] = []
        for slot, child in reversed(list(enumerate(children[:-1]))):
            other = self._going(path, child, cost_weight, nodes)
            choice = self._choose(path, slot + 1, other - best, decision, rows)
            routes.insert(0, choice)
            best = np.where(choice.take, other, best)
        loss = self.tables.loss_of_leaving(path)
        if self.tables.may_leave(path[-1]):
            leave = self._choose(path, 0, loss - best, decision, rows)
        else:
            leave = _Choice(Constant(False), np.zeros(len(loss), dtype=np.bool_), 0.0)
        fitted = _Fitted(leave, routes, np.empty(0))
        fitted.value = self._value(path, cost_weight, nodes, fitted)
        return fitted

    def _going(
        self, path: Path, child: int, cost_weight: float, nodes: dict[Path, _Fitted]
    ) -> FloatArray:
        """Loss plus cost_weight-cost from running `child` onwards, `(n,)`."""
        further = (*path, child)
        after = nodes[further].value if further in nodes else self.tables.loss_of_leaving(further)
        return after + cost_weight * self.costs.visit(self.topology, path, child)

    def _value(
        self, path: Path, cost_weight: float, nodes: dict[Path, _Fitted], fitted: _Fitted
    ) -> FloatArray:
        children = self.topology.children(path[-1])
        going = self._going(path, children[-1], cost_weight, nodes)
        for child, choice in reversed(list(zip(children[:-1], fitted.routes, strict=True))):
            going = np.where(choice.take, self._going(path, child, cost_weight, nodes), going)
        value = np.where(fitted.leave.take, self.tables.loss_of_leaving(path), going)
        free = fitted.leave.rule.free and all(r.rule.free for r in fitted.routes)
        return value if free else value + cost_weight * self.costs.decision[path[-1]]

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
    ) -> _Choice:
        """The rule of lowest objective on `rows`; the simpler family where they tie.

        Args:
            path: Where the rule stands.
            slot: 0 for leaving, 1.. for routes; keys the warm start.
            gains: What the action adds to the objective, `(n,)`.
            decision: cost_weight times the cost of a decision that looks at something.
            rows: Examples that count.
        """
        n = len(gains)
        charge = decision * float(rows.sum())
        always = float(gains[rows].sum())
        # At equal objective the action is taken: it is the cheaper one.
        take = always <= 1e-12 * max(1.0, float(np.abs(gains).max()))
        least, best = min(always, 0.0), None
        for candidate in self._candidates(path, slot, gains, rows):
            total = candidate.cut.total + charge
            if total < least - 1e-12 * max(1.0, abs(least)):
                least, best = total, candidate
        return best.choice(least) if best else _Choice(Constant(take), np.full(n, take), least)

    def _candidates(
        self, path: Path, slot: int, gains: FloatArray, rows: BoolArray
    ) -> list[_Trial]:
        found: list[_Trial] = []
        if "threshold" in self.families:
            signs = (1.0,) if slot == 0 else (1.0, -1.0)  # a route may prefer the less sure
            for feature, sure in self.tables.confidences(path):
                for sign in signs:
                    order = self.tables.order(feature, path, sure * sign)
                    scores = (sure * sign) * self.tables.column(feature, path)
                    found += _cut([feature], [sure * sign], scores, gains, order[rows[order]])
        if "linear" in self.families:
            found += self._linear(path, slot, gains, rows)
        return found

    def _linear(self, path: Path, slot: int, gains: FloatArray, rows: BoolArray) -> list[_Trial]:
        if not self.tables.features(path):
            return []
        design = self.tables.design(path)
        used = _thinned(rows)
        weights = np.abs(gains)[used]
        if not weights.sum() > 0:
            return []
        coefficients = fit_weighted_logistic(
            design.matrix[used],
            gains[used] <= 0,
            weights,
            ridge=self.ridge,
            start=self._starts.get((path, slot)),
        )
        self._starts[(path, slot)] = coefficients
        raw = torch.from_numpy(design.raw_weights(coefficients)).float()
        scores = linear_score(self.tables.columns(path), raw, torch.tensor(0.0)).numpy()
        order = np.argsort(-scores)
        return _cut(self.tables.features(path), raw.tolist(), scores, gains, order[rows[order]])

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

    def _policy(self, nodes: dict[Path, _Fitted]) -> Policy:
        weights = {
            path: self.tables.combination.weights[path]
            for path in self.topology.paths()
            if self.tables.combination.kind == "log_linear"
        }
        return Policy(
            self.topology,
            {p: Node(f.leave.rule, [r.rule for r in f.routes]) for p, f in nodes.items()},
            temperatures=self.tables.temperatures,
            combine=self.tables.combination.kind,
            weights=weights or None,
            outputs=self.tables.outputs,
        )


def _cut(
    features: Sequence[Feature],
    weights: Sequence[float],
    scores: np.ndarray,
    gains: FloatArray,
    order: np.ndarray,
) -> list[_Trial]:
    """A weighted sum with its bias set by an exact scan; nothing if a constant is as good."""
    cut = best_cut(scores, gains, order)
    return [_Trial(features, weights, scores, cut)] if np.isfinite(cut.value) else []


def _thinned(rows: BoolArray) -> slice | IntArray:
    """Rows to fit coefficients on: all that count, evenly thinned where they are very many.

    A dozen coefficients are settled long before; the bias is scanned on every row all the same.
    """
    if rows.all():
        return slice(None, None, max(1, len(rows) // _MOST_ROWS))
    index = np.flatnonzero(rows)
    return index[:: max(1, len(index) // _MOST_ROWS)]


def fit_topology(fit: TreeFit, cost_weight: float) -> Fit:
    """Fit one trade-off and drop the stages that do not pay.

    A stage where nobody leaves, or so few that it may be by luck, is bypassed, with its head's cost
    and the features it gave, and what used them is refitted; this stays if the objective does not
    rise. Repeated until the topology stands.
    """
    found = fit.fit(cost_weight)
    kept: set[int] = set()  # stages whose bypassing did not pay
    while rest := [stage for stage in found.idle if stage not in kept]:
        smaller = without(fit.topology, rest[0])
        trial = TreeFit(fit.tables, smaller, fit.costs, fit.families, fit.passes, fit.ridge)
        other = trial.fit(cost_weight)
        if other.objective <= found.objective:
            fit, found = trial, other
        else:
            kept.add(rest[0])
    return found
