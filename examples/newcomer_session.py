"""A whole session: two networks, their cascade, a policy, and an adaptive classifier.

python examples/newcomer_session.py
"""

import torch

import offramp
from offramp.data import digits
from offramp.models import small_cnn
from offramp.stages import Normalize
from offramp.train import train_classifier


def main() -> None:
    sizes = {"train": 600, "fit": 450, "calibrate": 450, "test": 297}
    examples = digits().split_into(sizes, seed=0, stratified=True)
    normalize = Normalize(1 / 16)  # pixels are 0 to 16

    # Any trained networks will do; these two are trained here.
    small, large = small_cnn(width=2, depth=2), small_cnn(width=16, depth=4)
    for network in (small, large):
        train_classifier(network, examples.subset("train"), epochs=25, seed=0, transform=normalize)

    cascade = offramp.Cascade.from_models({"small": small, "large": large}, transform=normalize)
    unseen = examples.take(examples.split != 0)  # without "train"
    trace = offramp.record(cascade, unseen)
    frontier = offramp.fit(trace, policy="learned")
    chosen = frontier.cheapest(max_drop=0.02)
    print(chosen.sentence)

    model = offramp.Adaptive(cascade, chosen, costs=trace.costs)
    test = examples.subset("test")
    answer = model(test.inputs)
    right = (answer.labels == test.labels).double().mean()
    left = torch.bincount(answer.stage, minlength=2).tolist()
    print(f"On test: {100 * right:.1f} % right; {left[0]} images left after small, {left[1]} after")
    print(f"large; mean cost {answer.cost.mean() / trace.stage_costs()[1]:.3f} of large alone.")


if __name__ == "__main__":
    main()
