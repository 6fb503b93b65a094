"""Images: two networks, their cascade, a promise, and a picture of what is easy and what is not.

    python examples/images.py [FOLDER]

The picture goes into the folder: for each network some of the test images that left there.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

import offramp
from offramp.data import digits
from offramp.models import small_cnn
from offramp.stages import Normalize
from offramp.train import train_classifier

SHOWN = 8  # images of each stage


def main(folder: Path) -> None:
    sizes = {"train": 600, "fit": 450, "calibrate": 450, "test": 297}
    examples = digits().split_into(sizes, seed=0, stratified=True)
    normalize = Normalize(1 / 16)  # pixels are 0 to 16

    # Any trained networks will do; these two are trained here.
    networks = {"small": small_cnn(width=3, depth=2), "large": small_cnn(width=16, depth=4)}
    for network in networks.values():
        train_classifier(network, examples.subset("train"), epochs=12, seed=0, transform=normalize)

    cascade = offramp.Cascade.from_models(networks, transform=normalize)
    unseen = examples.take(examples.split != 0)  # without "train"
    trace = offramp.record(cascade, unseen)
    chosen = offramp.fit(trace, policy="learned").cheapest(max_drop=0.02)
    print(chosen.sentence)

    model = offramp.Adaptive(cascade, chosen, costs=trace.costs)
    test = examples.subset("test")
    answer = model(test.inputs)
    right = (answer.labels == test.labels).double().mean()
    share = answer.cost.mean() / trace.stage_costs()[1]
    print(f"On test: {100 * right:.1f} % right at {share:.3f} of the cost of large alone.")

    figure, axes = plt.subplots(2, SHOWN, figsize=(SHOWN, 2.6), layout="constrained")
    for row, name in zip(axes, answer.stage_names, strict=True):
        here = (answer.stage == answer.stage_names.index(name)).nonzero()[:SHOWN, 0].tolist()
        for place in row:
            place.axis("off")
        row[0].set_title(f"answered by {name}", loc="left", fontsize=9)
        for place, k in zip(row, here, strict=False):
            place.imshow(test.inputs[k, 0].numpy(), cmap="gray_r")
    figure.savefig(folder / "images.png", dpi=150)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    if not target.is_dir():
        sys.exit(f"FOLDER must be a folder that is there, got {target}. Make it, or leave it out.")
    main(target)
