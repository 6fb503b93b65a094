"""The learned policy over trade-offs, topologies and combinations: one call from a trace.

Layer: fitting.  Source: methods.md 1 (sweep of cost_weight; topologies compared; combination).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch

from offramp._core.checks import check_not_negative
from offramp._core.errors import InputError
from offramp._core.threads import one_thread
from offramp._core.topology import Path, Topology
from offramp.fitting.chains import topologies_to_fit
from offramp.fitting.fits import Fit, Rules
from offramp.fitting.tables import Loss, Tables, combines_of
from offramp.fitting.temperature import fit_temperatures
from offramp.fitting.weighted import FAMILIES, Family, TreeFit, fit_topology
from offramp.policy.candidate import Candidate
from offramp.policy.combination import Combine
from offramp.policy.scalars import MOST_CLASSES
from offramp.trace import Trace

#: Loss per unit of the reference's cost: 0, then from "any saving is worth a thousandth" to "cost
# is all".
DEFAULT_LAMS: tuple[float, ...] = (0.0, *np.geomspace(1e-3, 1.0, 24).tolist())

_RIDGE = 1e-2
_KNOWING = "with class"
_LEAST_EACH = 50  # examples of a class on average, for features of classes to be tried
_FOLDS, _TRIED, _TRIAL_LAMS = 4, 16, (0.03, 0.1, 0.3)
_TRIAL_EXAMPLES = 200_000  # two means over so many tell apart what matters


def fit_learned(
    part: Trace,
    *,
    reference: str,
    top: int = 1,
    cost_weights: Sequence[float] = DEFAULT_LAMS,
    loss: Loss = "negative_flips",
    combines: Sequence[Combine] | None = None,
    topologies: Sequence[Topology] | None = None,
    families: Sequence[Family] = FAMILIES,
    class_features: bool | None = None,
    passes: int = 1,
    ridge: float = _RIDGE,
) -> list[Candidate]:
    """Learn policies by weighted binary classification, for every trade-off.

    Args:
        part: The `fit` part of a trace; its networks must not have been trained on it.
        reference: Name of the reference.
        top: The loss counts a label as right when it is among the `top` best.
        cost_weights: Trade-offs, >= 0, in loss per unit of the reference's cost.
        loss: "negative_flips" (the paper's: new errors only) or "error" (also rewards correcting
            the reference).
        combines: How visited stages may be combined; by default in every way that there is.
        topologies: Parts of the trace's topology to fit: by default those of `topologies_to_fit`,
            which is every sub-chain and the whole where there are few.
        families: What a rule may be.
        class_features: Also look at which class is predicted: a stage may be more reliable on
            one class than on another at equal confidence. By default, for each combination,
            where that lowers the objective on examples left out of the fit (`docs/adr/0009`,
            `docs/adr/0069`); not tried with more than 64 classes, where one example would no longer
            be decided by plain numbers, or fewer than 50 examples of each on average.
        passes: Coordinate passes after the first fit.
        ridge: Penalty of the logistic regression on standardized features.

    Returns:
        One candidate per (combination, topology, trade-off), without repetitions.

    Raises:
        InputError: If a trade-off is negative, or the trace has no scores.

    >>> from offramp.trace.testing import make_trace
    >>> candidates = fit_learned(make_trace(n=300, stages=2, seed=0), reference="stage1",
    ...                         cost_weights=[0.01, 0.1], combines=["last"])
    >>> {s.method for s in candidates}
    {'learned'}
    """
    cost_weights = [check_not_negative("cost_weights", cost_weight) for cost_weight in cost_weights]
    if topologies is None:
        topologies = topologies_to_fit(part, reference=reference, top=top)
    chosen = list(topologies)
    combines = combines_of(part) if combines is None else combines
    if not chosen or not cost_weights or not combines:
        raise InputError("topologies, cost_weights and combines must each hold at least one entry.")
    problem = _Problem(
        part=part,
        stage_f=part.topology.index(reference),
        top=top,
        loss=loss,
        temperatures=fit_temperatures(part),
        families=families,
        passes=passes,
        ridge=ridge,
    )
    found: list[Candidate] = []
    for combine in combines:
        knowing, tables = problem.knowing(combine, chosen, class_features)
        tables.ensure(path for topology in chosen for path in topology.paths())
        about = {"loss": loss, **({"features": _KNOWING} if knowing else {})}
        trees = {topology: problem.tree(tables, topology) for topology in chosen}
        unlike: dict[tuple[Topology, Rules], tuple[float, Fit]] = {}  # neighbors often agree
        with one_thread():
            for topology, cost_weight in itertools.product(chosen, cost_weights):
                fit = fit_topology(trees[topology], cost_weight, trees)
                unlike.setdefault((fit.topology, fit.rules), (cost_weight, fit))
        found += [
            Candidate(
                policy=fit.policy,
                method="learned",
                reference=reference,
                top=top,
                parameters={"cost_weight": cost_weight, **about},
            )
            for cost_weight, fit in unlike.values()
        ]
    return found


def refit(part: Trace, candidate: Candidate, topologies: Sequence[Topology]) -> list[Fit]:
    """A learned candidate's trade-off on other topologies, each as it stands: no stage is dropped.

    Temperatures and weights of the combination are the candidate's own where it has them.

    Args:
        part: The examples that the candidate was fitted on.
        candidate: Of `fit_learned`, with its usual options.
        topologies: Parts of the trace's topology, one fit for each.

    Raises:
        InputError: If the candidate is none of a learned policy.

    >>> from offramp.trace.testing import make_trace
    >>> part = make_trace(n=300, stages=3, seed=0)
    >>> (candidate,) = fit_learned(part, reference="stage2", cost_weights=[0.1], combines=["last"],
    ...                           topologies=[part.topology.chain([0, 2])])
    >>> longer = part.topology.chain([0, 1, 2])
    >>> [fit.policy.topology.describe() for fit in refit(part, candidate, [longer])]
    ['stage0 -> stage1 -> stage2']
    """
    if candidate.method != "learned":
        raise InputError(f"candidate must be of a learned policy, got {candidate.label!r}.")
    policy = candidate.policy
    problem = _Problem(
        part=part,
        stage_f=part.topology.index(candidate.reference),
        top=candidate.top,
        loss=str(candidate.parameters["loss"]),
        temperatures=policy.temperatures.tolist(),
    )
    tables = problem.tables(
        policy.combine,
        candidate.parameters.get("features") == _KNOWING,
        weights=policy.combination.weights or None,
    )
    cost_weight = float(candidate.parameters["cost_weight"])
    return [problem.tree(tables, topology).fit(cost_weight) for topology in topologies]


@final
@dataclass(frozen=True, kw_only=True)
class _Problem:
    """What does not change from one topology, combination or trade-off to the next."""

    part: Trace
    stage_f: int
    top: int
    loss: Loss
    temperatures: Sequence[float]
    families: Sequence[Family] = FAMILIES
    passes: int = 1
    ridge: float = _RIDGE

    def tables(
        self,
        combine: Combine,
        class_features: bool,
        *,
        weights: Mapping[Path, Sequence[float]] | None = None,
    ) -> Tables:
        return Tables(
            self.part,
            temperatures=self.temperatures,
            combine=combine,
            reference=self.stage_f,
            top=self.top,
            loss=self.loss,
            class_features=class_features,
            weights=weights,
        )

    def tree(self, tables: Tables, topology: Topology) -> TreeFit:
        costs = self.part.bill.relative_to(self.part.topology, self.stage_f)
        return TreeFit(tables, topology, costs, self.families, self.passes, self.ridge)

    def knowing(
        self, combine: Combine, topologies: Sequence[Topology], wanted: bool | None
    ) -> tuple[bool, Tables]:
        """Whether decisions look at the predicted class, and tables with such features or without.

        Where it is not said they do if that lowers the objective on left-out examples, over the
        shortest topologies; of very many examples some that are drawn tell.
        """
        classes, n = self.part.classes, len(self.part)
        tried = self.part.labeled and classes <= MOST_CLASSES and n >= _LEAST_EACH * classes
        if wanted is not None or not tried:
            return bool(wanted), self.tables(combine, bool(wanted))
        shortest = sorted((t for t in topologies if len(t.active) > 1), key=lambda t: len(t.active))
        few, rng = self, np.random.default_rng(0)
        if n > _TRIAL_EXAMPLES:
            drawn = np.sort(rng.permutation(n)[:_TRIAL_EXAMPLES])
            few = replace(self, part=self.part.take(torch.from_numpy(drawn)))
        folds = rng.permutation(len(few.part)) % _FOLDS

        def objective(tables: Tables) -> float:
            tables.ensure(path for topology in shortest[:_TRIED] for path in topology.paths())
            trees = [few.tree(tables, topology) for topology in shortest[:_TRIED]]
            with one_thread():
                return sum(tree.held_out(c, folds) for tree in trees for c in _TRIAL_LAMS)

        without = few.tables(combine, False)
        least = objective(without)
        having = few.tables(combine, True, weights=without.combination.weights or None)
        helps = objective(having) < least
        if few is not self:
            return helps, self.tables(combine, helps)
        return helps, having if helps else without
