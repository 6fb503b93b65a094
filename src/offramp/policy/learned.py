"""The learned policy over trade-offs, topologies and combinations: one call from a trace.

Layer: policy.  Source: methods.md 1 (sweep of lam; topologies compared; combination).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from offramp._core.checks import check_not_negative
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp.policy.chains import topologies_to_fit
from offramp.policy.combination import Combine
from offramp.policy.setting import Setting
from offramp.policy.tables import FeaturesOf, Loss, Tables, confidence_features_of
from offramp.policy.temperature import fit_temperatures
from offramp.policy.weighted import FAMILIES, Family, Fit, TreeFit, fit_topology
from offramp.trace import Trace

#: Loss per unit of F's cost: 0, then from "any saving is worth a thousandth" to "cost is all".
DEFAULT_LAMS: tuple[float, ...] = (0.0, *np.geomspace(1e-3, 1.0, 24).tolist())

_RIDGE = 1e-2


def fit_weighted(
    part: Trace,
    *,
    reference: str,
    top: int = 1,
    lams: Sequence[float] = DEFAULT_LAMS,
    loss: Loss = "excess",
    combines: Sequence[Combine] = ("last", "mean", "weighted"),
    topologies: Sequence[Topology] | None = None,
    families: Sequence[Family] = FAMILIES,
    class_features: bool | None = None,
    passes: int = 1,
    ridge: float = _RIDGE,
) -> list[Setting]:
    """Learn policies by weighted binary classification, for every trade-off.

    Args:
        part: The `fit` part of a trace; its networks must not have been trained on it.
        reference: Name of F.
        top: The loss counts a label as right when it is among the `top` best.
        lams: Trade-offs, >= 0, in loss per unit of F's cost.
        loss: "excess" (the paper's: new errors only) or "error" (also rewards correcting F).
        combines: How visited stages may be combined.
        topologies: Parts of the trace's topology to fit: by default those of `topologies_to_fit`,
            which is every sub-chain and the whole where there are few.
        families: What a rule may be.
        class_features: Also look at which class is predicted: a stage may be more reliable on
            one class than on another at equal confidence. By default where there are at most 20
            classes and 50 examples of each on average.
        passes: Coordinate passes after the first fit.
        ridge: Penalty of the logistic regression on standardised features.

    Returns:
        One setting per (combination, topology, trade-off), without repetitions.

    Raises:
        InputError: If a trade-off is negative, or the trace has no scores.

    >>> from offramp.trace.testing import make_trace
    >>> settings = fit_weighted(make_trace(n=300, stages=2, seed=0), reference="stage1",
    ...                         lams=[0.01, 0.1], combines=["last"])
    >>> {s.method for s in settings}
    {'weighted'}
    """
    lams = [check_not_negative("lams", lam) for lam in lams]
    if topologies is None:
        topologies = topologies_to_fit(part, reference=reference, top=top)
    chosen = list(topologies)
    if not chosen or not lams or not combines:
        raise InputError("topologies, lams and combines must each hold at least one entry.")
    stage_f = part.topology.index(reference)
    temperatures = fit_temperatures(part)
    costs = part.costs.relative_to(part.topology, stage_f)
    found: list[Setting] = []
    for combine in combines:
        tables = Tables(
            part,
            temperatures=temperatures,
            combine=combine,
            reference=stage_f,
            top=top,
            loss=loss,
            features_of=_features_of(part, combine, class_features),
        )
        tables.ensure(path for topology in chosen for path in topology.paths())
        for topology in chosen:
            fit = TreeFit(tables, topology, costs, families, passes, ridge)
            for lam in lams:
                found.append(
                    Setting(
                        policy=fit_topology(fit, lam).policy,
                        method="weighted",
                        reference=reference,
                        top=top,
                        parameters={"lam": lam, "loss": loss},
                    )
                )
    return _unique(found)


def refit(part: Trace, setting: Setting, topologies: Sequence[Topology]) -> list[Fit]:
    """A learned setting's trade-off on other topologies, each as it stands: no stage is dropped.

    Temperatures and weights of the combination are the setting's own where it has them.

    Args:
        part: The examples that the setting was fitted on.
        setting: Of `fit_weighted`, with its usual options.
        topologies: Parts of the trace's topology, one fit for each.

    Raises:
        InputError: If the setting is none of a learned policy.

    >>> from offramp.trace.testing import make_trace
    >>> part = make_trace(n=300, stages=3, seed=0)
    >>> (setting,) = fit_weighted(part, reference="stage2", lams=[0.1], combines=["last"],
    ...                           topologies=[part.topology.chain([0, 2])])
    >>> longer = part.topology.chain([0, 1, 2])
    >>> [fit.policy.topology.describe() for fit in refit(part, setting, [longer])]
    ['stage0 -> stage1 -> stage2']
    """
    if setting.method != "weighted":
        raise InputError(f"setting must be of a learned policy, got {setting.label!r}.")
    policy, stage_f = setting.policy, part.topology.index(setting.reference)
    tables = Tables(
        part,
        temperatures=policy.temperatures.tolist(),
        combine=policy.combine,
        reference=stage_f,
        top=setting.top,
        loss=str(setting.parameters["loss"]),
        features_of=_features_of(part, policy.combine, None),
        weights=policy.combination.weights or None,
    )
    costs = part.costs.relative_to(part.topology, stage_f)
    lam = float(setting.parameters["lam"])
    return [TreeFit(tables, topology, costs, ridge=_RIDGE).fit(lam) for topology in topologies]


def _features_of(part: Trace, combine: Combine, class_features: bool | None) -> FeaturesOf:
    if class_features is None:
        class_features = part.classes <= 20 and len(part) >= 50 * part.classes
    return confidence_features_of(part.classes, combine, class_features=class_features)


def _unique(settings: Iterable[Setting]) -> list[Setting]:
    """Without the settings whose policy an earlier one has already: neighbours often agree."""
    seen: dict[str, Setting] = {}
    for setting in settings:
        seen.setdefault(repr(setting.policy.to_dict()), setting)
    return list(seen.values())
