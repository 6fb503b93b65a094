"""Draw the picture of the README from recorded results.

    python tools/draw_frontier.py

reads benchmarks/results/frontier_cifar10.json and writes docs/pictures/frontier.svg. Its ground is
light, so that it can be read on a dark page as well. The same results give the same file.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from offramp.drawing import Curve, Point, frontier_figure, save_figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "frontier_cifar10.json"
PICTURE = ROOT / "docs" / "pictures" / "frontier.svg"
GREEN = "#00795a"  # of the palette of reports
TITLES = {"learned": "learned policy", "threshold": "best thresholds"}


def drawn(results: dict[str, Any]) -> Figure:
    """The frontier, the networks alone, and the promise with what became of it."""
    networks = results["networks"]
    _, reference = networks[results["reference"]]
    curves = [
        Curve(name=title, kind=kind, cost_ratio=cost, accuracy=accuracy)  # type: ignore[arg-type]
        for kind, title in TITLES.items()
        for cost, accuracy in [np.array(results[kind]).T]
    ]
    alone = [
        Point(name=name, kind="static", cost_ratio=cost, accuracy=accuracy)
        for name, (cost, accuracy) in networks.items()
    ]
    cost, accuracy = results["chosen"]
    gain = -100 * results["accuracy_drop"]
    chosen = Point(
        name=f"cost {cost:.2f}, {gain:+.1f} points",
        kind="chosen",
        cost_ratio=cost,
        accuracy=accuracy,
    )
    figure = frontier_figure(
        curves,
        [*alone, chosen],
        reference_accuracy=reference,
        cost_label=f"mean cost of an image, {results['reference']} = 1",
        measure="accuracy on new images",
    )
    (axes,) = figure.axes
    figure.legends[0].set_bbox_to_anchor((0.035, 0.985), transform=figure.transFigure)
    floor = reference - results["max_drop"]
    axes.axhspan(floor, axes.get_ylim()[1], color=GREEN, alpha=0.07, linewidth=0, zorder=0)
    axes.annotate(
        f"promised: at least this much, {100 * results['max_drop']:.3g} point below "
        f"{results['reference']}",
        xy=(1.0, floor),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 4),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color=GREEN,
    )
    axes.axhline(floor, color=GREEN, linewidth=1.1)
    return figure


def main() -> None:
    """Draw and write."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    save_figure(drawn(results), PICTURE, overwrite=True)


if __name__ == "__main__":
    main()
