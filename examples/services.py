"""A cascade of services that give a label and a confidence: cost in dollars, no networks.

    python examples/services.py [FOLDER]

The picture goes into the folder: what a thousand answers cost, and how many of them are right.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import offramp
from offramp.evaluation import evaluate
from offramp.trace import from_predictions

PRICES = {"local model": 0.0, "cheap service": 0.00015, "expensive service": 0.001}


def answers(labels: np.ndarray, accuracy: float, rng: np.random.Generator) -> tuple:
    """Labels and confidences of one service; surer where it is right.

    These services err independently of each other; real ones err together and save less.
    """
    right = rng.random(len(labels)) < accuracy
    predicted = np.where(right, labels, (labels + rng.integers(1, 5, len(labels))) % 5)
    return predicted, np.where(right, rng.beta(6, 1, len(labels)), rng.beta(2, 2, len(labels)))


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 3000)  # your labeled examples
    accuracies = dict(zip(PRICES, (0.75, 0.85, 0.93), strict=True))
    said = {name: answers(labels, accuracy, rng) for name, accuracy in accuracies.items()}

    trace = from_predictions(
        {name: predicted for name, (predicted, _) in said.items()},
        labels,
        confidences={name: confidence for name, (_, confidence) in said.items()},
        costs=PRICES,
        unit="usd",
    ).split_into({"fit": 0.4, "calibrate": 0.3, "test": 0.3}, seed=0)

    frontier = offramp.fit(trace, policy=["learned", "threshold"], reference="expensive service")
    chosen = frontier.cheapest(max_drop=0.0, delta=None)  # as measured no worse than the best
    print(chosen.sentence)
    found = evaluate(trace.subset("test"), chosen.candidate)
    print(f"On test: ${1000 * found.cost:.2f} instead of ${1000 * found.reference_cost:.2f} per")
    print(f"thousand, {100 * found.accuracy:.1f} % right instead of ", end="")
    print(f"{100 * found.reference_accuracy:.1f} %.")

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    points = [(p.judged.cost, p.judged.accuracy) for p in frontier.pareto]
    axes.plot(*zip(*points, strict=True), ".-", color="0.6", label="what can be chosen")
    for point in frontier.singles:
        name = point.candidate.label.removesuffix(" alone")
        axes.plot(point.judged.cost, point.judged.accuracy, "s", label=name)
    axes.plot(chosen.point.judged.cost, chosen.point.judged.accuracy, "o", label="chosen")
    axes.set(xlabel="dollars for an answer", ylabel="accuracy")
    axes.legend()
    figure.savefig(folder / "services.png", dpi=150)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    if not target.is_dir():
        sys.exit(f"FOLDER must be a folder that is there, got {target}. Make it, or leave it out.")
    main(target)
