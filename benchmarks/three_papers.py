"""Learned selection, early exits, exits of classes and joint cascades in one frontier: CIFAR-10.

One family of backbones, one split, one unit: pre-activation ResNets from scratch on the first
`--images` training images; policies fitted on the first half of [40000:45000], chosen on the
second, judged on [45000:50000]; FLOPs over those of the largest static network, deciding included.

    static     each network on its own
    selection  the learned policy over the static networks (Bolukbasi et al., network selection)
    exits      the learned policy over heads inside the largest static network (early exit)
    classes    one exit for each class inside the same network, all in one cascade, strict, over
               tolerances; candidates are binary branches and the same heads (Bonato, Bouganis)
    joint      the same networks trained together with stopping networks (Guan et al.)

`curve_*` are (cost ratio, error) on test of what was on the front where it was chosen;
`flops_ratio_*`, `error_*` are of the cheapest that was, there, at least as accurate as the largest
static network, else the most accurate. `oracle_*` know the labels. The static networks had
`--epochs` passes, and so had each network of a joint cascade; heads and branches have passes of
their own on top of that, the network frozen. With the options and the `--work` of
`joint_cifar10.py` its networks are taken over. Interrupted, the same command goes on.

    python benchmarks/three_papers.py --data DIR --work runs/joint --plot three.png
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from curves import Point, cheapest, curve
from harness import has_bfloat16, parser, report
from joint_cifar10 import (
    SETTINGS,
    Parts,
    halves,
    joint,
    learned_points,
    static,
    stopping_points,
    traces,
    training_options,
)
from train_backbone import NORMALIZE

import offramp
from offramp._core.memory import keep_freed_memory
from offramp.data import Dataset, cifar10
from offramp.drawing import Curve, frontier_figure, save_figure
from offramp.drawing import Point as Mark
from offramp.evaluation import references
from offramp.fitting.class_exits import NoViableExit, Requirements, system_figures
from offramp.models import ModelSpec, head_arguments
from offramp.stages import Cascade, cut_points
from offramp.trace import Trace
from offramp.train import train_heads
from offramp.train.class_exits import Recipe, Sweep, choose_class_exits_together, sweep_branches

EXITS = ("layer1.1", "layer1.2", "layer2.0", "layer2.1", "layer2.2", "layer3.0", "layer3.1")
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("gap_linear", {}),
    "mlp": ("pool_mlp", {"hidden": 128}),
    "conv": ("conv_head", {"filters": (32, 64), "pool": 2}),
}
BELOW = 0.03  # exits cheaper than the cheapest network err far more often; the JSON has them
TOLERANCES = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)
CONTENDERS = {
    "selection": "learned",
    "exits": "early_exit",
    "classes": "classes",
    "joint": "joint",
}
NAMES = {
    "selection": "learned selection",
    "exits": "early exits in the largest",
    "classes": "exits of classes",
    "joint": "trained jointly",
}


def with_exits(net: torch.nn.Module, spec: ModelSpec) -> Cascade:
    """The network with untrained heads; each is a rival of the others at its point."""
    example = torch.zeros(2, 3, 32, 32)
    shapes = {n: p.shape for p in cut_points(net, example) for n in (p.name, *p.aliases)}
    at = [name for name in EXITS if name in shapes]
    heads = {
        name: {
            label: ModelSpec(name=kind, arguments=head_arguments(kind, shapes[name], 10, **more))
            for label, (kind, more) in HEADS.items()
        }
        for name in at
    }
    return Cascade.from_network(
        net, at, head=heads, example=example, transform=NORMALIZE, spec=spec
    )


def learn_heads(cascade: Cascade, part: Dataset, work: Path, arguments: argparse.Namespace) -> None:
    """Train the heads on the images that the network was trained on."""
    train_heads(
        cascade,
        part,
        epochs=arguments.head_epochs,
        seed=0,
        validation=0.05,
        learning_rate=0.003,
        bfloat16=has_bfloat16() and not arguments.float32,
        cache=work / "cache",
        checkpoint=work / "heads.safetensors",
    )
    shutil.rmtree(work / "cache", ignore_errors=True)


def recorded(cascade: Cascade, parts: Parts) -> tuple[Trace, Trace]:
    """Outputs on the images to choose on and on those to judge on, in FLOPs."""
    first, second = (
        offramp.record(cascade, part, progress=False) for part in (parts.fit, parts.test)
    )
    return first, second


def class_points(sweep: Sweep, tolerances: Sequence[float]) -> list[Point]:
    """Exits for all classes in one cascade, for each tolerance, and the network without any."""
    branches = sweep.branches("flops")
    splits = {name: sweep.data(name) for name in ("fit", "calibrate", "test")}
    targets = [
        k
        for k in range(len(sweep.class_names))
        if all((d.right & (d.labels == k)).any() for d in splits.values())
    ]
    wrong = {name: 1 - float(d.right.mean()) for name, d in splits.items()}
    found = [Point("no exits", 1.0, wrong["calibrate"], 1.0, wrong["test"])]
    for tolerance in tolerances:
        design = choose_class_exits_together(
            sweep,
            targets,
            requirements=Requirements(tolerance=tolerance, thresholds=(0.5, 1.0)),
            branches=branches,
        )
        if isinstance(design, NoViableExit) or design.calibrate is None:
            continue
        test = system_figures(splits["test"], design.exits)
        found.append(
            Point(
                f"classes, tolerance {tolerance:g}",
                1 / design.calibrate.gain_all,
                1 - design.calibrate.accuracy,
                1 / test.gain_all,
                1 - test.accuracy,
            )
        )
    return found


def oracles(part: Trace, reference: str, scale: float) -> dict[str, list[float]]:
    """(cost ratio, error) of the oracles on the chain to the reference."""
    return {
        one.name.removesuffix(" oracle"): [one.cost_ratio * scale, 1 - one.accuracy]
        for one in references(part, reference)
        if one.kind == "oracle"
    }


def joint_points(parts: Parts, arguments: argparse.Namespace, largest: float) -> list[Point]:
    """Every alpha, as trained and with stopping networks fitted anew."""
    found: list[Point] = []
    for trained, cascade in joint(parts, arguments):
        seen, judged = traces(cascade, parts)
        as_trained, refitted = stopping_points(trained, *halves(seen), judged, largest)
        found += [*as_trained, *refitted]
    return found


def class_exits(
    exits: Cascade, net: torch.nn.Module, spec: ModelSpec, images: Dataset, options: Any
) -> Sweep:
    """Branches of every class, and the heads beside them."""
    begin, held = options.images, options.judge
    ranges = {
        "train": (0, begin),
        "fit": (40_000, 40_000 + held // 2),
        "calibrate": (40_000 + held // 2, 40_000 + held),
        "test": (45_000, 45_000 + held),
    }
    divided = images.with_ranges(ranges)
    sweep = sweep_branches(
        net,
        divided,
        options.work / "three" / "branches",
        sampled=options.points,
        recipe=Recipe(epochs=options.branch_epochs, class_weights="plain", seed=0),
        transform=NORMALIZE,
        spec=spec,
    )
    return sweep.with_heads(exits, divided)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train what is not there yet, choose, judge."""
    images, held = cifar10(arguments.train), arguments.judge
    parts = Parts(
        images.take(torch.arange(arguments.images)),
        images.take(torch.arange(40_000, 40_000 + held)),
        images.take(torch.arange(45_000, 45_000 + held)),
    )
    reference, own = arguments.models[-1], arguments.work / "three"
    own.mkdir(parents=True, exist_ok=True)
    _, apart = static(parts, arguments)
    chosen, test = traces(apart, parts)
    largest = float(chosen.stage_costs()[-1])
    net = apart.stage(reference).module.eval()
    spec = ModelSpec(name=reference, arguments={"seed": arguments.seed})
    exits = with_exits(net, spec)
    learn_heads(exits, parts.train, own, arguments)
    seen, judged = recorded(exits, parts)
    sweep = class_exits(exits, net, spec, images, arguments)
    found = {
        "selection": learned_points(chosen, test, reference, largest),
        "exits": learned_points(seen, judged, "last", largest),
        "classes": class_points(sweep, TOLERANCES),
        "joint": joint_points(parts, arguments, largest),
    }
    scale = float(judged.stage_costs()[-1]) / largest
    last = len(arguments.models) - 1
    return {
        "error_static": [1 - test.accuracy(k) for k in range(last + 1)],
        "flops_static": [float(v) / largest for v in test.stage_costs()],
        **_figures(found, 1 - halves(chosen)[1].accuracy(last)),
        "oracle_selection": oracles(test, reference, 1.0),
        "oracle_exits": oracles(judged, "last", scale),
    }


