"""Class-specific early exits in a trained ResNet-20: all ten classes of CIFAR-10.

The network was trained by `train_backbone.py` on [0:40000] of the training images; branches and
heads are trained there too. Exits are chosen on [40000:42500], confirmed on [42500:45000], and
judged on [45000:50000]; a class without a viable exit counts with a gain of 1.

    paper    the paper's constraints, thresholds in `thresholds_paper`; `mean_gain_paper` is by its
             formula, which counts impostors, `mean_gain_true_paper` over the class alone
    strict   accuracy of the complete system and each class's recall within `tolerance`; the gain
             over the class alone: this is the one to believe

Candidates are the paper's binary branches, behind every convolution with and without the maps
before, and heads of all classes at the ends of blocks, of which an exit tests its class. Suffixes:
`_branches` with the binary branches only, `_narrow` with the paper's own thresholds [0.95, 1],
`_two_exits` with up to two exits in a row; `_flops` and `_seconds` say how time was told. Figures
without either are of the choice by FLOPs. `constraints_met_test` counts the classes whose strict
exit keeps all that it promised on the test images, `constraints_refuted_test` those for which a
95 % paired interval lies beyond the tolerance: with 500 images of a class half a point is two or
three of them. `all_classes_gain` is one exit for every class.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import has_bfloat16, parser, report
from train_backbone import NORMALIZE

from offramp.data import Dataset, arrays, cifar10
from offramp.fitting.class_exits import Branch, ClassExitPlan, Requirements
from offramp.models import ModelSpec, build, head_arguments
from offramp.stages import Cascade, cut_points
from offramp.train import train_heads
from offramp.train.class_exits import Recipe, Sweep, choose_class_exits, exit_row, sweep_branches

MLP = ("pool_mlp", {"grid": 4, "hidden": 128})
SMALL = ("conv_head", {"filters": (24, 48), "pool": 2})
CONV = ("conv_head", {"filters": (32, 64), "pool": 2})
HEADS = {
    "layer1.0": {"mlp": MLP},
    "layer1.1": {"mlp": MLP},
    "layer1.2": {"mlp": MLP, "conv": SMALL},
    "layer2.0": {"mlp": MLP, "conv": CONV},
    "layer2.1": {"mlp": MLP, "conv": CONV},
    "layer2.2": {"mlp": MLP},
    "layer3.0": {"mlp": MLP},
    "layer3.1": {"mlp": MLP},
}
PAPER_RANGE, WIDE = (0.95, 1.0), (0.5, 1.0)


def ranges(images: int, judge: int) -> Any:
    """Which of the training images are for what."""
    return {
        "train": (0, images),
        "fit": (40_000, 40_000 + judge // 2),
        "calibrate": (40_000 + judge // 2, 40_000 + judge),
        "test": (45_000, 45_000 + judge),
    }


def with_heads(net: torch.nn.Module, spec: ModelSpec) -> Cascade:
    """The network with untrained heads of all classes."""
    example = torch.zeros(2, 3, 32, 32)
    shapes = {n: p.shape for p in cut_points(net, example) for n in (p.name, *p.aliases)}
    heads = {
        at: {
            label: ModelSpec(name=kind, arguments=head_arguments(kind, shapes[at], 10, **options))
            for label, (kind, options) in several.items()
        }
        for at, several in HEADS.items()
    }
    return Cascade.from_network(
        net, list(heads), head=heads, example=example, transform=NORMALIZE, spec=spec
    )


def learn(cascade: Cascade, images: Dataset, work: Path, epochs: int) -> None:
    """Train the heads on each image and its mirror image; judge them on the last twentieth."""
    pixels, labels = torch.as_tensor(images.inputs), images.labels
    kept = len(labels) * 19 // 20
    train = arrays(
        torch.cat([pixels[:kept], pixels[:kept].flip(3)]), labels[:kept].repeat(2), layout="nchw"
    )
    work.mkdir(parents=True, exist_ok=True)
    train_heads(
        cascade,
        train,
        epochs=epochs,
        seed=0,
        validation=arrays(pixels[kept:].contiguous(), labels[kept:], layout="nchw"),
        learning_rate=0.003,
        bfloat16=has_bfloat16(),
        cache=work / "cache",
        checkpoint=work / "heads.safetensors",
    )


def of_branches(sweep: Sweep, branches: Sequence[Branch]) -> list[Branch]:
    """The same columns, so that none but the paper's binary branches is of any class."""
    return [
        branch if sweep.label(k) == "branch" else _of_nobody(branch)
        for k, branch in enumerate(branches)
    ]


