"""Which few of many recorded stages belong together.

Of sixty networks two or three make the best cascade, and there are thousands of ways to take them.
A search on one half of `fit` proposes some, policies are fitted to them there, and the other half
of `fit` decides: what was tried on the examples it is judged by would be the luckiest of thousands.
`calibrate` is not looked at, so what is promised of the outcome later holds.

Layer: evaluation.  Source: none, this is a definition; the search is that of docs/adr/0013, for
labels alone one of its kind (docs/adr/0047).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

import numpy as np

from offramp._core.checks import check_choice, check_kind, check_positive_int, check_seed
from offramp._core.errors import InputError
from offramp._core.topology import Path, Topology
from offramp._core.types import BoolArray, FloatArray, IntArray
from offramp.evaluation.batch import evaluate_all
from offramp.evaluation.choice import Choice
from offramp.evaluation.evaluate import reference_cost
from offramp.evaluation.fit import fit
from offramp.evaluation.frontier import Frontier
from offramp.evaluation.judging import mark_fronts
from offramp.evaluation.results import FrontierPoint
from offramp.fitting.chains import promising_chains
from offramp.fitting.registry import POLICIES
from offramp.fitting.search import successors
from offramp.policy import Candidate
from offramp.trace import Trace

_TRADE_OFFS: tuple[float, ...] = tuple(np.geomspace(0.01, 1.0, 8).tolist())
_BEAM = 8  # chains of labels alone that are kept for each trade-off, and made longer
_POLICIES = ("threshold", "learned", "agreement")


@final
@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A few stages that belong together.

    Args:
        stages: Their names, in the order in which they are visited; one alone where no cascade of
            the stages is worth it.
        choice: The candidate that won, as measured on held-out examples of `fit`.
        held_out: All that was tried, on these examples.
        trace: The trace of these stages alone, and of the reference.
        frontier: What `fit` gives on that trace, for a choice or a promise; None where one network
            runs alone.
    """

    stages: tuple[str, ...]
    choice: Choice
    held_out: Frontier
    trace: Trace
    frontier: Frontier | None


def suggest(
    trace: Trace,
    *,
    size: int = 3,
    max_drop: float = 0.01,
    reference: str | None = None,
    policy: str | None = None,
    top: int = 1,
    seed: int = 0,
) -> Suggestion:
    """Of many recorded stages, the few that make the cheapest cascade within a loss.

    Args:
        trace: Of all candidates, the cheapest first; with the splits `fit` and, for what comes
            after, `calibrate`, or without splits, which are then made as `fit` makes them. Other
            splits are not looked at.
        size: Most stages of the cascade, at least 2.
        max_drop: Accuracy that may be lost against the reference, in [0, 1).
        reference: Name of the reference; by default the most accurate stage on `fit`.
        policy: "threshold", "learned" or "agreement", which compares labels and needs three stages
            or more; by default "threshold", or "agreement" where there are labels alone.
        top: A label counts as right when it is among the `top` best.
        seed: Of the halves of `fit`, and of the splits of a trace without.

    Raises:
        InputError: If a number is outside its domain, or stages share work (exits of one network:
            their chains are searched by `fit` itself).

    >>> from offramp.trace import make_trace
    >>> many = make_trace(2000, accuracies=[0.6, 0.7, 0.71, 0.8, 0.9, 0.9], seed=0)
    >>> found = suggest(many, size=2, max_drop=0.03)
    >>> len(found.stages), set(found.stages) <= set(found.trace.stages)
    (2, True)
    """
    check_seed(seed)
    check_kind("trace", trace, Trace, read="offramp.load_trace(path)")
    check_positive_int("top", top)
    check_positive_int("size", size)
    if size < 2:
        raise InputError(f"size must be at least 2, got {size}; one stage alone is no cascade.")
    trace = trace.halved(seed=seed)
    part = trace.subset("fit")
    known = part.outputs != "labels"
    policy = ("threshold" if known else "agreement") if policy is None else policy
    check_choice("policy", policy, _POLICIES)
    if reference is None:
        reference = trace.stages[part.most_accurate(top=top)]
    reference_cost(part, reference)  # raises if the reference is unknown or free
    trace.topology.only(trace.stages)  # raises if stages share work
    halves = _halves(part, seed)
    chains = _chains(halves[0], policy, reference, size, top)
    known_as = {"reference": reference, "top": top, "topologies": chains}
    options = {"options": [(1, 1)]} if policy == "agreement" else {}  # others when it is fitted
    candidates = POLICIES[policy](halves[0], **known_as, **options)
    held_out = _judged(candidates if chains else [], *halves, reference=reference, top=top)
    choice = held_out.cheapest(max_drop=max_drop, delta=None)
    topology = choice.candidate.policy.topology
    stages = tuple(trace.stages[k] for k in topology.active)
    few = trace.only([name for name in trace.stages if name in {*stages, reference}])
    frontier = None
    if choice.cascade:
        chain = few.topology.chain(stages)
        frontier = fit(
            few, policy, reference=reference, top=top, topologies=[chain], progress=False
        )
    return Suggestion(stages=stages, choice=choice, held_out=held_out, trace=few, frontier=frontier)


