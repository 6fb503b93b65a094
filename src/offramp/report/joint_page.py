"""The page about networks trained together with when to stop: the paper's table and figures.

It is drawn from what `offramp train joint` wrote, a mapping of JSON values.

Layer: report.  Source: Guan et al., IJCAI 2018, Table 2 and Figures 2 to 4.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offramp._core.formatting import percent, unit_name
from offramp.drawing.assignment import assignment_figure
from offramp.drawing.frontier import frontier_figure
from offramp.drawing.palette import CurveKind
from offramp.drawing.series import Curve, Point
from offramp.report.charts import Chart, make_chart
from offramp.report.content import ExampleImage, Reproduction
from offramp.report.page import by_exit
from offramp.report.writer import fill_template, write_record_page

_SCALES = {"flops": (1e6, "millions of FLOPs per example")}
_CURVES: tuple[tuple[str, CurveKind, str], ...] = (
    ("joint", "joint", "trained jointly"),
    ("frozen", "frozen", "stopping networks only"),
)


def write_joint_report(
    path: Path,
    joint: Mapping[str, Any],
    *,
    title: str,
    images: Sequence[ExampleImage] = (),
    reproduction: Reproduction | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one page about a joint training; it fetches nothing and runs no script.

    Args:
        path: Where to write; ends in ".html".
        joint: What `offramp train joint` wrote: the content of `joint.json`.
        title: Of the page.
        images: Some that left at each stage.
        reproduction: How to get the same numbers again.
        overwrite: Whether files that are there already may be replaced.

    Returns:
        The path of the page.

    Raises:
        InputError: If the path does not end in ".html", or exists and may not be replaced.
        FileFormatError: If the mapping is of no joint training.
    """
    return write_record_page(
        path,
        joint,
        kind="joint",
        command="train joint",
        page=lambda: _render(joint, title, tuple(images), reproduction or Reproduction()),
        overwrite=overwrite,
    )


def _render(
    joint: Mapping[str, Any], title: str, images: tuple[ExampleImage, ...], how: Reproduction
) -> str:
    return fill_template(
        "joint.html",
        title=title,
        joint=joint,
        cascade=joint["chosen"]["cascade"],
        rows=_table(joint),
        unit=unit_name(joint["unit"]),
        frontier=_frontier(joint),
        assigned=_assigned(joint),
        images=by_exit(images),
        reference=joint["reference"],
        reproduction=how,
    )


def _table(joint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Table 2: static networks, then what chooses among them."""
    whole = next(one for one in joint["static"] if one["name"] == joint["reference"])
    rows = [
        {
            "name": one["name"],
            "note": "as given" if joint["given"] else "trained alone",
            "cost": one["cost"],
            "ratio": one["cost"] / whole["cost"],
            "error": one["error"],
            "accuracy_drop": one["error"] - whole["error"],
            "marked": False,
        }
        for one in joint["static"]
    ]
    for key, _, name in reversed(_CURVES):
        one = joint["chosen" if key == "joint" else key]
        if one["cascade"]:
            rows.append(
                {
                    "name": name,
                    "note": one["label"],
                    "cost": one["cost"],
                    "ratio": one["cost_ratio"],
                    "error": one["error"],
                    "accuracy_drop": one["accuracy_drop"],
                    "marked": key == "joint",
                }
            )
    return rows


def _frontier(joint: Mapping[str, Any]) -> Chart:
    """Figure 2: accuracy against absolute cost."""
    scale, words = _SCALES.get(joint["unit"], (1.0, f"{unit_name(joint['unit'])} per example"))
    curves = [
        Curve(
            name=name,
            kind=kind,
            cost_ratio=np.array([p["cost"] / scale for p in joint["curves"][key]], dtype=float),
            accuracy=np.array([1 - p["error"] for p in joint["curves"][key]], dtype=float),
        )
        for key, kind, name in _CURVES
    ]
    points = [
        Point(
            name=one["name"],
            kind="static",
            cost_ratio=one["cost"] / scale,
            accuracy=1 - one["error"],
        )
        for one in joint["static"]
    ]
    chosen = joint["chosen"]
    if chosen["cascade"]:
        at = chosen["cost"] / scale
        points.append(
            Point(name="chosen", kind="chosen", cost_ratio=at, accuracy=1 - chosen["error"])
        )
    best = next(one for one in joint["static"] if one["name"] == joint["reference"])
    said = [f"{p.name}: {p.cost_ratio:.3g}, {percent(p.accuracy)}." for p in points]
    return make_chart(
        "figure2",
        "Accuracy against cost",
        " ".join([f"Accuracy against {words}.", *said]),
        lambda narrow: frontier_figure(
            curves, points, reference_accuracy=1 - best["error"], cost_label=words, narrow=narrow
        ),
    )


def _assigned(joint: Mapping[str, Any]) -> Chart:
    """Figure 4: accuracy of stage i on what left at stage j, and how much that is."""
    found = joint["assignment"]
    stages, share, accuracy = found["stages"], found["share"], found["accuracy"]
    said = [f"{percent(part)} left at {name}." for name, part in zip(stages, share, strict=True)]
    return make_chart(
        "figure4",
        "Accuracy of each stage on what left at each stage",
        " ".join(said),
        lambda narrow: assignment_figure(stages, accuracy, share, narrow=narrow),
    )