def _of_nobody(branch: Branch) -> Branch:
    return Branch(
        point=branch.point, keep_previous=branch.keep_previous, target=-1, timing=branch.timing
    )


def rows_of(
    sweep: Sweep, branches: Sequence[Branch], asked: Requirements, *, exits: int = 1
) -> list[dict[str, Any]]:
    """For each class what its exits do on the test images."""
    return [_row(sweep, branches, asked, k, exits) for k in range(len(sweep.class_names))]


def _row(
    sweep: Sweep, branches: Sequence[Branch], asked: Requirements, k: int, exits: int
) -> dict[str, Any]:
    name = sweep.class_names[k]
    design = choose_class_exits(sweep, k, requirements=asked, branches=branches, exits=exits)
    if not isinstance(design, ClassExitPlan):
        return {"class": name, "viable": False, "reason": design.reason}
    row = exit_row(sweep.data("test"), design.exits)
    low, worst = row.accuracy_change_interval[0], row.worst_recall_interval[0]
    return {
        "class": name,
        "viable": True,
        "exits": [
            {
                "point": leaf.branch.point,
                "what": sweep.label(leaf.column),
                "keep_previous": leaf.branch.keep_previous,
                "alpha": leaf.threshold,
            }
            for leaf in design.exits
        ],
        "refuted_on_calibrate": design.refuted,
        "gain_true": row.gains[name],
        "gain_true_ci": row.gain_intervals[name],
        "gain_paper": finite(row.paper.gain),
        "precision": finite(row.paper.precision),
        "others_loss": row.loss,
        "others_loss_ci": row.loss_interval,
        "others_loss_formula": row.paper.loss,
        "accuracy": row.system.accuracy,
        "difference": row.accuracy_change,
        "difference_ci": row.accuracy_change_interval,
        "worst_recall": row.worst_recall,
        "worst_class": row.worst_class,
        "worst_recall_ci": row.worst_recall_interval,
        "met": row.system.keeps_accuracy(asked.tolerance),
        "refuted": row.accuracy_change_interval[1] < -asked.tolerance or worst > asked.tolerance,
        "shown_to_be_met": low >= -asked.tolerance
        and row.worst_recall_interval[1] <= asked.tolerance,
    }


def finite(value: float) -> float | None:
    """The value, or None where the paper's formula has broken down."""
    return value if math.isfinite(value) else None


def summary(rows: Sequence[dict[str, Any]], baseline: float) -> dict[str, Any]:
    """Means over the classes; one without an exit is as it was."""
    viable = [row for row in rows if row["viable"]]
    paper = [row.get("gain_paper", 1.0) for row in rows]

    def mean(key: str, without: float) -> float:
        return statistics.fmean(row.get(key, without) for row in rows)

    return {
        "gain_paper": statistics.fmean(g for g in paper if g is not None),
        "gain_paper_infinite": paper.count(None),
        "gain_true": mean("gain_true", 1.0),
        "others_loss": mean("others_loss", 1.0),
        "accuracy": mean("accuracy", baseline),
        "worst_recall": mean("worst_recall", 0.0),
        "viable": len(viable),
        "met": sum(row["met"] for row in viable),
        "refuted": sum(row["refuted"] for row in viable),
        "rows": rows,
    }


