"""Oracles: what leaving could achieve if the labels were known. They are no policies.

Each walks the topology and pays for what it visits; knowing the labels, deciding is free.

Layer: fitting.  Source: methods.md 1; "paper" is the oracle of Bolukbasi et al., ICML 2017.
"""

from dataclasses import dataclass
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
        wrong: True where that stage is wrong, `(n,)`.
    """

    last: IntArray
    cost: FloatArray
    wrong: BoolArray


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
    wrong = {k: part.wrong(k, top=top) for k in topology.active}
    f_wrong = part.wrong(part.topology.index(reference), top=top)
    allowed = _allowed(kind, topology, wrong, f_wrong)
    cost = np.full(len(part), np.inf)
    last = np.full(len(part), topology.root)
    for path, price in _by_cost(part, topology):
        better = allowed[path[-1]] & np.isinf(cost)
        cost[better], last[better] = price, path[-1]
    nowhere = np.isinf(cost)
    path, price = _fallback(part, kind, topology)
    cost[nowhere], last[nowhere] = price, path[-1]
    stacked = np.stack([wrong.get(k, f_wrong) for k in range(len(topology))], axis=1)
    return OracleResult(last=last, cost=cost, wrong=stacked[np.arange(len(part)), last])


def _allowed(
    kind: OracleKind, topology: Topology, wrong: dict[int, BoolArray], f_wrong: BoolArray
) -> dict[int, BoolArray]:
    """Whether an example may leave at each stage, each `(n,)`."""
    if kind == "free":
        return {k: ~w for k, w in wrong.items()}
    settled: dict[int, BoolArray] = {}  # k and every stage that may follow are right
    for k in reversed(topology.active):
        settled[k] = ~wrong[k]
        for child in topology.children(k):
            settled[k] = settled[k] & settled[child]
    if kind == "paper":
        return settled
    return {k: settled[k] | (wrong[k] & f_wrong) for k in settled}


def _by_cost(part: Trace, topology: Topology) -> list[tuple[Path, float]]:
    """All paths with their cost, the cheapest first; decisions are free."""
    priced = [(path, part.costs.path(topology, path, ())) for path in topology.paths()]
    return sorted(priced, key=lambda item: item[1])


def _fallback(part: Trace, kind: OracleKind, topology: Topology) -> tuple[Path, float]:
    """Where an example leaves that may leave nowhere: at once, or at the cheapest end."""
    priced = _by_cost(part, topology)
    if kind == "free":
        return next(item for item in priced if len(item[0]) == 1)
    return next(item for item in priced if not topology.children(item[0][-1]))


def oracle_reference(
    part: Trace, kind: OracleKind, *, topology: Topology, reference: str, top: int = 1
) -> OracleResult:
    """As `oracle`, one example and one path at a time: slow and obvious."""
    paths = topology.paths()
    last, cost, wrong = [], [], []
    f = part.topology.index(reference)
    for row in range(len(part)):
        bad = [bool(part.wrong(k, top=top)[row]) for k in range(len(topology))]

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
        best = min(ends, key=lambda p: part.costs.path(topology, p, ()))
        last.append(best[-1])
        cost.append(part.costs.path(topology, best, ()))
        wrong.append(bad[best[-1]])
    return OracleResult(last=np.array(last), cost=np.array(cost), wrong=np.array(wrong))
