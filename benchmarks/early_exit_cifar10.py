"""Early exits in trained CIFAR-10 networks: what they save at no loss and at one point.

For each backbone, heads are trained at some of its points, the backbone frozen; then policies are
fitted, chosen and judged on images that nothing was trained on, for several seeds of the split.

    resnet56_adapted  the pretrained ResNet-56 (weights that we did not train) on test images after
                      lossy JPEG; heads, and the last layer anew, trained on JPEG-compressed
                      training images. F is the network with that last layer: to compare adapted
                      heads with the unadapted network would flatter
    resnet56_clean    the same, heads trained on clean images, F the network as it is
    resnet20          trained by `train_backbone.py` on [0:40000], heads too; policies on
                      [40000:45000], judged on [45000:50000]

`cost_ratio` is FLOPs over F's, heads included; `difference` is accuracy minus F's on the same
images; `_1pt` at one point of allowed loss. The threshold policy (`_myopic`) has the same chains,
heads and combinations. Time is measured against F on the same backend, in interleaved rounds, at
the point that the first seed chose. Features are cached under `--work` (up to 20 GB for 50,000
images twice).
"""

import argparse
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import has_bfloat16, parser, report, scaled, speedups
from selection_cifar10 import at_difference, interval
from train_backbone import NORMALIZE

import offramp
from offramp.data import Dataset, arrays, cifar10, jpeg_compressed, npz
from offramp.evaluation import evaluate
from offramp.evaluation.measured import MARGIN
from offramp.fitting.chains import chains_to_fit
from offramp.fitting.oracles import oracle
from offramp.models import ModelSpec, build, make_head
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Cascade, cut_points
from offramp.trace import Trace
from offramp.train import train_heads

Head = tuple[str, dict[str, Any]]
LINEAR: Head = ("gap_linear", {})
BROAD: Head = ("conv_head", {"filters": (64, 128), "pool": 2})  # for large maps
DEEP: Head = ("conv_head", {"filters": (64, 128)})
SMALL: Head = ("pool_mlp", {"hidden": 128})