def figures(sweep: Sweep, unit: str, options: Any) -> dict[str, Any]:
    """All figures in one unit of time."""
    branches = sweep.branches(unit, batch_size=options.batch_size, rounds=options.rounds)
    own = of_branches(sweep, branches)
    baseline = float(sweep.data("test").right.mean())
    strict = Requirements(tolerance=options.tolerance, thresholds=WIDE)
    paper, narrow = (Requirements(constraints="paper", thresholds=r) for r in (WIDE, PAPER_RANGE))
    found = {
        "paper": summary(rows_of(sweep, branches, paper), baseline),
        "paper_branches": summary(rows_of(sweep, own, paper), baseline),
        "paper_narrow": summary(rows_of(sweep, branches, narrow), baseline),
        "paper_narrow_branches": summary(rows_of(sweep, own, narrow), baseline),
        "strict": summary(rows_of(sweep, branches, strict), baseline),
        "strict_branches": summary(rows_of(sweep, own, strict), baseline),
        "strict_two_exits": summary(rows_of(sweep, branches, strict, exits=2), baseline),
    }
    result: dict[str, Any] = {}
    for name, part in found.items():
        kind, _, rest = name.partition("_")
        end = f"{'_' if rest else ''}{rest}_{unit}"
        if kind == "paper":
            result[f"mean_gain_paper{end}"] = part["gain_paper"]
            result[f"mean_gain_true_paper{end}"] = part["gain_true"]
            result[f"gain_paper_infinite{end}"] = part["gain_paper_infinite"]
        else:
            result[f"mean_gain_strict{end}"] = part["gain_true"]
            result[f"constraints_met_test{end}"] = part["met"]
            result[f"constraints_refuted_test{end}"] = part["refuted"]
        for key in ("others_loss", "accuracy", "viable", "worst_recall"):
            result[f"{key}_{kind}{end}"] = part[key]
    everyone = choose_class_exits(sweep, None, requirements=strict, branches=branches)
    if isinstance(everyone, ClassExitPlan):
        judged = everyone.system(sweep.data("test"))
        result[f"all_classes_gain_{unit}"] = judged.gain_all
        result[f"all_classes_accuracy_{unit}"] = judged.accuracy
    result[f"classes_{unit}"] = {name: part["rows"] for name, part in found.items()}
    return result


def main() -> None:
    """Train branches and heads, choose exits, judge them."""
    options = parser(__doc__ or "")
    options.add_argument(
        "--train", type=Path, required=True, help="folder of the official binary layout"
    )
    options.add_argument("--weights", type=Path, required=True, help="of train_backbone.py")
    options.add_argument(
        "--work", type=Path, default=Path("runs/class_exits"), help="features, checkpoints"
    )
    options.add_argument("--tolerance", type=float, default=0.005)
    options.add_argument("--epochs", type=int, default=10, help="of the heads")
    options.add_argument("--branch-epochs", type=int, default=Recipe().epochs)
    options.add_argument("--points", type=int, help="of the branches; by default all")
    options.add_argument("--images", type=int, default=40_000, help="to train on")
    options.add_argument("--judge", type=int, default=5_000, help="to choose on, and to test on")
    options.add_argument("--batch-size", type=int, default=128, help="of the times in seconds")
    options.add_argument("--rounds", type=int, default=15)
    arguments = options.parse_args()
    spec = ModelSpec(name="resnet20", weights=str(arguments.weights))
    net = build(spec).eval()
    images = cifar10(arguments.train).with_ranges(ranges(arguments.images, arguments.judge))
    cascade = with_heads(net, spec)
    learn(cascade, images.subset("train"), arguments.work / "heads", arguments.epochs)
    sweep = sweep_branches(
        net,
        images,
        arguments.work / "sweep",
        sampled=arguments.points,
        recipe=Recipe(epochs=arguments.branch_epochs),
        transform=NORMALIZE,
        spec=spec,
    )
    sweep = sweep.with_heads(cascade, images)
    result = figures(sweep, "flops", arguments) | figures(sweep, "seconds", arguments)
    plain = [k.removesuffix("_flops") for k in result if k.endswith("_flops")]
    bare = ("accuracy_", "viable_", "constraints_")
    result |= {k: result[f"{k}_flops"] for k in plain if k.startswith(bare)}
    report(
        arguments,
        {
            "accuracy_baseline": float(sweep.data("test").right.mean()),
            "believe": "mean_gain_strict_flops: what the class alone gains while accuracy holds",
            "thresholds_paper": list(WIDE),
            "thresholds_strict": list(WIDE),
            "tolerance": arguments.tolerance,
            "batch_size": arguments.batch_size,
            "branches": len(sweep.specs),
            "heads": sum(len(several) for several in HEADS.values()),
            **result,
        },
    )


if __name__ == "__main__":
    main()