def _figures(found: dict[str, list[Point]], limit: float) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, those in found.items():
        best = cheapest(those, limit)
        result |= {
            f"flops_ratio_{name}": best.cost,
            f"error_{name}": best.error,
            f"setting_{name}": best.label,
            f"curve_{name}": curve(those),
        }
    return result


def plot(result: dict[str, Any], path: Path) -> None:
    """The one figure, down to `BELOW` under the accuracy of the cheapest network."""
    curves, worst = [], max(result["error_static"]) + BELOW
    for name, kind in CONTENDERS.items():
        shown = [point for point in result[f"curve_{name}"] if point[1] <= worst]
        costs, errors = np.array(shown, dtype=np.float64).T
        title = NAMES[name]
        curves.append(Curve(name=title, kind=kind, cost_ratio=costs, accuracy=1 - errors))  # type: ignore[arg-type]
    marks = [
        Mark(name=name, kind="static", cost_ratio=cost, accuracy=1 - error)
        for name, cost, error in zip(
            result["models"], result["flops_static"], result["error_static"], strict=True
        )
    ]
    for where in ("selection", "exits"):
        for name, (cost, error) in result[f"oracle_{where}"].items():
            title = f"{name}, {where}"
            marks.append(Mark(name=title, kind="oracle", cost_ratio=cost, accuracy=1 - error))
    largest = 1 - result["error_static"][-1]
    label = f"mean FLOPs per image, {result['models'][-1]} = 1"
    figure = frontier_figure(curves, marks, reference_accuracy=largest, cost_label=label)
    save_figure(figure, path, overwrite=True)


def main() -> None:
    """Read the options, measure, draw, report."""
    options = parser(__doc__ or "")
    training_options(options)
    options.add_argument("--head-epochs", type=int, default=8, help="of the heads")
    options.add_argument("--branch-epochs", type=int, default=40, help="of the binary branches")
    options.add_argument("--points", type=int, help="of the branches; by default all")
    options.add_argument("--plot", type=Path, help="write the figure to this .png or .svg")
    arguments = options.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    names = (*SETTINGS, "head_epochs", "branch_epochs", "points")
    result = measure(arguments) | {name: getattr(arguments, name) for name in names}
    if arguments.plot is not None:
        plot(result, arguments.plot)
    report(arguments, result)


if __name__ == "__main__":
    main()
