"""Backends against eager PyTorch: the pretrained CIFAR ResNet-20 and ResNet-56, raw bytes in.

For each network, backend and batch size the time of eager PyTorch over the backend's, medians of
interleaved rounds of one run; and the share of test images to which both give the same label.
int8 is calibrated on 256 of the images, which do not count for that.

    resnet20/onnxruntime/batch32    ratio to eager PyTorch; above 1 is faster
    resnet20/onnxruntime/agreement  share of equal labels

    python benchmarks/backends.py --data DIR --threads 1 --json
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import parser, report
from selection_cifar10 import NETWORKS
from torch import Tensor
from train_backbone import NORMALIZE

from offramp.backends import BACKENDS, choose_backends, with_backend
from offramp.models import ModelSpec, build
from offramp.stages import Cascade

SIZES = (1, 32, 128)
CALIBRATION = 256


def cascade_of(data: Path, name: str) -> Cascade:
    """One of the pretrained networks, alone."""
    weights = str(data / "resnet_weights" / f"{name}_state.npz")
    net = build(ModelSpec(name=name, weights=weights))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it was in training mode
        return Cascade.from_models({name: net}, transform=NORMALIZE)


def images_of(data: Path) -> Tensor:
    """JPEG test images, `(n, 3, 32, 32)`, bytes."""
    with np.load(data / "test_jpeg_1000_5500.npz", allow_pickle=False) as held:
        return torch.from_numpy(held["images"]).permute(0, 3, 1, 2).contiguous()


@torch.inference_mode()
def labels_of(cascade: Cascade, images: Tensor) -> Tensor:
    """What it answers."""
    return torch.cat([cascade(part)[:, 0].argmax(1) for part in images.split(128)])


def measure(
    data: Path, name: str, candidates: list[str], rounds: int, judged: int
) -> dict[str, Any]:
    """Ratios and agreement of one network."""
    cascade, images = cascade_of(data, name), images_of(data)
    seen, held = images[:CALIBRATION], images[CALIBRATION : CALIBRATION + judged]
    table = choose_backends(
        cascade, seen[:2], candidates=candidates, batch_sizes=SIZES, rounds=rounds, calibration=seen
    )
    eager = labels_of(cascade, held)
    found: dict[str, Any] = {}
    for backend in table.seconds[name]:
        made = with_backend(cascade, backend, example=seen[:2], calibration=seen)
        for size, ratio in zip(SIZES, table.speedup(name, backend), strict=True):
            found[f"{name}/{backend}/batch{size}"] = ratio
        same = labels_of(made, held) == eager
        found[f"{name}/{backend}/agreement"] = float(same.float().mean())
    return found


def main() -> None:
    """Measure both networks."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of the CIFAR-10 data")
    options.add_argument("--rounds", type=int, default=15, help="timed rounds")
    options.add_argument("--images", type=int, default=2048, help="to compare labels on")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--backends", nargs="*", help="by default those that need no compiler")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    there = [name for name, made in BACKENDS.items() if made.tried and made.is_there()]
    result: dict[str, Any] = {"threads": arguments.threads}
    for name in (NETWORKS[0], NETWORKS[-1]):
        asked = arguments.backends or there
        result |= measure(arguments.data, name, asked, arguments.rounds, arguments.images)
    report(arguments, result)


if __name__ == "__main__":
    main()
