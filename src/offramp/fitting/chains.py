"""Which chains of a long cascade are worth fitting: a search of polynomial cost.

A cascade of s stages has up to 2^s chains. Here one threshold after each stage stands for a fitted
policy. Deepest first, the value of standing at a stage is settled by the best stage to go on to and
the best threshold for leaving, so that one more stage on a chain takes s^2 scans of one threshold;
of alternative heads at one point a chain takes at most one. The learned and the threshold policy
then fit the same chains.

Layer: fitting.  Source: docs/adr/0013; methods.md 1 (deepest first; topologies compared).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import numpy as np
import torch

from offramp._core.topology import Path, Topology
from offramp._core.types import FloatArray
from offramp.fitting.search import count_chains, sub_chains, sub_topologies, successors
from offramp.fitting.tables import Tables
from offramp.fitting.temperature import fit_temperatures
from offramp.policy.features import Feature
from offramp.trace import Trace

MOST_EXHAUSTIVE = 64  # chains; five or six stages have fewer
_TRADE_OFFS: tuple[float, ...] = tuple(np.geomspace(0.01, 1.0, 8).tolist())
_LENGTHS = (2, 3, 4, 5)  # stages; longer chains fit the examples better, others no better
_MOST_EXAMPLES = 5000
_CONFIDENCE = "log_margin"
_ROUNDING = 1e-12  # a stage must gain more than this to be gone on to


def chains_to_fit(part: Trace, *, reference: str, top: int = 1) -> list[Topology]:
    """The chains that policies fit by default: all where they are few, else `promising_chains`.

    Args:
        part: Examples to fit on. Without scores there is nothing to search by: then all chains.
        reference: Name of the reference.
        top: A label is right when it is among the `top` best.

    Raises:
        InputError: If there are more than 2048 chains, and no scores.

    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=100, stages=3, seed=0)
    >>> [t.describe() for t in chains_to_fit(trace, reference="stage2")][:2]
    ['stage0 -> stage1', 'stage0 -> stage2']
    """
    if count_chains(part.topology) <= MOST_EXHAUSTIVE or not part.output(0).scored:
        found = sub_chains(part.topology)
    else:
        found = promising_chains(part, reference=reference, top=top)
    return [chain for chain in found if not part.silent & set(chain.active)]


def topologies_to_fit(part: Trace, *, reference: str, top: int = 1) -> list[Topology]:
    """As `chains_to_fit`, with the whole topology where it branches and its chains are few.

    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=100, stages=3, seed=0)
    >>> topologies_to_fit(trace, reference="stage2")[-1].describe()
    'stage0 -> stage1, stage0 -> stage2, stage1 -> stage2'
    """
    if count_chains(part.topology) <= MOST_EXHAUSTIVE:
        found = sub_topologies(part.topology)
        return [t for t in found if all(t.children(k) for k in part.silent & set(t.active))]
    return chains_to_fit(part, reference=reference, top=top)


def promising_chains(
    part: Trace,
    *,
    reference: str,
    top: int = 1,
    trade_offs: Sequence[float] = _TRADE_OFFS,
    lengths: Sequence[int] = _LENGTHS,
) -> list[Topology]:
    """Few chains for which a fit promises most, short ones first.

    They are: each stage before the reference, alone with the reference; and for each trade-off the
    best chain of at most each length.

    Args:
        part: Examples to fit on, with scores; of very many every so-manieth is used.
        reference: Name of the reference.
        top: A label is right when it is among the `top` best.
        trade_offs: Loss per unit of the reference's cost, each > 0.
        lengths: Most stages on a chain, each at least 2; one search for each.

    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=500, stages=8, seed=0)
    >>> 7 <= len(promising_chains(trace, reference="stage7")) < 40
    True
    """
    step = max(1, len(part) // _MOST_EXAMPLES)
    few = part if step == 1 else part.take(torch.arange(0, len(part), step))
    search = _Search(few, reference, top)
    found: dict[Path, None] = dict.fromkeys(search.pairs())
    for cost_weight in trade_offs:
        for longest in lengths:
            found[search.best(cost_weight, longest)] = None
    chains = sorted((chain for chain in found if len(chain) > 1), key=lambda c: (len(c), c))
    return [part.topology.chain(chain) for chain in chains]


class _Ahead(NamedTuple):
    """The best way on from a stage.

    Args:
        value: Loss plus cost_weight-cost from deciding at the stage onwards, `(n,)`.
        chain: The stages from here on.
    """

    value: FloatArray
    chain: Path


@final
class _Search:
    """Values of standing at each stage, each answering for itself, with one threshold there."""

    def __init__(self, part: Trace, reference: str, top: int) -> None:
        self.topology = part.topology
        self._stages = range(len(part.topology))
        self._f = part.topology.index(reference)
        self._costs = part.bill.relative_to(part.topology, self._f)
        sure = [_sureness(part, k) for k in self._stages]
        tables = Tables(
            part,
            temperatures=fit_temperatures(part),
            combine="last",
            reference=self._f,
            top=top,
            features_of=lambda path: [sure[path[-1]][0]],
        )
        tables.ensure((k,) for k in self._stages)
        self._loss = [tables.loss_of_leaving((k,)) for k in self._stages]
        self._sure = [np.float32(sign) * tables.column(f, (f.stage,)) for f, sign in sure]
        self._ranking = [tables.ranking(f, (f.stage,), sign) for f, sign in sure]
        self._after = successors(part.topology)
        self._step = {
            (k, j): self._costs.visit(part.topology, (k,), j)
            for k in self._stages
            for j in self._after[k]
        }

    def pairs(self) -> list[Path]:
        """Each stage that may lead to the reference, with the reference."""
        return [(k, self._f) for k in self._stages if self._f in self._after[k]]

    def best(self, cost_weight: float, longest: int) -> Path:
        """The best chain for a trade-off, of at most `longest` stages."""
        ahead = {k: _Ahead(self._loss[k], (k,)) for k in self._stages}
        for _ in range(longest - 1):
            ahead = {k: self._standing(k, ahead, cost_weight) for k in self._stages}
        start = min(self._stages, key=lambda k: self._total(k, ahead[k], cost_weight))
        return ahead[start].chain

    def _standing(self, k: int, ahead: Mapping[int, _Ahead], cost_weight: float) -> _Ahead:
        """Go on to the stage that is best to go on to from `k`, or stay."""
        here = _Ahead(self._loss[k], (k,))
        least = float(here.value.mean())
        decision = cost_weight * self._costs.decision[k]
        for j in sorted(self._after[k] & ahead.keys()):
            going = ahead[j].value + cost_weight * self._step[k, j]
            cut = self._ranking[k].best(self._loss[k] - going)
            total = float(going.mean()) + cut.total / len(going) + decision
            if total < least - _ROUNDING:
                leave = self._sure[k] >= np.float32(self._ranking[k].value(cut))
                value = np.where(leave, self._loss[k], going) + decision
                here, least = _Ahead(value, (k, *ahead[j].chain)), total
        return here

    def _total(self, k: int, ahead: _Ahead, cost_weight: float) -> float:
        first = float(np.mean(self._costs.visit(self.topology, (), k)))
        return float(ahead.value.mean()) + cost_weight * first


def _sureness(part: Trace, stage: int) -> tuple[Feature, float]:
    """What tells best how sure a stage is, with the sign that makes higher surer."""
    if part.features is None or stage in part.silent:
        return Feature("value_0" if part.features is not None else _CONFIDENCE, stage), 1.0
    loss = part.loss(stage) - part.loss(stage).mean()
    values = part.features[:, stage].double().numpy()
    spread = np.maximum(values.std(axis=0), 1e-12)
    speaks = ((values - values.mean(axis=0)) * loss[:, None]).mean(axis=0) / spread
    best = int(np.abs(speaks).argmax())
    return Feature(f"value_{best}", stage), 1.0 if speaks[best] <= 0 else -1.0
