"""Train a CIFAR-10 network for the other benchmarks, on the first 40,000 training images alone.

What comes after them stays unseen: policies are fitted and calibrated on [40000:45000] and judged
on [45000:50000]. Interrupted, the same command goes on after the last whole epoch. `weights/` holds
what it wrote:

    python benchmarks/train_backbone.py --train DIR --model resnet20 \\
        --weights benchmarks/weights/resnet20_cifar10.safetensors

`accuracy` is measured on [45000:50000], once, after the last epoch.
"""

import time
from pathlib import Path
from typing import Any

import torch
from harness import has_bfloat16, parser, report

from offramp.data import CropAndFlip, Dataset, cifar10
from offramp.models import ModelSpec, build, save_weights
from offramp.stages import Normalize
from offramp.train import train_classifier

NORMALIZE = Normalize(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
#: How residual networks of this size are trained, whatever their rate and number of passes.
RECIPE: dict[str, Any] = {
    "transform": NORMALIZE,
    "augment": CropAndFlip(padding=4),
    "batch_size": 128,
    "optimizer": "sgd",
    "weight_decay": 5e-4,
}


def accuracy(net: torch.nn.Module, part: Dataset) -> float:
    """Share of the examples that a network gets right."""
    right = 0
    with torch.inference_mode():
        for start in range(0, len(part), 256):
            batch = part.batch(start, min(start + 256, len(part)))
            right += int((net(NORMALIZE(batch.inputs)).argmax(dim=1) == batch.labels).sum())
    return right / len(part)


def main() -> None:
    """Train, save, measure."""
    options = parser(__doc__ or "")
    options.add_argument(
        "--train", type=Path, required=True, help="folder of the official binary layout"
    )
    options.add_argument("--model", default="resnet20")
    options.add_argument("--weights", type=Path, required=True, help="safetensors file to write")
    options.add_argument("--work", type=Path, default=Path("runs/backbones"), help="checkpoints")
    options.add_argument("--epochs", type=int, default=24)
    options.add_argument("--images", type=int, default=40_000)
    options.add_argument("--judge", type=int, default=5_000, help="of each part to measure on")
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    if arguments.weights.exists():
        options.error(f"{arguments.weights} exists already")  # before the training, not after it
    arguments.work.mkdir(parents=True, exist_ok=True)
    images = cifar10(arguments.train)
    net = build(ModelSpec(name=arguments.model))
    start = time.monotonic()
    losses = train_classifier(
        net,
        images.take(torch.arange(arguments.images)),
        epochs=arguments.epochs,
        seed=arguments.seed,
        **RECIPE,
        learning_rate=0.2,
        bfloat16=has_bfloat16(),
        checkpoint=arguments.work / f"{arguments.weights.stem}_checkpoint.safetensors",
    )
    seconds = time.monotonic() - start
    save_weights(net, arguments.weights)
    chosen = {name: getattr(arguments, name) for name in ("model", "epochs", "images", "seed")}
    found = {
        "accuracy": accuracy(net, images.take(torch.arange(45_000, 45_000 + arguments.judge))),
        "accuracy_fit": accuracy(net, images.take(torch.arange(40_000, 40_000 + arguments.judge))),
        "seconds": seconds,
    }
    report(arguments, found | chosen | {"losses": list(losses)})


if __name__ == "__main__":
    main()
