"""The learned policy over trade-offs, topologies and combinations: one call from a trace.

Layer: policy.  Source: methods.md 1 (sweep of lam; topologies compared; combination).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from offramp._core.checks import check_not_negative
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp.policy.combination import Combine
from offramp.policy.search import sub_topologies
from offramp.policy.setting import Setting
from offramp.policy.tables import Loss, Tables, confidence_features_of
from offramp.policy.temperature import fit_temperatures
from offramp.policy.weighted import FAMILIES, Family, TreeFit, fit_topology
from offramp.trace import Trace

#: Loss per unit of F's cost: 0, then from "any saving is worth a thousandth" to "cost is all".
DEFAULT_LAMS: tuple[float, ...] = (0.0, *np.geomspace(1e-3, 1.0, 24).tolist())


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
    ridge: float = 1e-2,
) -> list[Setting]:
    """Learn policies by weighted binary classification, for every trade-off.

    Args:
        part: The `fit` part of a trace; its networks must not have been trained on it.
        reference: Name of F.
        top: The loss counts a label as right when it is among the `top` best.
        lams: Trade-offs, >= 0, in loss per unit of F's cost.
        loss: "excess" (the paper's: new errors only) or "error" (also rewards correcting F).
        combines: How visited stages may be combined.
        topologies: Parts of the trace's topology to fit, by default every sub-chain and the whole.
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
    chosen = sub_topologies(part.topology) if topologies is None else list(topologies)
    if not chosen or not lams or not combines:
        raise InputError("topologies, lams and combines must each hold at least one entry.")
    stage_f = part.topology.index(reference)
    if class_features is None:
        class_features = part.classes <= 20 and len(part) >= 50 * part.classes
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
            features_of=confidence_features_of(
                part.classes, combine, class_features=class_features
            ),
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


def _unique(settings: Iterable[Setting]) -> list[Setting]:
    """Without the settings whose policy an earlier one has already: neighbours often agree."""
    seen: dict[str, Setting] = {}
    for setting in settings:
        seen.setdefault(repr(setting.policy.to_dict()), setting)
    return list(seen.values())
