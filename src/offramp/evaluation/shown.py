"""How a frontier and a choice look in a notebook, and the frontier as a plot.

Layer: evaluation.  Nothing is computed here.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from offramp._core import notebook
from offramp._core.formatting import change, percent
from offramp.evaluation.results import Evaluation, FrontierPoint
from offramp.policy.promise import points_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from offramp.drawing import Curve
    from offramp.drawing.palette import CurveKind
    from offramp.evaluation.choice import Choice
    from offramp.evaluation.frontier import Frontier

_MOST_ROWS = 7


def frontier_card(frontier: "Frontier") -> str:
    """The front as a small picture and a few of its candidates."""
    front = frontier.pareto
    step = max(1, -(-len(front) // _MOST_ROWS))
    measure = "score" if frontier.singles[0].fit.of_losses else "accuracy"
    held = frontier.calibration
    basis = "no calibrate part" if held is None else f"{held.n} examples in {held.split}"
    return notebook.card(
        "Frontier",
        f"{len(frontier.points)} candidates against {frontier.reference}",
        notebook.scatter(
            [(p.judged.cost_ratio, p.judged.accuracy) for p in front],
            [(p.judged.cost_ratio, p.judged.accuracy, _name(p)) for p in frontier.singles],
            level=_reference(frontier).judged.accuracy,
            words=f"{measure} against cost of {len(front)} candidates on the front",
        ),
        notebook.paragraph(
            f"{measure.capitalize()} (up) against cost (right); the dotted level is "
            f"that of {frontier.reference}. {len(front)} candidates are on the front; {basis}.",
            faint=True,
        ),
        notebook.table(
            ["on the front", "cost", "change, points", measure],
            [_figures(p.candidate.label, p.judged) for p in front[::step]],
        ),
        notebook.code("frontier.cheapest(max_drop=0.02)   # or frontier.plot()"),
    )


def choice_card(choice: "Choice") -> str:
    """What came out, why, what it costs and loses, and who leaves where."""
    shown = choice.judged
    guarantee = choice.guarantee
    facts = [
        ["cost against " + choice.candidate.reference, percent(shown.cost_ratio)],
        ["change, points", change(shown.accuracy_drop)],
        ["examples", str(shown.n)],
        *(["asked for", limit.text] for limit in choice.limits),
    ]
    if guarantee is not None:
        facts += [["p-value", f"{guarantee.p_value:.2g}"], ["delta", f"{guarantee.delta:g}"]]
    used = choice.candidate.policy.topology.active
    leaving = [
        [shown.stages[k], notebook.bar(shown.exit_share[k], percent(shown.exit_share[k]))]
        for k in used
    ]
    return notebook.card(
        "Choice",
        choice.candidate.label,
        notebook.badge(choice.outcome.capitalize(), good=choice.refused is None),
        choice.sentence,
        notebook.table(["leaves after", f"share of {shown.n} examples"], leaving),
        notebook.table([f"on {shown.split}", ""], facts),
    )


def _figures(label: str, found: Evaluation) -> list[str]:
    cost = notebook.bar(found.cost_ratio, percent(found.cost_ratio))
    return [label, cost, change(found.accuracy_drop), percent(found.accuracy)]


def _name(point: FrontierPoint) -> str:
    topology = point.candidate.policy.topology
    return topology.names[topology.root]


def _reference(frontier: "Frontier") -> FrontierPoint:
    return next(p for p in frontier.singles if _name(p) == frontier.reference)


def frontier_plot(frontier: "Frontier", choice: "Choice | None", axes: "Axes | None") -> "Axes":
    """As `Frontier.plot`."""
    from offramp.drawing import Band, Point, plot_frontier

    front = frontier.pareto
    evaluated = [p.calibrate for p in front if p.calibrate is not None]
    curves = [_curve("learned_fit", [p.fit for p in front]), _curve("learned", evaluated)]
    singles = [(_name(p), p.calibrate or p.fit) for p in frontier.singles]
    points = [
        Point(name=name, kind="static", cost_ratio=e.cost_ratio, accuracy=e.accuracy)
        for name, e in singles
    ]
    reference = next(e.accuracy for name, e in singles if name == frontier.reference)
    band = None
    if choice is not None:
        found = choice.calibrate or choice.fit
        if choice.cascade:
            points.append(
                Point(
                    name="chosen",
                    kind="chosen",
                    cost_ratio=found.cost_ratio,
                    accuracy=found.accuracy,
                )
            )
        drop = next((lim.at_most for lim in choice.limits if lim.risk == "accuracy_drop"), None)
        if drop is not None:
            word = "promised" if choice.guarantee is not None else "asked for"
            name = f"{word}: {points_text(drop)} points"
            band = Band(name=name, low=reference - drop, high=reference)
    measure = "score" if frontier.singles[0].fit.of_losses else "accuracy"
    return plot_frontier(
        curves, points, reference_accuracy=reference, band=band, measure=measure, axes=axes
    )


def _curve(kind: "CurveKind", found: Sequence[Evaluation]) -> "Curve":
    from offramp.drawing import Curve

    return Curve(
        name=f"front ({found[0].split})" if found else "",
        kind=kind,
        cost_ratio=np.array([e.cost_ratio for e in found], dtype=np.float64),
        accuracy=np.array([e.accuracy for e in found], dtype=np.float64),
    )