LOSSES = (0.0, 0.01)
NAMES = {0.0: "", 0.01: "_1pt"}
MARGINS = (0.0, 0.5, 1.5)
JPEG_SPLITS = {"fit": 2000, "calibrate": 1000, "test": 1500}
OWN_SPLITS = {"fit": 3000, "calibrate": 2000}


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network, its exits, and the images that go with it."""

    model: str
    exits: Mapping[str, tuple[Head, ...]]
    end: str | None = None  # a last block whose head is the last layer, trained anew
    jpeg: bool = False
    seen: int = 50_000  # training images that heads may see


RESNET56 = {
    "layer1.5": (LINEAR, BROAD),
    "layer1.8": (LINEAR, BROAD),
    "layer2.2": (LINEAR, DEEP),
    "layer2.5": (LINEAR, DEEP),
    "layer2.8": (LINEAR, DEEP),
    "layer3.1": (LINEAR, DEEP),
    "layer3.3": (LINEAR, DEEP),
    "layer3.5": (LINEAR, DEEP),
}
RESNET20 = {
    "layer1.2": (LINEAR, SMALL, BROAD),
    "layer2.0": (LINEAR, SMALL, BROAD),
    "layer2.1": (LINEAR, SMALL, BROAD),
    "layer2.2": (LINEAR, SMALL, BROAD),
    "layer3.0": (LINEAR, SMALL, DEEP),
    "layer3.1": (LINEAR, SMALL, DEEP),
}
BACKBONES = {
    "resnet56_adapted": Backbone(model="resnet56", exits=RESNET56, end="layer3.8", jpeg=True),
    "resnet56_clean": Backbone(model="resnet56", exits=RESNET56),
    "resnet20": Backbone(model="resnet20", exits=RESNET20, seen=40_000),
}


def with_exits(backbone: Backbone, weights: Path) -> Cascade:
    """The trained network with untrained heads; the last stage is F."""
    net = build(ModelSpec(name=backbone.model, weights=str(weights))).eval()
    example = torch.zeros(2, 3, 32, 32)
    points = cut_points(net, example)
    shapes = {name: p.shape for p in points for name in (p.name, *p.aliases)}
    heads: dict[str, Any] = {
        at: {kind: make_head(kind, shapes[at], 10, **options) for kind, options in kinds}
        for at, kinds in backbone.exits.items()
    }
    if backbone.end is not None:
        heads[backbone.end] = make_head("gap_linear", shapes[backbone.end], 10)
    return Cascade.from_network(net, list(heads), head=heads, example=example, transform=NORMALIZE)


def jpeg_images(data: Path, count: int) -> Dataset:
    """The first `count` test images after lossy JPEG, at most the 4,500 there are."""
    images = npz(data / "test_jpeg_1000_5500.npz")
    return images.take(torch.arange(min(count, len(images))))


def training_parts(root: Path, backbone: Backbone, count: int) -> tuple[Dataset, Dataset]:
    """Each of the first images twice, the second time mirrored; and a part to judge heads on."""
    images = cifar10(root).take(torch.arange(count))
    pixels, labels = torch.as_tensor(images.inputs), images.labels
    kept = count * 19 // 20
    sets = [pixels[:kept], pixels[:kept].flip(3), pixels[kept:]]
    if backbone.jpeg:
        sets = [jpeg_compressed(part.contiguous(), seed=k) for k, part in enumerate(sets)]
    train = arrays(torch.cat(sets[:2]), labels[:kept].repeat(2), layout="nchw")
    return train, arrays(sets[2].contiguous(), labels[kept:], layout="nchw")


def learn(cascade: Cascade, backbone: Backbone, options: argparse.Namespace, work: Path) -> None:
    """Train the heads, or read them where that is done."""
    count = min(options.images, backbone.seen)
    train, judged = training_parts(options.train, backbone, count)
    train_heads(
        cascade,
        train,
        epochs=options.epochs,
        seed=0,
        validation=judged,
        batch_size=256,
        learning_rate=0.003,
        bfloat16=has_bfloat16(),
        cache=work / "cache",
        checkpoint=work / "heads.safetensors",
    )
    shutil.rmtree(work / "cache", ignore_errors=True)


def policies(
    trace: Trace, held_out: Trace | None, end: str, seeds: int
) -> tuple[dict[str, Any], Candidate]:
    """Figures of the learned and the threshold policy, and the learned candidate of the first seed.

    Args:
        trace: To fit and choose on, and where there is no other to judge on.
        held_out: To judge on.
        end: F.
        seeds: Divisions of the trace.
    """
    curves: dict[str, dict[float, list[tuple[float, float]]]] = {}
    first: Candidate | None = None
    oracles: list[float] = []
    reference = trace.topology.index(end)
    own = trace.costs.alone(trace.topology, reference)
    for seed in range(seeds):
        shares = scaled(JPEG_SPLITS if held_out is None else OWN_SPLITS, len(trace))
        divided = trace.split_into(shares, seed=seed)  # type: ignore[arg-type]
        test = divided.subset("test") if held_out is None else held_out
        for suffix, method in (("", "learned"), ("_myopic", "threshold")):
            chains = chains_to_fit(divided.subset("fit"), reference=end)
            used = [c for c in chains if max(c.active) <= reference]  # nothing after F
            frontier = offramp.fit(divided, method, reference=end, topologies=used, progress=False)
            for loss, margin in product(LOSSES, (MARGIN, *MARGINS)):
                candidate = frontier.cheapest(max_drop=loss, margin=margin, delta=None).candidate
                found = evaluate(test, candidate, bootstrap=0)
                curve = curves.setdefault(NAMES[loss] + suffix, {})
                curve.setdefault(margin, []).append((found.cost_ratio, -found.accuracy_drop))
                if (loss, margin, suffix) == (0.0, MARGIN, ""):
                    first = first or candidate
        strong = [k for k in range(reference) if trace.stages[k].endswith("conv_head")]
        route = trace.topology.chain([*strong, reference])
        neutral = oracle(test, "neutral", topology=route, reference=end)
        oracles.append(float(neutral.cost.mean()) / own)
    if first is None:
        raise ValueError(f"seeds must be at least 1, got {seeds}.")
    return figures(curves) | {"neutral_oracle": statistics.fmean(oracles)}, first


def figures(curves: dict[str, dict[float, list[tuple[float, float]]]]) -> dict[str, Any]:
    """Means and intervals at the default margin; the threshold policy at equal difference."""
    result: dict[str, Any] = {}
    for name, curve in curves.items():
        cost, difference = (list(v) for v in zip(*curve[MARGIN], strict=True))
        result[f"cost_ratio{name}"] = statistics.fmean(cost)
        result[f"cost_ratio{name}_ci"] = interval(cost)
        result[f"difference{name}"] = statistics.fmean(difference)
        result[f"difference{name}_ci"] = interval(difference)
    for name in NAMES.values():
        myopic = [
            [m, *np.mean(values, axis=0).tolist()] for m, values in curves[f"{name}_myopic"].items()
        ]
        result[f"cost_ratio{name}_myopic_at_equal_difference"] = at_difference(
            myopic, result[f"difference{name}"]
        )
    return result


def measured(name: str, weights: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one backbone."""
    backbone, work = BACKBONES[name], options.work / name
    work.mkdir(parents=True, exist_ok=True)
    cascade = with_exits(backbone, weights)
    learn(cascade, backbone, options, work)
    end = backbone.end or "last"
    own = name == "resnet20"
    if own:
        training = cifar10(options.train)
        images = training.take(torch.arange(40_000, 40_000 + options.judge))
        unseen = training.take(torch.arange(45_000, 45_000 + options.judge))
    else:
        images = unseen = jpeg_images(options.data, options.judge)
    trace = offramp.record(cascade, images)
    held_out = offramp.record(cascade, unseen) if own else None
    result, candidate = policies(trace, held_out, end, options.seeds)
    judged = held_out or trace
    accuracies = {stage: judged.accuracy(k) for k, stage in enumerate(judged.stages)}
    adaptive = offramp.Adaptive(cascade, candidate, fold=True)
    static = Adaptive.single(cascade, end, fold=True)
    tested = held_out or trace.split_into(scaled(JPEG_SPLITS, len(trace)), seed=0).subset("test")  # type: ignore[arg-type]
    pixels = torch.as_tensor(unseen.take(torch.from_numpy(np.isin(unseen.ids, tested.ids))).inputs)
    result |= speedups(adaptive, static, pixels, rounds=options.rounds)
    return result | {"accuracies": accuracies, "timed_setting": candidate.label}


def main() -> None:
    """Train heads, record, fit, choose, test; then time the chosen point."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of the CIFAR-10 data")
    options.add_argument(
        "--train", type=Path, required=True, help="folder of the official binary layout"
    )
    options.add_argument("--work", type=Path, default=Path("runs/early_exit"), help="checkpoints")
    options.add_argument("--backbones", nargs="+", choices=[*BACKBONES], default=[*BACKBONES])
    options.add_argument("--images", type=int, default=50_000, help="training images of heads")
    options.add_argument("--judge", type=int, default=5_000, help="to choose on, and to test on")
    options.add_argument("--epochs", type=int, default=8)
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--rounds", type=int, default=15)
    arguments = options.parse_args()
    pretrained = arguments.data / "resnet_weights" / "resnet56_state.npz"
    trained = Path(__file__).parent / "weights" / "resnet20_cifar10.safetensors"
    result: dict[str, Any] = {}
    for name in arguments.backbones:
        weights = trained if name == "resnet20" else pretrained
        result[name] = measured(name, weights, arguments)
    result |= {name: getattr(arguments, name) for name in ("images", "epochs", "seeds")}
    report(arguments, result)


if __name__ == "__main__":
    main()
