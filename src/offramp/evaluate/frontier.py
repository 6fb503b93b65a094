"""The frontier: all settings of a sweep, and how one of them is chosen.

Layer: evaluate.  Source: methods.md 1 (Pareto front on `fit`, operating point on `calibrate`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np

from offramp._core.checks import check_choice
from offramp._core.errors import InputError
from offramp._core.progress import progress_bar
from offramp._core.types import BoolArray
from offramp.evaluate.evaluation import evaluate
from offramp.evaluate.results import (
    RISKS,
    DoNotCascade,
    Evaluation,
    FrontierPoint,
    OperatingPoint,
    Risk,
)
from offramp.policy import Setting
from offramp.policy.pareto import pareto_front
from offramp.trace import Trace

Axis = Literal["cost", "difference", "excess"]
_ROUNDING = 1e-12  # a risk of exactly B computed as a mean may exceed B in the last bit


@final
@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Settings with what they cost and lose, and the single networks they must beat.

    Args:
        points: One for each setting of the sweep.
        singles: One for each stage run alone, in topological order.
        reference: Name of F, which every loss and cost ratio refers to.
    """

    points: tuple[FrontierPoint, ...]
    singles: tuple[FrontierPoint, ...]
    reference: str

    @property
    def pareto(self) -> tuple[FrontierPoint, ...]:
        """Settings on the front of cost and accuracy on `fit`, the cheapest first."""
        return self.front("difference")

    def front(self, risk: Risk) -> tuple[FrontierPoint, ...]:
        """Settings that no setting or single network beats in cost and `risk` on `fit`."""
        kept = _on_front([*self.points, *self.singles], risk)
        chosen = [p for p, on in zip(self.points, kept, strict=False) if on]
        return tuple(sorted(chosen, key=lambda p: p.fit.cost_ratio))

    def cheapest(
        self, *, max_loss: float, risk: Risk = "difference"
    ) -> OperatingPoint | DoNotCascade:
        """The cheapest setting whose risk is at most `max_loss`, on `calibrate`.

        Candidates are the Pareto front on `fit`; without a `calibrate` part `fit` decides too.

        Args:
            max_loss: In [0, 1): 0.02 allows two points. The risk is as measured, not certified.
            risk: "difference": accuracy lost. "excess": new errors, corrections not counted.

        Raises:
            InputError: If `max_loss` is outside its domain.
        """
        check_choice("risk", risk, RISKS)
        if not 0.0 <= max_loss < 1.0:
            raise InputError(
                f"max_loss must be in [0, 1), got {max_loss!r}. Points of accuracy have to be "
                "divided by 100 first: 2 points are 0.02."
            )
        single = self.best_single(max_loss=max_loss, risk=risk)
        chosen = choose(self.front(risk), limited=risk, limit=max_loss, minimised="cost")
        limit = f"a loss of {_points(max_loss)} points"
        if chosen is None:
            reason = f"no setting stays within {limit}"
        elif single is not None and chosen.judged.cost_ratio >= single.judged.cost_ratio:
            reason = f"the cheapest setting within {limit} is not cheaper"
        else:
            return _operating_point(chosen, single, risk, max_loss=max_loss)
        best = single or self._single_of_reference()
        return _refusal(reason, best, chosen, risk, max_loss=max_loss)

    def best(self, *, max_cost: float, risk: Risk = "difference") -> OperatingPoint | DoNotCascade:
        """The setting of least risk whose mean cost ratio is at most `max_cost`, on `calibrate`.

        Args:
            max_cost: Over F's own cost, > 0: 0.5 allows half of it on average.
            risk: What to minimise.

        Raises:
            InputError: If `max_cost` is outside its domain.
        """
        check_choice("risk", risk, RISKS)
        if not (np.isfinite(max_cost) and max_cost > 0):
            raise InputError(
                f"max_cost must be finite and greater than 0, got {max_cost!r}. It is a ratio "
                f"over the cost of {self.reference!r}."
            )
        single = self.best_single(max_cost=max_cost, risk=risk)
        chosen = choose(self.front(risk), limited="cost", limit=max_cost, minimised=risk)
        limit = f"{max_cost:.3g} of the cost of {self.reference}"
        if chosen is None:
            reason = f"no setting stays within {limit}"
        elif single is not None and chosen.judged.risk(risk) >= single.judged.risk(risk):
            reason = f"the best setting within {limit} is not more accurate"
        else:
            return _operating_point(chosen, single, risk, max_cost=max_cost)
        best = single or min(self.singles, key=lambda p: p.judged.cost_ratio)
        return _refusal(reason, best, chosen, risk, max_cost=max_cost)

    def best_single(
        self,
        *,
        max_loss: float | None = None,
        max_cost: float | None = None,
        risk: Risk = "difference",
    ) -> FrontierPoint | None:
        """The best network on its own: the cheapest within a loss, or the best within a cost.

        Raises:
            InputError: If not exactly one limit is given.
        """
        if (max_loss is None) == (max_cost is None):
            raise InputError(
                f"Give exactly one of max_loss and max_cost, got {max_loss!r} and {max_cost!r}."
            )
        if max_loss is not None:
            return choose(self.singles, limited=risk, limit=max_loss, minimised="cost")
        return choose(self.singles, limited="cost", limit=float(max_cost or 0), minimised=risk)

    def _single_of_reference(self) -> FrontierPoint:
        names = [
            p.setting.policy.topology.names[p.setting.policy.topology.root] for p in self.singles
        ]
        return self.singles[names.index(self.reference)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "reference": self.reference,
            "points": [p.to_dict() for p in self.points],
            "singles": [p.to_dict() for p in self.singles],
        }


