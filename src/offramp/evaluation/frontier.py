"""The frontier: all candidates of a sweep, and how one of them is chosen.

Layer: evaluation.
Source: methods.md 1 (Pareto front on `fit`, choice on `calibrate`) and 4 (certificates).
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import numpy as np

from offramp._core.checks import check_choice, check_kind, check_not_negative, check_number
from offramp._core.errors import InputError
from offramp.evaluation.calibration import Calibration
from offramp.evaluation.certify import certify
from offramp.evaluation.choice import Choice
from offramp.evaluation.gears import MaxDrops, certify_gears
from offramp.evaluation.judging import judge_again, labeled_by, on_front
from offramp.evaluation.limits import Limits
from offramp.evaluation.measured import MARGIN, choose, measured_choice
from offramp.evaluation.results import RISKS, FrontierPoint, Risk
from offramp.evaluation.shown import frontier_card, frontier_plot
from offramp.evaluation.weights import ClassWeights
from offramp.policy.gears import Gears
from offramp.policy.promise import PROMISES, Limit, points_text
from offramp.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DELTA = 0.1  # largest chance of a wrong promise, unless another is asked for
OVER_BUDGET = 0.05  # share of the examples that may cost more than a budget, unless one is given


@final
@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Candidates with what they cost and lose, and the single networks they must beat.

    Args:
        points: One for each candidate of the sweep.
        singles: One for each stage run alone, in topological order.
        reference: Name of the reference, which every loss and cost ratio refers to.
        calibration: The `calibrate` examples, which certificates rest on; None without them.
    """

    reference: str
    calibration: Calibration | None = None  # files of before there were certificates have none
    points: tuple[FrontierPoint, ...]
    singles: tuple[FrontierPoint, ...]

    @property
    def pareto(self) -> tuple[FrontierPoint, ...]:
        """Candidates on the front of cost and accuracy on `fit`, the cheapest first."""
        return self.front("accuracy_drop")

    def front(self, risk: Risk) -> tuple[FrontierPoint, ...]:
        """Candidates that no candidate or single network beats in cost and `risk` on `fit`."""
        kept = on_front([*self.points, *self.singles], risk)
        chosen = [p for p, on in zip(self.points, kept, strict=False) if on]
        return tuple(sorted(chosen, key=lambda p: p.fit.cost_ratio))

    def cheapest(
        self,
        *,
        max_drop: float,
        risk: Risk = "accuracy_drop",
        margin: float = MARGIN,
        delta: float | None = DELTA,
        max_request_cost: float | None = None,
        over_budget: float | None = None,
    ) -> Choice:
        """The cheapest candidate whose risk is at most `max_drop`, as promised or as measured.

        With `delta` candidates and single networks are tested on `calibrate` alone, in an order
        that `fit` fixes, and the limit is promised for new examples. With `delta=None` the Pareto
        front on `fit` is measured on `fit` and `calibrate` together, and nothing is promised.

        Args:
            max_drop: In (0, 1): 0.02 allows two points. With `delta=None` also 0.
            risk: "accuracy_drop": accuracy lost. "negative_flips": new errors, corrections not
                counted. With `delta` any risk that `certify` knows but "over_budget", which
                `max_request_cost` asks for.
            margin: Standard errors kept between the measured risk and `max_drop`, >= 0, against
                the luck of the chosen one among many (docs/adr/0010). With `delta=None` only.
            delta: Largest chance that the promise is wrong, in (0, 1) (docs/adr/0017); None to
                measure only (docs/adr/0040).
            max_request_cost: What one example may cost, in the unit of the trace; promised beside
                `max_drop`, so with `delta` only.
            over_budget: Share of the examples that may cost more than that, in (0, 1); 0.05 where
                nothing is said.

        Raises:
            InputError: If `max_drop`, `margin` or `delta` is outside its domain, a budget is given
                without `delta`, or a share without a budget.
        """
        if over_budget is not None and max_request_cost is None:
            raise InputError(
                f"over_budget={over_budget!r} is the share of the examples that may cost more than "
                "a budget; say which: max_request_cost=0.02, in the unit of the trace."
            )
        if risk == "over_budget":
            raise InputError(
                "risk='over_budget' takes a budget and a share: cheapest(max_drop=..., "
                "max_request_cost=0.02, over_budget=0.05), or without max_drop "
                'certify({"over_budget": {0.02: 0.05}}).'
            )
        limit = check_number("max_drop", max_drop, "in [0, 1)")
        if delta is not None:
            if margin != MARGIN:
                raise InputError(
                    f"margin must not be given together with delta, got {margin!r}: it guards a "
                    "measured risk, and a certificate needs no guard. With delta=None the risk is "
                    "measured only."
                )
            if risk in PROMISES and limit == 0:
                raise InputError(
                    f"the limit of {risk!r} must be in (0, 1), got {max_drop!r}: no number of "
                    "examples promises that nothing is lost. With delta=None it is measured only."
                )
            limits: dict[str, float | dict[str | int | float, float]] = {risk: max_drop}
            if max_request_cost is not None:
                share = OVER_BUDGET if over_budget is None else over_budget
                limits["over_budget"] = {max_request_cost: share}
            return self.certify(limits, delta=delta)
        if max_request_cost is not None:
            raise InputError(
                f"max_request_cost must be given with a delta, got {max_request_cost!r} and "
                "delta=None: a budget is promised, or not asked for."
            )
        check_choice("risk", risk, RISKS)
        check_not_negative("margin", margin)
        if not 0.0 <= limit < 1.0:
            raise InputError(
                f"max_drop must be in [0, 1), got {max_drop!r}. Points of accuracy have to be "
                "divided by 100 first: 2 points are 0.02."
            )
        single = self.best_single(max_drop=max_drop, risk=risk, margin=margin)
        chosen = choose(
            self.front(risk), limited=risk, limit=max_drop, minimized="cost", margin=margin
        )
        within, why = f"a loss of {points_text(max_drop)} points", None
        if self.singles[0].fit.of_losses:
            within = f"a loss of {max_drop:g} more"
        if chosen is None:
            why = f"no candidate stays within {within}"
        elif single is not None and chosen.judged.cost_ratio >= single.judged.cost_ratio:
            why = f"the cheapest candidate within {within} is not cheaper"
        asked, reference = Limit(risk=risk, at_most=limit), self._single_of_reference()
        return measured_choice(chosen, single, asked, risk, why=why, otherwise=reference)

    def certify(
        self, limits: Limits, *, delta: float = DELTA, class_weights: ClassWeights | None = None
    ) -> Choice:
        """The cheapest candidate that keeps several limits at once on new examples, as tested.

        Candidates, single networks included, are tested on `calibrate` alone, in an order that
        `fit` fixes: those first that stay farthest within the limits there. Where only the cost is
        limited, the most accurate of those that pass is promised (docs/adr/0021).

        Args:
            limits: From risks to the largest value of each, in (0, 1). "accuracy_drop": accuracy
                lost against the reference. "negative_flips": new errors. "error": wrong answers.
                "disagreement": first labels that are not the reference's, which takes no labels.
                "recall": recall lost against the reference by any class, or a mapping from classes
                to limits. "cost": mean cost over the reference's. "over_budget": a mapping from
                budgets, in the unit of the trace, to shares of the examples that cost more.
            delta: Largest chance that any of them is exceeded, in (0, 1): 0.05.
            class_weights: Where the shares of classes will change in a known way, and nothing
                else: each class's share in future over its share in `calibrate`, in the order of
                classes or by name. Recalls do not change with them.

        Raises:
            InputError: If a limit or `delta` is outside its domain, a risk is unknown, or weights
                cannot be such ratios.
            UnknownNameError: If there is no class of that name.
        """
        return self._certified(limits, delta=delta, class_weights=class_weights)

    def gears(
        self,
        max_drops: MaxDrops,
        *,
        risk: Risk = "accuracy_drop",
        delta: float = DELTA,
        examples: Trace | None = None,
    ) -> Gears:
        """For each of several limits the cheapest candidate, all promised with one `delta`.

        With probability 1 - delta none of their limits is exceeded (docs/adr/0052). The reference
        alone is a gear too. What cannot be promised is left out; `left_out` says why.

        Args:
            max_drops: Limits in (0, 1), such as (0.005, 0.02), for gears called "drop-0.5" and
                "drop-2"; or limits by the name of the gear.
            risk: What is limited: "accuracy_drop", or another risk of `certify` but of a cost.
            delta: Largest chance that any promise is wrong, in (0, 1).
            examples: The `calibrate` examples; gears then know how sure their answers were there.

        Raises:
            InputError: If a limit or `delta` is outside (0, 1), or a name or `examples` are wrong.

        >>> from offramp.evaluation import fit
        >>> from offramp.trace import make_trace
        >>> frontier = fit(make_trace(4000, stages=2, seed=0), "threshold", progress=False)
        >>> frontier.gears((0.02, 0.05), delta=0.1).names
        ('reference', 'drop-2', 'drop-5')
        """
        return certify_gears(
            [*self.points, *self.singles],
            self._single_of_reference(),
            self.calibration,
            max_drops,
            risk=risk,
            delta=delta,
            examples=examples,
        )

    def _certified(
        self,
        limits: Limits,
        *,
        delta: float,
        class_weights: ClassWeights | None = None,
        least: Risk = "accuracy_drop",
    ) -> Choice:
        return certify(
            [*self.points, *self.singles],
            self._single_of_reference(),
            self.calibration,
            limits,
            delta=delta,
            class_weights=class_weights,
            least=least,
        )

    def best(
        self, *, max_cost: float, risk: Risk = "accuracy_drop", delta: float | None = None
    ) -> Choice:
        """The candidate of least risk whose mean cost ratio is at most `max_cost`.

        Both are measured on `fit` and `calibrate` together, and nothing is promised. With `delta`
        the cost is tested on `calibrate` alone and promised, of what passes for that of least risk
        on `fit`.

        Args:
            max_cost: Over the reference's own cost, > 0: 0.5 allows half of it on average. With
                `delta` in (0, 1).
            risk: What to minimize.
            delta: Largest chance that new examples cost more on average, in (0, 1).

        Raises:
            InputError: If `max_cost` or `delta` is outside its domain.
        """
        if delta is not None:
            return self._certified({"cost": max_cost}, delta=delta, least=risk)
        check_choice("risk", risk, RISKS)
        if not 0.0 < check_number("max_cost", max_cost, "greater than 0") < np.inf:
            raise InputError(
                f"max_cost must be finite and greater than 0, got {max_cost!r}. It is a ratio "
                f"over the cost of {self.reference!r}."
            )
        single = self.best_single(max_cost=max_cost, risk=risk)
        chosen = choose(self.front(risk), limited="cost", limit=max_cost, minimized=risk)
        within, why = f"{max_cost:.3g} of the cost of {self.reference}", None
        if chosen is None:
            why = f"no candidate stays within {within}"
        elif single is not None and chosen.judged.risk(risk) >= single.judged.risk(risk):
            better = "does not lose less" if chosen.fit.of_losses else "is not more accurate"
            why = f"the best candidate within {within} {better}"
        limit = Limit(risk="cost", at_most=max_cost)
        cheapest = min(self.singles, key=lambda p: p.judged.cost_ratio)
        return measured_choice(chosen, single, limit, risk, why=why, otherwise=cheapest)

    def best_single(
        self,
        *,
        max_drop: float | None = None,
        max_cost: float | None = None,
        risk: Risk = "accuracy_drop",
        margin: float = MARGIN,
    ) -> FrontierPoint | None:
        """The best network on its own: the cheapest within a loss, or the best within a cost.

        Raises:
            InputError: If not exactly one limit is given.
        """
        if (max_drop is None) == (max_cost is None):
            raise InputError(
                f"Give exactly one of max_drop and max_cost, got {max_drop!r} and {max_cost!r}."
            )
        limit = check_number("the limit", max_cost if max_drop is None else max_drop, "at least 0")
        if max_drop is not None:
            return choose(self.singles, limited=risk, limit=limit, minimized="cost", margin=margin)
        return choose(self.singles, limited="cost", limit=limit, minimized=risk)

    def plot(self, choice: Choice | None = None, *, axes: "Axes | None" = None) -> "Axes":
        """Accuracy against cost: the front on `fit` and on `calibrate`, and the networks alone.

        Args:
            choice: Made from this frontier; it is marked, and what it allows is tinted.
            axes: Where to draw; by default axes of a new figure.

        Returns:
            The axes, to go on with: `axes.figure.savefig("frontier.png")`.

        Raises:
            InputError: If `axes` are no axes of matplotlib, or the choice is none, or against
                another reference.
        """
        if choice is not None:
            check_kind("choice", choice, Choice)
            if choice.candidate.reference != self.reference:
                raise InputError(
                    f"choice must be made from this frontier, against {self.reference!r}, got one "
                    f"against {choice.candidate.reference!r}: its costs are of another scale."
                )
        return frontier_plot(self, choice, axes)

    def _repr_html_(self) -> str:
        return frontier_card(self)

    def _single_of_reference(self) -> FrontierPoint:
        names = [p.candidate.policy.topology.describe() for p in self.singles]
        return self.singles[names.index(self.reference)]

    def calibrated_on(self, part: Trace, *, fit: Trace, labeled: bool = True) -> "Frontier":
        """The same candidates with other examples as `calibrate`.

        Args:
            part: Examples that nothing was fitted on, such as a sample from production.
            fit: Those that were fitted on; none of them may be in `part`.
            labeled: False where the labels of `part` are not to be trusted, or made up. They are
                not read then, and "disagreement" and "cost" alone can be certified.

        Raises:
            SplitOverlapError: If an example is in both.
        """
        fit.require_disjoint(part)
        held = part if labeled else labeled_by(part, self.reference)
        everything = [*self.points, *self.singles]
        again = judge_again(everything, len(self.singles), held, labeled=labeled)
        return replace(
            self,
            points=tuple(again[: len(self.points)]),
            singles=tuple(again[len(self.points) :]),
            calibration=Calibration.of(held, labeled=labeled),
        )
