"""One class faster: exits in one network that answer a class and no other.

    python examples/class_exits.py [FOLDER]

The picture goes into the folder: how much sooner each digit could be answered, where the accuracy
of everything else is kept.
"""

import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from offramp.data import digits
from offramp.fitting.class_exits import ClassExitPlan, Requirements
from offramp.models import ModelSpec, build
from offramp.stages import Normalize
from offramp.train import train_classifier
from offramp.train.class_exits import Recipe, choose_class_exits, exit_row, sweep_branches

SPEC = ModelSpec(name="small_cnn", arguments={"width": 8, "depth": 3})
NORMALIZE = Normalize(1 / 16, 0.3, 0.4)


def main(folder: Path) -> None:
    sizes = {"train": 900, "fit": 350, "calibrate": 250, "test": 297}
    examples = digits().split_into(sizes, seed=0, stratified=True)
    network = build(SPEC)
    train_classifier(network, examples.subset("train"), epochs=6, seed=0, transform=NORMALIZE)
    kept = Requirements(thresholds=(0.5, 1.0), tolerance=0.02)  # two points, of every recall too
    gains: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        sweep = sweep_branches(
            network,
            examples,
            Path(place) / "branches",
            recipe=Recipe(epochs=8, batch_size=128),
            transform=NORMALIZE,
            spec=SPEC,
        )
        for name in examples.class_names:
            found = choose_class_exits(sweep, name, requirements=kept)
            if isinstance(found, ClassExitPlan):
                gains |= exit_row(sweep.data("test"), found.exits, bootstrap=200).gains
            else:
                print(f"{name}: {found.reason}")
    print({name: f"{gain:.2f} times faster" for name, gain in gains.items()})

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    axes.bar(gains.keys(), gains.values())
    axes.axhline(1, color="0.3", linewidth=1)
    axes.set(xlabel="digit", ylabel="times faster, on test")
    figure.savefig(folder / "class_exits.png", dpi=150)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    if not target.is_dir():
        sys.exit(f"FOLDER must be a folder that is there, got {target}. Make it, or leave it out.")
    main(target)