def choose(
    points: Sequence[FrontierPoint], *, limited: Axis, limit: float, minimised: Axis
) -> FrontierPoint | None:
    """The selection rule: within `limit` on one axis, the least on the other.

    Both are read from `calibrate` where there is one. Ties go to the lower value of what is
    limited. None if no point stays within the limit.
    """
    allowed = [p for p in points if _value(p.judged, limited) <= limit + _ROUNDING]
    return min(
        allowed,
        key=lambda p: (_value(p.judged, minimised), _value(p.judged, limited)),
        default=None,
    )


def sweep(
    settings: Sequence[Setting],
    fit: Trace,
    calibrate: Trace | None = None,
    *,
    reference: str,
    top: int = 1,
    progress: bool = True,
) -> Frontier:
    """Evaluate settings on `fit`, and those on a Pareto front on `calibrate` as well.

    Args:
        settings: What was fitted; all with this reference and `top`.
        fit: The examples that they were fitted on.
        calibrate: Other examples, to choose the operating point on.
        reference: Name of F.
        top: A label is right when it is among the `top` best.
        progress: Show a bar.

    Raises:
        SplitOverlapError: If an example stands in both parts.
        InputError: If a setting has another reference or `top`.
    """
    if calibrate is not None:
        fit.require_disjoint(calibrate)
    for setting in settings:
        if (setting.reference, setting.top) != (reference, top):
            raise InputError(
                f"All settings must have the reference {reference!r} and top {top}, got "
                f"{setting.reference!r} and {setting.top} for {setting.label!r}."
            )
    alone = [
        Setting.single(fit.topology, name, reference=reference, top=top) for name in fit.stages
    ]
    with progress_bar("Replaying settings", len(settings), enabled=progress) as step:
        points = []
        for setting in settings:
            points.append(FrontierPoint(setting=setting, fit=evaluate(fit, setting, bootstrap=0)))
            step(1)
        singles = [FrontierPoint(setting=s, fit=evaluate(fit, s, bootstrap=0)) for s in alone]
        accurate, safe = (_on_front([*points, *singles], risk) for risk in RISKS)
        points = [
            _looked_at(p, calibrate if a or e else None, on_front=bool(a))
            for p, a, e in zip(points, accurate, safe, strict=False)
        ]
        singles = [
            _looked_at(p, calibrate, on_front=bool(a))
            for p, a in zip(singles, accurate[len(points) :], strict=True)
        ]
    return Frontier(points=tuple(points), singles=tuple(singles), reference=reference)


def _looked_at(point: FrontierPoint, part: Trace | None, *, on_front: bool) -> FrontierPoint:
    found = None if part is None else evaluate(part, point.setting, bootstrap=0)
    return replace(point, calibrate=found, on_front=on_front)


def _on_front(points: Sequence[FrontierPoint], risk: Risk) -> BoolArray:
    costs = np.array([p.fit.cost_ratio for p in points], dtype=np.float64)
    return pareto_front(costs, np.array([p.fit.risk(risk) for p in points], dtype=np.float64))


def _value(evaluation: Evaluation, axis: Axis) -> float:
    return evaluation.cost_ratio if axis == "cost" else evaluation.risk(axis)


def _operating_point(
    chosen: FrontierPoint,
    single: FrontierPoint | None,
    risk: Risk,
    *,
    max_loss: float | None = None,
    max_cost: float | None = None,
) -> OperatingPoint:
    against = (
        "no single network stays within the limit"
        if single is None
        else f"the best single network, {_described(single, risk)}"
    )
    return OperatingPoint(
        setting=chosen.setting,
        fit=chosen.fit,
        calibrate=chosen.calibrate,
        best_single=single,
        risk=risk,
        max_loss=max_loss,
        max_cost=max_cost,
        sentence=f"Use {_described(chosen, risk)}; {against}.",
    )


def _refusal(
    why: str,
    single: FrontierPoint,
    chosen: FrontierPoint | None,
    risk: Risk,
    *,
    max_loss: float | None = None,
    max_cost: float | None = None,
) -> DoNotCascade:
    numbers = {
        "best_single_cost_ratio": single.judged.cost_ratio,
        f"best_single_{risk}": single.judged.risk(risk),
    }
    if chosen is not None:
        numbers["setting_cost_ratio"] = chosen.judged.cost_ratio
        numbers[f"setting_{risk}"] = chosen.judged.risk(risk)
    return DoNotCascade(
        reason=f"Do not use a cascade here: {why}. Use {_described(single, risk)}.",
        best_single=single,
        risk=risk,
        max_loss=max_loss,
        max_cost=max_cost,
        numbers=numbers,
    )


def _described(point: FrontierPoint, risk: Risk) -> str:
    found = point.judged
    verb = {"difference": "loses", "excess": "adds"}[risk]
    what = {"difference": "points of accuracy", "excess": "points of new errors"}[risk]
    return (
        f"{point.setting.label}, costs {found.cost_ratio:.3f} of {point.setting.reference} alone "
        f"and {verb} {_points(found.risk(risk))} {what} on {found.n} examples ({found.split})"
    )


def _points(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".")