def _halves(part: Trace, seed: int) -> tuple[Trace, Trace]:
    """Examples to try stages on, and others to judge them by."""
    whole = part.split_into({"fit": 0.5, "calibrate": 0.5}, seed=seed)
    tried, held = whole.subset("fit"), whole.subset("calibrate")
    return replace(tried, split=None), replace(held, split=None)


def _judged(
    candidates: Sequence[Candidate], tried: Trace, held: Trace, *, reference: str, top: int
) -> Frontier:
    """The candidates on the front of those tried, and every network alone, on held-out examples."""
    found = evaluate_all(tried, candidates)
    points = [FrontierPoint(candidate=e.candidate, fit=e) for e in found]
    wanted: BoolArray = np.zeros(0, dtype=np.bool_)
    if points:
        _, wanted = mark_fronts(points)
    kept = [c for c, on in zip(candidates, wanted, strict=True) if on]
    alone = [
        Candidate.single(held.topology, name, reference=reference, top=top)
        for k, name in enumerate(held.stages)
        if k not in held.silent
    ]
    again = evaluate_all(held, [*kept, *alone])
    judged = [FrontierPoint(candidate=e.candidate, fit=e) for e in again]
    return Frontier(
        points=tuple(judged[: len(kept)]), singles=tuple(judged[len(kept) :]), reference=reference
    )


def _chains(part: Trace, policy: str, reference: str, size: int, top: int) -> list[Topology]:
    """Chains worth fitting, of at most `size` stages."""
    if policy == "agreement":
        found = _AgreementSearch(part, reference, top).chains(size)
        return [part.topology.chain(chain) for chain in found]
    promising = promising_chains(
        part, reference=reference, top=top, lengths=range(2, size + 1), trade_offs=_TRADE_OFFS
    )
    return [c for c in promising if not part.silent & set(c.active)]


@final
class _AgreementSearch:
    """Chains to the reference on which examples leave where two stages in a row agree.

    Every chain of three is looked at; the best for each trade-off are made longer by one stage
    before the reference, as often as asked for.
    """

    def __init__(self, part: Trace, reference: str, top: int) -> None:
        self._f = part.topology.index(reference)
        self._after = successors(part.topology)
        own = part.mean_cost(self._f)
        self._cost: FloatArray = part.stage_costs() / own  # (s,)
        before = [k for k in self._after if self._f in self._after[k] and self._cost[k] < 1]
        self._before = sorted(before)
        first = [part.output(k).top(1)[:, 0].numpy() for k in range(len(part.topology))]
        self._label: IntArray = np.stack(first)  # (s, n)
        f_wrong = part.wrong(self._f, top=top)
        wrong = np.stack([part.wrong(k, top=top) for k in range(len(part.topology))])
        self._excess: BoolArray = wrong & ~f_wrong  # (s, n)

    def chains(self, size: int) -> list[Path]:
        """The best chains of three to `size` stages, each ending with the reference."""
        pairs = [(a, b) for a in self._before for b in self._before if b in self._after[a]]
        grown = self._best(dict(self._measured(pairs)))
        found = dict.fromkeys(grown)
        for _ in range(size - 3):
            longer = [(*c, b) for c in grown for b in self._before if b in self._after[c[-1]]]
            grown = self._best(dict(self._measured(longer)))
            found |= dict.fromkeys(grown)
        return [(*chain, self._f) for chain in found] if size > 2 else []

    def _measured(self, chains: Sequence[Path]) -> Iterator[tuple[Path, tuple[float, float]]]:
        """Each chain, without the reference, with its cost and its loss."""
        n = self._label.shape[1]
        for chain in chains:
            going, cost, lost = np.ones(n, dtype=np.bool_), float(self._cost[chain[0]]), 0.0
            for a, b in pairwise(chain):
                cost += float(self._cost[b]) * float(going.mean())
                leaving = going & (self._label[a] == self._label[b])
                lost += float((leaving & self._excess[b]).mean())
                going &= ~leaving
            yield chain, (cost + float(going.mean()), lost)

    def _best(self, measured: dict[Path, tuple[float, float]]) -> list[Path]:
        """The best for each trade-off."""
        found: dict[Path, None] = {}
        for weight in _TRADE_OFFS:

            def total(chain: Path, weight: float = weight) -> float:
                cost, lost = measured[chain]
                return lost + weight * cost

            found |= dict.fromkeys(sorted(measured, key=total)[:_BEAM])
        return list(found)
