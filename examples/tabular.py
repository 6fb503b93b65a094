"""Tables: classifiers of scikit-learn as one estimator that asks the expensive one where it pays.

    python examples/tabular.py [FOLDER]

Needs the extra `sklearn`. The picture goes into the folder: what each classifier costs and how
often it is right, alone and as a cascade.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from offramp.sklearn import CascadeClassifier

COSTS = {"linear": 1.0, "neighbors": 40.0}  # microseconds a row, say; left out they are measured


def main(folder: Path) -> None:
    rows, labels = make_classification(
        6000, 10, n_informative=7, n_clusters_per_class=2, class_sep=1.3, random_state=0
    )
    model = CascadeClassifier(
        [
            ("linear", make_pipeline(StandardScaler(), LogisticRegression())),
            ("neighbors", make_pipeline(StandardScaler(), KNeighborsClassifier(15))),
        ],
        max_drop=0.03,
        costs=COSTS,
        random_state=0,
    )
    model.fit(rows[:5000], labels[:5000])
    print(model.choice_.sentence)

    fresh, truth = rows[5000:], labels[5000:]
    found = {
        name: (COSTS[name], one.fit(rows[:2500], labels[:2500]).score(fresh, truth))
        for name, one in model.estimators
    }
    found["cascade"] = (model.cost_, model.score(fresh, truth))
    print({name: f"{right:.3f} at {cost:.1f}" for name, (cost, right) in found.items()})

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for name, (cost, right) in found.items():
        axes.plot(cost, right, "o")
        axes.annotate(name, (cost, right), xytext=(6, 4), textcoords="offset points")
    axes.set(
        xlabel="cost of a row", ylabel="accuracy on new rows", xlim=(0, 1.3 * max(COSTS.values()))
    )
    axes.margins(y=0.15)
    figure.savefig(folder / "tabular.png", dpi=150)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    if not target.is_dir():
        sys.exit(f"FOLDER must be a folder that is there, got {target}. Make it, or leave it out.")
    main(target)
