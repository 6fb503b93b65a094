"""Early exits in the pretrained CIFAR-10 ResNet-56, on test images after lossy JPEG.

The network (weights that we did not train) is cut behind some of its blocks, and heads are trained
there on JPEG-compressed training images, the backbone frozen. F is the uncut network with its last
layer refitted on the same images: comparing adapted heads with the unadapted network would flatter.
The policies see the JPEG test images alone, which nothing was trained on: for each seed 2,000 to
fit, 1,000 to calibrate, 1,500 to test; learned and myopic policy with equal freedom.

`cost_ratio` is FLOPs over F's, heads included; `difference` is accuracy minus F's on the same
images. Time is measured against F on the same backend, in interleaved rounds, at the learned point
of the first seed.
"""

import io
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import parser, report, speedups
from PIL import Image
from selection_cifar10 import SPLITS, at_difference, interval

import offramp
from offramp.data import Examples, arrays, cifar10, npz
from offramp.evaluate import evaluate
from offramp.evaluate.frontier import MARGIN
from offramp.models import ModelSpec, build, make_head
from offramp.policy import Setting
from offramp.policy.oracles import oracle
from offramp.runtime import Static
from offramp.stages import Cascade, Normalize, cut_points
from offramp.trace import Trace
from offramp.train import train_heads

EXITS = ("layer1.4", "layer1.8", "layer2.2", "layer2.5", "layer2.8", "layer3.2", "layer3.5")
END = "layer3.8"  # the last block: its head is the last layer, refitted
QUALITIES = (50, 90)
LOSSES = (0.0, 0.01)
NAMES = {0.0: "", 0.01: "_1pt"}
MARGINS = (0.0, 1.0)


def compressed(images: np.ndarray, seed: int) -> np.ndarray:
    """Images `(n, 3, 32, 32)` after JPEG with 4:2:0 and a random quality."""
    rng = np.random.default_rng(seed)
    made = np.empty_like(images)
    for i, image in enumerate(images):
        held = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(
            held, "JPEG", quality=int(rng.integers(*QUALITIES)), subsampling=2
        )
        made[i] = np.asarray(Image.open(held)).transpose(2, 0, 1)
    return made


def training_images(root: Path, count: int) -> Examples:
    """The first training images, compressed."""
    images = cifar10(root).rows(torch.arange(count))
    pixels = compressed(np.asarray(images.inputs), seed=0)
    return arrays(torch.from_numpy(pixels), images.labels, layout="nchw")


def with_exits(data: Path) -> Cascade:
    """The pretrained network with untrained heads."""
    weights = data / "resnet_weights" / "resnet56_state.npz"
    net = build(ModelSpec(name="resnet56", weights=str(weights))).eval()
    example = torch.zeros(2, 3, 32, 32)
    points = cut_points(net, example)
    shapes = {name: p.shape for p in points for name in (p.name, *p.aliases)}
    heads = {at: make_head("conv_head", shapes[at], 10) for at in EXITS}
    heads[END] = make_head("gap_linear", shapes[END], 10)
    normalise = Normalize(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return Cascade.of_exits(net, [*EXITS, END], heads=heads, example=example, preprocess=normalise)


def chains(trace: Trace) -> list[offramp.Topology]:
    """One or two exits before F, and all of them."""
    end = trace.topology.index(END)
    pairs = [[j, k, end] for j in range(end) for k in range(j + 1, end)]
    every = [[j, end] for j in range(end)] + pairs + [list(range(end + 1))]
    return [trace.topology.chain(stages) for stages in every]


def policies(trace: Trace, seeds: int) -> tuple[dict[str, Any], Setting]:
    """Figures of the learned and the myopic policy, and the learned setting of the first seed."""
    curves: dict[str, dict[float, list[tuple[float, float]]]] = {}
    first: Setting | None = None
    oracles: list[float] = []
    own = trace.costs.alone(trace.topology, trace.topology.index(END))
    for seed in range(seeds):
        divided = trace.divided(SPLITS, seed=seed)  # type: ignore[arg-type]
        test = divided.part("test")
        for suffix, method in (("", "weighted"), ("_myopic", "myopic")):
            frontier = offramp.fit(
                divided, method, reference=END, topologies=chains(trace), progress=False
            )
            for loss, margin in product(LOSSES, (MARGIN, *MARGINS)):
                setting = frontier.cheapest(max_loss=loss, margin=margin).setting
                found = evaluate(test, setting, bootstrap=0)
                curve = curves.setdefault(NAMES[loss] + suffix, {})
                curve.setdefault(margin, []).append((found.cost_ratio, -found.difference))
                if (loss, margin, suffix) == (0.0, MARGIN, ""):
                    first = first or setting
        neutral = oracle(test, "neutral", topology=chains(trace)[-1], reference=END)
        oracles.append(float(neutral.cost.mean()) / own)
    if first is None:
        raise ValueError(f"seeds must be at least 1, got {seeds}.")
    return figures(curves) | {"neutral_oracle": statistics.fmean(oracles)}, first


def figures(curves: dict[str, dict[float, list[tuple[float, float]]]]) -> dict[str, Any]:
    """Means and intervals at the default margin, and the myopic cost at equal difference."""
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


def speed(cascade: Cascade, setting: Setting, images: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Wall-clock of F over the adaptive model's."""
    adaptive = offramp.Adaptive(cascade, setting, optimise=True)
    return speedups(adaptive, Static(cascade, END, optimise=True), images, rounds=rounds)


def main() -> None:
    """Train heads, record, fit, choose, test; then time the chosen point."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of the CIFAR-10 data")
    options.add_argument(
        "--train", type=Path, required=True, help="folder of the official binary layout"
    )
    options.add_argument("--work", type=Path, default=Path("runs/early_exit"), help="checkpoints")
    options.add_argument("--images", type=int, default=50_000, help="training images")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--rounds", type=int, default=15)
    arguments = options.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    cascade = with_exits(arguments.data)
    train_heads(
        cascade,
        training_images(arguments.train, arguments.images),
        epochs=arguments.epochs,
        seed=0,
        learning_rate=0.003,
        checkpoint=arguments.work / "heads.safetensors",
    )
    images = npz(arguments.data / "test_jpeg_1000_5500.npz")
    trace = offramp.record(cascade, images)
    accuracies = {name: trace.accuracy(k) for k, name in enumerate(trace.stages)}
    result, setting = policies(trace, arguments.seeds)
    result |= {"accuracies": accuracies, "timed_setting": setting.label}
    result |= {name: getattr(arguments, name) for name in ("images", "epochs", "seeds")}
    report(arguments, result | speed(cascade, setting, images.inputs[3000:], arguments.rounds))


if __name__ == "__main__":
    main()
