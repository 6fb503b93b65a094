"""Cutting networks of every kind: how many points, how long, how exact, and what the cuts cost.

Weights are random, sizes those of ImageNet (CIFAR for the small ResNets, 64 tokens for BERT). Each
network is cut at up to 8 points that divide its FLOPs evenly. `max_difference` is the largest
between the segments in sequence and the uncut network, over batch sizes 1, 2 and 7 and with other
rows at each cut, over the largest logit if that is above 1. `overhead` is the time of the segments
with nobody leaving over the uncut network's, both eager, median of interleaved rounds. Batches of
32 are measured twice: as glibc's allocator comes, which gives pages back between operations and
takes them again, and with that turned off for both sides, as `offramp serve` runs.
Architectures whose package is absent are named in `skipped`: pip install 'offramp[zoo]'.
"""

import argparse
import importlib
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import torch
from harness import parser, report
from torch import nn

from offramp._core.batch import apply
from offramp._core.memory import keep_freed_memory
from offramp.models import extract_logits
from offramp.stages import choose_points, cut, cut_points, take_rows, time_side_by_side

Make = Callable[[], nn.Module]


def own(name: str, **arguments: object) -> Make:
    """A network of `offramp.models`."""
    models = importlib.import_module("offramp.models")
    return lambda: getattr(models, name)(**arguments)


def hugging_face(kind: str, task: str = "ImageClassification", **config: object) -> Make:
    """A network of transformers in its standard size."""

    def make() -> nn.Module:
        # torchvision registers operations here that a build without its C++ part does not have.
        sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("none"))
        package = importlib.import_module("transformers")
        made = getattr(package, f"{kind}Config")(num_labels=1000, **config)
        return getattr(package, f"{kind}For{task}")(made)  # type: ignore[no-any-return]

    return make


ZOO: dict[str, tuple[Make, int]] = {
    "resnet20": (own("cifar_resnet", depth=20), 32),
    "resnet56": (own("cifar_resnet", depth=56), 32),
    "resnet110": (own("cifar_resnet", depth=110), 32),
    "alexnet": (own("alexnet"), 224),
    "googlenet": (own("googlenet"), 224),
    "resnet50": (own("resnet50"), 224),
    "densenet121": (own("densenet121"), 224),
    "inception_v3": (own("inception_v3"), 299),
    "mobilenet_v2": (hugging_face("MobileNetV2"), 224),
    "efficientnet_b0": (
        hugging_face("EfficientNet", width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280),
        224,
    ),
    "convnext_t": (hugging_face("ConvNext"), 224),
    "vit_b16": (hugging_face("ViT"), 224),
    "swin_t": (hugging_face("Swin"), 224),
    "bert": (hugging_face("Bert", "SequenceClassification"), 0),
}


def example(side: int, count: int) -> Any:
    """Images of a side, or for side 0 sentences of 64 tokens with padding."""
    generator = torch.Generator().manual_seed(1)
    if side:
        return torch.randn(count, 3, side, side, generator=generator)
    mask = torch.ones(count, 64, dtype=torch.int64)
    mask[count // 2 :, 40:] = 0
    ids = torch.randint(1, 1000, (count, 64), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}


def lively(net: nn.Module) -> nn.Module:
    """Give it random weights of a size at which signals neither die nor grow."""
    generator = torch.Generator().manual_seed(0)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features, generator=generator) * 0.1
            part.running_var = torch.rand(part.num_features, generator=generator) + 0.5
    for parameter in net.parameters():
        if parameter.dim() > 1:
            scale = (1.5 / max(parameter[0].numel(), 1)) ** 0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return net.eval()


def through(segments: list[nn.Module], batch: Any) -> Any:
    """What the segments give one after the other."""
    for segment in segments:
        batch = apply(segment, batch)
    return batch


def difference(net: nn.Module, segments: list[nn.Module], side: int) -> float:
    """Largest difference of a logit over the largest logit, if that is above 1."""
    x = example(side, 7)
    reference = extract_logits(apply(net, x))
    found = [
        (through(segments, take_rows(x, torch.arange(m))) - reference[:m]).abs().max().item()
        for m in (1, 2, 7)
    ]
    generator, batch, rows = torch.Generator().manual_seed(0), x, torch.arange(7)
    for segment in segments[:-1]:
        batch = apply(segment, batch)
        kept = torch.randperm(len(rows), generator=generator)[: max(2, len(rows) - 1)]
        batch, rows = take_rows(batch, kept), rows[kept]
    last = apply(segments[-1], batch) - reference[rows]
    return max(*found, last.abs().max().item()) / max(1.0, reference.abs().max().item())


def overhead(net: nn.Module, segments: list[nn.Module], batch: Any, rounds: int) -> float:
    """Time of the segments over that of the uncut network."""
    sides = {"segments": lambda: through(segments, batch), "net": lambda: apply(net, batch)}
    return 1 / time_side_by_side(sides, rounds=rounds)["ratio"]


def measured(make: Make, side: int, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one network."""
    net = lively(make())
    one = example(side, 1)
    start = time.monotonic()
    points = cut_points(net, one)
    listing = time.monotonic() - start
    ends = len(choose_points(points))
    chosen = choose_points(points, quantiles=min(options.cuts, ends))
    start = time.monotonic()
    segments = cut(net, [point.name for point in chosen], one)
    return {
        "points": len(points),
        "ends_of_blocks": ends,
        "cuts": len(chosen),
        "list_seconds": listing,
        "cut_seconds": time.monotonic() - start,
        "max_difference": difference(net, segments, side),
        "overhead_batch1": overhead(net, segments, one, options.rounds),
        "overhead_batch32": overhead(net, segments, example(side, 32), options.rounds),
    }


def main() -> None:
    """Measure each network, first with the allocator as it comes, then with pages kept."""
    options = parser(__doc__ or "")
    options.add_argument("--networks", nargs="+", choices=[*ZOO], default=[*ZOO])
    options.add_argument("--cuts", type=int, default=8)
    options.add_argument("--rounds", type=int, default=9)
    arguments = options.parse_args()
    found: dict[str, Any] = {}
    skipped: list[str] = []
    with torch.no_grad():
        for name in arguments.networks:
            try:
                found[name] = measured(*ZOO[name], arguments)
            except ModuleNotFoundError:
                skipped.append(name)
        if keep_freed_memory():
            for name, figures in found.items():
                again = measured(*ZOO[name], arguments)
                figures["overhead_batch32_pages_kept"] = again["overhead_batch32"]
    key = "overhead_batch32_pages_kept"
    worst = {
        "max_difference": max(each["max_difference"] for each in found.values()),
        "overhead": max(
            max(each["overhead_batch1"], each.get(key, 0.0)) for each in found.values()
        ),
    }
    report(arguments, {**worst, "networks": found, "skipped": skipped})


if __name__ == "__main__":
    main()
