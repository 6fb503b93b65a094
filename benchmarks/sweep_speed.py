"""How long it takes to train every branch of a class-specific design, and in how much memory.

420 branches of ResNet-21: behind each of its 21 convolutions, with and without the maps before, for
each of ten classes. Random weights and made-up images are as slow as real ones; with `--data` the
training images of CIFAR-10 are taken instead. `feature_seconds` is the one pass of the network,
`seconds` what follows until every branch has stopped, `peak_mib` the largest memory of the process,
the images in it. Training goes on for all `--epochs`, or until no branch has got better for ten.
"""

import tempfile
import time
from pathlib import Path

import torch
from harness import parser, peak_mib, report

from offramp.data import Dataset, arrays, cifar10
from offramp.models import resnet21
from offramp.stages import Normalize
from offramp.train.class_exits import (
    Recipe,
    attachment_points,
    branch_features,
    every_branch,
    train_branches,
)

_CLASSES = 10
_HELD_BACK = 10  # one example in so many judges the epochs


def made_up(count: int) -> Dataset:
    """Images with a little of their class in them, so that branches learn for some epochs."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % _CLASSES
    patterns = torch.randint(0, 64, (_CLASSES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    noise = torch.randint(0, 192, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return arrays(noise + patterns[labels], labels, layout="nchw")


def main() -> None:
    """Run the network once, then train."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, help="folder of CIFAR-10, official layout")
    options.add_argument("--images", type=int, default=45_000)
    options.add_argument("--epochs", type=int, default=Recipe().epochs)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    count = arguments.images
    images = made_up(count) if arguments.data is None else cifar10(arguments.data)
    images = images.take(torch.arange(count))
    net = resnet21().eval()
    normalize = Normalize(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    points = attachment_points(net, normalize(images.inputs[:1]))
    judged = torch.arange(count) % _HELD_BACK == 0
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train, rest = (
            branch_features(Path(folder) / name, net, points, part, transform=normalize)
            for name, part in (("train", images.take(~judged)), ("judged", images.take(judged)))
        )
        features_done = time.perf_counter()
        branches = every_branch(len(points), range(_CLASSES))
        found = train_branches(train, rest, branches, Recipe(epochs=arguments.epochs))
        end = time.perf_counter()
    report(
        arguments,
        {
            "seconds": end - features_done,
            "feature_seconds": features_done - start,
            "peak_mib": peak_mib(),
            "branches": len(branches),
            "features": train.starts[-1],
            "images": count,
            "threads": torch.get_num_threads(),
            "longest_best_epoch": max(found.epochs),
            "mean_accuracy": sum(found.accuracies) / len(branches),
        },
    )


if __name__ == "__main__":
    main()
