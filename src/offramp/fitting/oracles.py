"""Oracles: what leaving could achieve if the labels were known. They are no policies.

Each walks the topology and pays for what it visits; knowing the labels, deciding is free.

Layer: fitting.  Source: methods.md 1; "paper" is the oracle of Bolukbasi et al., ICML 2017.
"""

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from offramp._core.checks import check_choice
from offramp._core.topology import Path, Topology
from offramp._core.types import BoolArray, FloatArray, IntArray
from offramp.trace import Trace

OracleKind = str  # one of ORACLES
ORACLES: tuple[OracleKind, ...] = ("paper", "neutral", "free")


@final
@dataclass(frozen=True, kw_only=True)
class OracleResult:
    """Where an oracle leaves, and what that costs.

    Args:
        last: Stage after which each example leaves, `(n,)`.
        cost: Cost of everything that ran for it, `(n,)`.
        loss: Loss of that stage, `(n,)`; of labels 1 where it is wrong.
    """

    last: IntArray
    cost: FloatArray
    loss: FloatArray

    @property
    def wrong(self) -> BoolArray:
        """True where that stage is wrong, `(n,)`."""
        return self.loss > 0


def oracle(
    part: Trace, kind: OracleKind, *, topology: Topology, reference: str, top: int = 1
) -> OracleResult:
    """Leave where the labels allow it, on the cheapest path that leads there.

    Args:
        part: The examples.
        kind: "paper": leaves at k only if k and every later stage that k can lead to are right.
            "neutral": also leaves where k and the reference are both wrong. Both run on to an end
            of the topology where that happens nowhere. "free": leaves at the cheapest right stage,
            and at once where none will be right; it can be more accurate than the reference.
            Where losses lie between 0 and 1: "paper": where no stage that k can lead to loses
            less. "neutral": also where k loses no more than the reference. "free": at the cheapest
            stage of those that lose least.
        topology: The part of the cascade to walk.
        reference: Name of the reference.
        top: A stage is right when the label is among its `top` best.

    Raises:
        InputError: If the kind is unknown.

    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=500, stages=2, seed=0)
    >>> chain = trace.topology.chain([0, 1])
    >>> free = oracle(trace, "free", topology=chain, reference="stage1")
    >>> bool(free.wrong.mean() <= trace.wrong(1).mean()), bool(free.cost.mean() < 5.0)
    (True, True)
    """
    check_choice("kind", kind, ORACLES)
    losses = {k: part.loss(k, top=top) for k in topology.active if k not in part.silent}
    f_loss = part.loss(part.topology.index(reference), top=top)
    allowed = _allowed(kind, topology, losses, f_loss, graded=part.graded)
    cost = np.full(len(part), np.inf)
    last = np.full(len(part), topology.root)
    priced = _by_cost(part, topology)
    _walk([item for item in priced if item[0][-1] in allowed], allowed, cost, last)
    nowhere = np.isinf(cost)
    ends = {item[0][-1]: nowhere for item in priced if _gives_up(kind, topology, item[0])}
    _walk([item for item in priced if _gives_up(kind, topology, item[0])], ends, cost, last)
    stacked = np.stack([losses.get(k, f_loss) for k in range(len(topology))], axis=1)
    return OracleResult(last=last, cost=cost, loss=stacked[np.arange(len(part)), last])


def _walk(
    priced: list[tuple[Path, float | FloatArray]],
    allowed: dict[int, BoolArray],
    cost: FloatArray,
    last: IntArray,
) -> None:
    """Send examples along the cheapest paths at whose end they may leave; the first of equals."""
    for path, price in priced:
        better = allowed[path[-1]] & (price < cost)
        cost[better] = np.broadcast_to(price, cost.shape)[better]
        last[better] = path[-1]


def _allowed(
    kind: OracleKind,
    topology: Topology,
    losses: dict[int, FloatArray],
    f_loss: FloatArray,
    *,
    graded: bool,
) -> dict[int, BoolArray]:
    """Whether an example may leave at each stage, each `(n,)`."""
    if graded:
        return _allowed_by_grade(kind, topology, losses, f_loss)
    right = {k: loss == 0 for k, loss in losses.items()}
    if kind == "free":
        return right
    settled: dict[int, BoolArray] = {}  # k and every stage that may follow are right
    for k in reversed(topology.active):
        settled[k] = right.get(k, np.ones(len(f_loss), dtype=np.bool_))
        for child in topology.children(k):
            settled[k] = settled[k] & settled[child]
    if kind == "paper":
        return {k: settled[k] for k in right}
    return {k: settled[k] | ((losses[k] > 0) & (f_loss > 0)) for k in right}


def _allowed_by_grade(
    kind: OracleKind, topology: Topology, losses: dict[int, FloatArray], f_loss: FloatArray
) -> dict[int, BoolArray]:
    """The same where an answer is neither right nor wrong."""
    if kind == "free":
        least = np.min(list(losses.values()), axis=0)
        return {k: loss == least for k, loss in losses.items()}
    ahead: dict[int, FloatArray] = {}  # the least loss of what may follow
    for k in reversed(topology.active):
        after = [ahead[c] for c in topology.children(k)]
        after += [losses[c] for c in topology.children(k) if c in losses]
        ahead[k] = np.min(after, axis=0) if after else np.full(len(f_loss), np.inf)
    calm = {k: loss <= ahead[k] for k, loss in losses.items()}
    if kind == "paper":
        return calm
    return {k: calm[k] | (losses[k] <= f_loss) for k in losses}


def _by_cost(part: Trace, topology: Topology) -> list[tuple[Path, float | FloatArray]]:
    """All paths with their cost, the cheapest on average first; decisions are free."""
    bill = part.bill
    priced = [(path, bill.path(topology, path, ())) for path in topology.paths()]
    return sorted(priced, key=lambda item: float(np.mean(item[1])))


def _gives_up(kind: OracleKind, topology: Topology, path: Path) -> bool:
    """Whether an example that may leave nowhere leaves here: at once, or at the cheapest end."""
    return len(path) == 1 if kind == "free" else not topology.children(path[-1])


def oracle_reference(
    part: Trace, kind: OracleKind, *, topology: Topology, reference: str, top: int = 1
) -> OracleResult:
    """As `oracle`, one example and one path at a time: slow and obvious."""
    paths = topology.paths()
    last, cost, loss = [], [], []
    f = part.topology.index(reference)
    for row in range(len(part)):
        bad = [bool(part.wrong(k, top=top)[row]) for k in range(len(topology))]
        costs = part.costs
        if part.prices is not None:
            costs = replace(costs, segment=tuple(part.prices[row].tolist()))

        def may_leave(path: Path, bad: list[bool] = bad) -> bool:
            k = path[-1]
            later = {j for p in paths if p[: len(path)] == path for j in p[len(path) :]}
            if kind == "free":
                return not bad[k]
            calm = not bad[k] and not any(bad[j] for j in later)
            return calm or (kind == "neutral" and bad[k] and bad[f])

        ends = [p for p in paths if may_leave(p)]
        if not ends:
            root_only = kind == "free"
            ends = [
                p for p in paths if (len(p) == 1 if root_only else not topology.children(p[-1]))
            ]
        paid = [costs.path(topology, p, ()) for p in ends]
        best = ends[paid.index(min(paid))]
        last.append(best[-1])
        cost.append(min(paid))
        loss.append(float(bad[best[-1]]))
    return OracleResult(last=np.array(last), cost=np.array(cost), loss=np.array(loss))
