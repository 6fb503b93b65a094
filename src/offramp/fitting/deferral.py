"""The deferral policy: the learned one, with a prediction of each stage's loss among its features.

At each decision a small network predicts, from everything that the visited stages said, which
classes they named included, how likely each stage is to err: the present one and those that could
follow. The rule is then fitted like that of the learned policy, on its features and these.

Layer: fitting.  Source: docs/adr/0066; methods.md 1 for the rules.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from offramp._core.checks import check_not_negative, check_positive_int, check_seed
from offramp._core.errors import InputError
from offramp._core.threads import one_thread
from offramp._core.topology import Path, Topology
from offramp.fitting.chains import topologies_to_fit
from offramp.fitting.fits import Fit, Rules
from offramp.fitting.learned import DEFAULT_LAMS
from offramp.fitting.loss_networks import LossNetwork, dealt, fit_loss_networks
from offramp.fitting.tables import Loss, Tables, combines_of, confidence_features_of
from offramp.fitting.temperature import fit_temperatures
from offramp.fitting.weighted import TreeFit, fit_topology
from offramp.policy.candidate import Candidate
from offramp.policy.combination import Combine
from offramp.policy.features import RANKS, Feature
from offramp.trace import Trace

WIDTH = 16
_FOLDS, _LEAST_OF_A_FOLD = 3, 20
_MOST_CLASSES = 100  # beyond, which class was named is not looked at
_RIDGE = 1e-2

_Predicted = dict[Path, tuple[LossNetwork, np.ndarray]]


def fit_deferral(
    part: Trace,
    *,
    reference: str,
    top: int = 1,
    cost_weights: Sequence[float] = DEFAULT_LAMS,
    loss: Loss = "negative_flips",
    combines: Sequence[Combine] | None = None,
    topologies: Sequence[Topology] | None = None,
    width: int = WIDTH,
    seed: int = 0,
) -> list[Candidate]:
    """Learn policies that predict which stage will err, for every trade-off.

    It takes many examples to be better than "learned": give `fit` both, and examples that were
    left out choose. On the examples that it was fitted on it looks better than it is, as the mean
    of its networks has seen them; a certificate rests on others.

    Args:
        part: The `fit` part of a trace; its networks must not have been trained on it.
        reference: Name of the reference.
        top: The loss counts a label as right when it is among the `top` best.
        cost_weights: Trade-offs, >= 0, in loss per unit of the reference's cost.
        loss: "negative_flips" or "error", as for the learned policy.
        combines: How visited stages may be combined; by default in every way that there is.
        topologies: Parts of the trace's topology to fit, as for the learned policy.
        width: Hidden numbers of each network; a decision has three networks side by side.
        seed: Of first weights, of folds and of the order of the examples.

    Returns:
        One candidate per (combination, topology, trade-off), without repetitions.

    Raises:
        InputError: If a trade-off is negative, or the trace has no scores.

    >>> from offramp.trace.testing import make_trace
    >>> candidates = fit_deferral(make_trace(n=300, stages=2, seed=0), reference="stage1",
    ...                          cost_weights=[0.1], combines=["last"])
    >>> {s.method for s in candidates}
    {'deferral'}
    """
    cost_weights = [check_not_negative("cost_weights", cost_weight) for cost_weight in cost_weights]
    check_positive_int("width", width)
    check_seed(seed)
    if topologies is None:
        topologies = topologies_to_fit(part, reference=reference, top=top)
    combines = combines_of(part) if combines is None else combines
    if not topologies or not cost_weights or not combines:
        raise InputError("topologies, cost_weights and combines must each hold at least one entry.")
    stage_f, temperatures = part.topology.index(reference), fit_temperatures(part)
    costs = part.bill.relative_to(part.topology, stage_f)
    predicted: _Predicted | None = None
    found: list[Candidate] = []
    for combine in combines:
        tables = Tables(
            part,
            temperatures=temperatures,
            combine=combine,
            reference=stage_f,
            top=top,
            loss=loss,
            features_of=confidence_features_of(part, combine),
        )
        tables.ensure(path for topology in topologies for path in topology.paths())
        if predicted is None:  # it is the stages' own losses, whatever an answer combines
            predicted = _predicted(part, topologies, temperatures, stage_f, top, width, seed)
        for path, (network, odds) in predicted.items():
            tables.predict(path, network, odds)
        trees = {t: TreeFit(tables, t, costs, ridge=_RIDGE) for t in topologies}
        unlike: dict[tuple[Topology, Rules], tuple[float, Fit]] = {}  # neighbors often agree
        with one_thread():
            for topology, cost_weight in itertools.product(topologies, cost_weights):
                fit = fit_topology(trees[topology], cost_weight, trees)
                unlike.setdefault((fit.topology, fit.rules), (cost_weight, fit))
        found += [
            Candidate(
                policy=fit.policy,
                method="deferral",
                reference=reference,
                top=top,
                parameters={"cost_weight": cost_weight, "loss": loss},
            )
            for cost_weight, fit in unlike.values()
        ]
    return found


def _predicted(
    part: Trace,
    topologies: Sequence[Topology],
    temperatures: Sequence[float],
    reference: int,
    top: int,
    width: int,
    seed: int,
) -> _Predicted:
    """For each path that may go on its network, and what was predicted for left-out examples.

    Nothing where there are too few examples to leave any out.
    """
    if len(part) < _FOLDS * _LEAST_OF_A_FOLD:
        return {}
    paths = dict.fromkeys(p for t in topologies for p in t.paths() if t.children(p[-1]))
    inputs = Tables(
        part,
        temperatures=temperatures,
        combine="last",
        reference=reference,
        top=top,
        features_of=lambda path: _inputs(part, path),
    )
    inputs.ensure(paths)
    folds = dealt(len(part), _FOLDS, seed)
    found: _Predicted = {}
    for path in paths:
        stages = [k for k in range(path[-1], len(part.topology)) if k not in part.silent]
        losses = np.stack([part.loss(k, top=top) for k in stages], axis=1)
        x = np.stack(inputs.columns(path), axis=1)
        found[path] = fit_loss_networks(
            inputs.features(path), x, losses, folds, classes=part.classes, width=width, seed=seed
        )
    return found


def _inputs(part: Trace, path: Path) -> list[Feature]:
    """What a network reads at the end of a path: all that every visited stage said."""
    if not part.labeled:
        return list(confidence_features_of(part, "last")(path))
    found: list[Feature] = []
    for k in path:
        found += [Feature(kind, k) for kind in ("max_prob", "log_margin", "entropy")]
        found += [Feature(f"log_prob_{r}", k) for r in range(1, min(RANKS, part.classes) + 1)]
        if part.classes <= _MOST_CLASSES:
            found += [Feature(f"predicts_{c}", k) for c in range(part.classes - 1)]
    return found + [Feature(f"agrees_{i}", k) for i, k in itertools.combinations(path, 2)]
