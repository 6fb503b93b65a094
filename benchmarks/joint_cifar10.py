"""Classifiers and stopping networks trained together on CIFAR-10, against training them apart.

Pre-activation ResNets from scratch on the first 40,000 training images; policies fitted on the
first half of [40000:45000], chosen on the second, judged on [45000:50000]. Every contender has had
the same number of passes over the training images, `--epochs`. The first `--warm-up` of them are
one training that all go on from: every classifier taught on every image, at one learning rate, on
parts of 24 by 24 pixels. In the rest, on whole images under a falling learning rate, the static
networks go on like that, and the joint cascade, once for each alpha, is trained together with its
stopping networks: `error`, `flops_ratio`. `frozen` (stopping networks alone) and `weighted` (the
learned policy by weighted binary classification) decide over the static networks; `joint_weighted`
is that policy over the joint ones. `distilled` is it over the static networks, the smaller ones
taught in those last passes by the probabilities of the largest. Stopping networks are used as they
were trained beside their classifiers (`_as_trained`) and fitted anew.

`flops_ratio` is mean FLOPs, stopping networks included, over those of the largest static network;
`error` is top-1. Each is the cheapest point that was, on [42500:45000], at least as accurate as the
largest static network there. `curve_*` are (cost ratio, error) on [45000:50000] of the points that
were on the front on [42500:45000]; two curves are compared at equal cost, over the costs that both
reach, with the standard error of the difference over images drawn again (bootstrap, both networks
on the same images). Interrupted, the same command goes on. `weights/joint` holds the warm-up and
the static networks of the default options, trained in float32 (`--float32`); copied to `--work`
they save 75 minutes of one core with AVX2.

    python benchmarks/joint_cifar10.py --data DIR --out benchmarks/results/joint_cifar10.json
"""

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from curves import Point, at_equal_cost, cheapest, curve, points
from harness import has_bfloat16, parser, report
from train_backbone import NORMALIZE, RECIPE

import offramp
from offramp._core.memory import keep_freed_memory
from offramp.data import CropAndFlip, Dataset, cifar10
from offramp.fitting.oracles import oracle
from offramp.fitting.registry import POLICIES
from offramp.fitting.stopping.network import make_networks, stop_odds, stopping_costs, with_stopping
from offramp.fitting.stopping.objective import Objective, drawn_label, drawn_stop
from offramp.models import ModelSpec, build
from offramp.stages import Cascade, measure_flops
from offramp.trace import Trace
from offramp.train import JointTraining, train_classifier, train_joint

ALPHAS = (0.1,)
WARM_ALPHA = 0.1  # of the stopping networks that learn beside the warm-up, for all contenders
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
SETTINGS = ("models", "epochs", "warm_up", "images", "judge", "alphas", "estimator", "answers")
SETTINGS += ("supervision", "detached", "seed")


@dataclass(frozen=True)
class Parts:
    """The images: to train on, to fit and choose on, to judge on."""

    train: Dataset
    fit: Dataset
    test: Dataset


def networks(names: Sequence[str], seed: int) -> Cascade:
    """The cascade from scratch; channels last is the faster layout on a CPU."""
    nets = {
        n: build(ModelSpec(name=n, arguments={"seed": seed})).to(memory_format=torch.channels_last)
        for n in names
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Cascade.from_models(nets, edges="full", transform=NORMALIZE)


def traces(
    cascade: Cascade, parts: Parts, device: torch.device | str = "cpu"
) -> tuple[Trace, Trace]:
    """Outputs on the images to choose on and on those to judge on."""
    example = parts.fit.batch(0, 1).inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        costs = with_stopping(measure_flops(cascade, example), parts.fit.classes)
    first, second = (
        offramp.record(cascade, part, costs=costs, device=device, progress=False)
        for part in (parts.fit, parts.test)
    )
    return first, second


def go_on(
    cascade: Cascade,
    parts: Parts,
    arguments: argparse.Namespace,
    name: str,
    weight: float = 1.0,
    **plan: Any,
) -> JointTraining:
    """Train a cascade in place with what all contenders have in common.

    Each network is taught on every image by `weight` times a mean over the networks; the rates are
    those that it would have alone.
    """
    rate = len(cascade) / weight
    return train_joint(
        cascade,
        parts.train,
        seed=arguments.seed,
        validation=parts.fit.take(torch.arange(min(1000, len(parts.fit)))),
        batch_size=128,
        learning_rate=0.1 * rate,
        weight_decay=5e-4 / rate,
        bfloat16=has_bfloat16() and not arguments.float32,
        checkpoint=arguments.work / f"{name}.safetensors",
        **plan,
    )


def warmed(parts: Parts, arguments: argparse.Namespace) -> JointTraining | None:
    """The passes that all contenders share."""
    if not arguments.warm_up:
        return None
    return go_on(
        networks(arguments.models, arguments.seed),
        parts,
        arguments,
        "warm_up",
        cost_weight=WARM_ALPHA,
        epochs=arguments.warm_up,
        warm_up=arguments.warm_up,
        schedule="constant",
        augment=CropAndFlip(padding=4, size=24),
    )


def finished(
    parts: Parts, arguments: argparse.Namespace, name: str, **plan: Any
) -> tuple[JointTraining, Cascade]:
    """The last passes, from the warm-up on."""
    cascade = networks(arguments.models, arguments.seed)
    trained = go_on(
        cascade,
        parts,
        arguments,
        name,
        start=warmed(parts, arguments),
        epochs=arguments.epochs - arguments.warm_up,
        schedule="cosine",
        augment=CropAndFlip(padding=4),
        **plan,
    )
    return trained, cascade


def static(parts: Parts, arguments: argparse.Namespace) -> tuple[JointTraining, Cascade]:
    """Each network taught on every image, stopping networks beside them without any influence."""
    passes = arguments.epochs - arguments.warm_up
    return finished(parts, arguments, "static", cost_weight=WARM_ALPHA, warm_up=passes)


def joint(parts: Parts, arguments: argparse.Namespace) -> list[tuple[JointTraining, Cascade]]:
    """The same networks trained together, for each alpha."""
    return [
        finished(
            parts,
            arguments,
            f"joint_{alpha:g}",
            weight=arguments.supervision + (arguments.answers == "combined"),
            detached=arguments.detached,
            cost_weight=alpha,
            estimator=arguments.estimator,
            answers=arguments.answers,
            supervision=arguments.supervision,
        )
        for alpha in arguments.alphas
    ]


def distilled(parts: Parts, arguments: argparse.Namespace, apart: Cascade) -> Cascade:
    """The static networks, the smaller ones taught by the largest from the warm-up on."""
    cascade = networks(arguments.models, arguments.seed)
    start = warmed(parts, arguments)
    if start is not None:
        start.load_into(cascade)
    *smaller, largest = cascade
    largest.load_state_dict(apart.stage(len(smaller)).state_dict())
    for stage in smaller:
        train_classifier(
            stage.module,
            parts.train,
            epochs=arguments.epochs - arguments.warm_up,
            seed=arguments.seed,
            **RECIPE,
            learning_rate=0.1,
            distill_from=largest.module,
            bfloat16=has_bfloat16() and not arguments.float32,
            checkpoint=arguments.work / f"distilled_{stage.name}.safetensors",
            description=f"Teaching {stage.name}",
        )
    return cascade


def halves(part: Trace) -> tuple[Trace, Trace]:
    """The images to fit on and those to choose on: policies look better where they were fitted."""
    half = len(part) // 2
    return part.take(torch.arange(half)), part.take(torch.arange(half, len(part)))


def learned_points(both: Trace, test: Trace, reference: str, largest: float) -> list[Point]:
    """The learned policy, fitted on one half of the images to choose on and chosen on the other."""
    fitting, chosen = halves(both)
    return points(POLICIES["learned"](fitting, reference=reference), chosen, test, largest)


def stopping_points(
    trained: JointTraining, fitting: Trace, chosen: Trace, test: Trace, largest: float
) -> tuple[list[Point], list[Point]]:
    """Stopping networks as they were trained, and fitted anew on the images to choose on."""
    reference = test.stages[-1]
    candidates = [
        trained.candidate(threshold=threshold, combine=combine, reference=reference)
        for threshold in THRESHOLDS
        for combine in ("stopping", "last")
    ]
    again = POLICIES["stopping"](fitting, reference=reference)
    return points(candidates, chosen, test, largest), points(again, chosen, test, largest)


def variance_ratio(trained: JointTraining, cascade: Cascade, part: Dataset, draws: int) -> float:
    """Total variance of REINFORCE's gradient over that of the exact one, over random batches."""
    nets = make_networks(len(trained.rules), part.classes, 64, seed=0)
    for network, rule in zip(nets, trained.rules, strict=True):
        network.load_rule(rule)  # type: ignore[operator]
    costs = trained.cost_weight * stopping_costs(trained.costs, trained.topology)
    objective = Objective(stage_cost=costs, answers="drawn")
    weights = [*cascade.parameters(), *nets.parameters()]
    generator = torch.Generator().manual_seed(0)
    seen: dict[str, list[torch.Tensor]] = {"exact": [], "reinforce": []}
    for _ in range(draws):
        rows = torch.randint(len(part), (64,), generator=generator)
        logits, labels = cascade(part.inputs_at(rows)), part.labels[rows]
        odds = stop_odds(nets, logits)
        numbers = torch.rand(64, odds.shape[1] + 1, generator=generator)
        stopped = drawn_stop(odds.detach(), numbers[:, :-1])
        answered = drawn_label(logits.detach()[torch.arange(64), stopped], numbers[:, -1])
        losses = {
            "exact": objective.exact_loss(logits, odds, labels),
            "reinforce": objective.drawn_loss(logits, odds, labels, stopped, answered),
        }
        for name, loss in losses.items():
            parts = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
            seen[name].append(torch.cat([p.flatten() for p in parts]))
    total = {name: torch.stack(each).var(dim=0).sum() for name, each in seen.items()}
    return float(total["reinforce"] / total["exact"])


def neutral_oracle(part: Trace, largest: float) -> float:
    """Cost ratio on test of the neutral oracle on the chain of all networks."""
    chain = part.topology.chain(range(len(part.topology)))
    found = oracle(part, "neutral", topology=chain, reference=part.stages[-1])
    return float(found.cost.mean()) / largest


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train all contenders, choose, judge."""
    images = cifar10(arguments.train)
    held = arguments.judge
    parts = Parts(
        images.take(torch.arange(arguments.images)),
        images.take(torch.arange(40_000, 40_000 + held)),
        images.take(torch.arange(45_000, 45_000 + held)),
    )
    seconds, start = {}, time.monotonic()
    alone, apart = static(parts, arguments)
    seconds["static"] = time.monotonic() - start
    both, test = traces(apart, parts)
    fitting, chosen = halves(both)
    reference = arguments.models[-1]
    largest = float(chosen.stage_costs()[-1])
    limit, error_largest = (1 - t.accuracy(len(arguments.models) - 1) for t in (chosen, test))
    start = time.monotonic()
    together = joint(parts, arguments)
    seconds["joint"] = time.monotonic() - start
    start = time.monotonic()
    held_taught, test_taught = traces(distilled(parts, arguments, apart), parts)
    seconds["distilled"] = time.monotonic() - start
    frozen = stopping_points(alone, fitting, chosen, test, largest)
    found = {
        "_frozen": [*frozen[0], *frozen[1]],
        "_weighted": learned_points(both, test, reference, largest),
        "_distilled": learned_points(held_taught, test_taught, reference, largest),
        "_joint_weighted": [],
    }
    error_joint: list[list[float]] = []
    as_trained: list[Point] = []
    refitted: list[Point] = []
    for trained, cascade in together:
        everything, judged = traces(cascade, parts)
        own, seen = halves(everything)
        stops = stopping_points(trained, own, seen, judged, largest)
        as_trained += stops[0]
        refitted += stops[1]
        error_joint.append([1 - judged.accuracy(k) for k in range(len(judged.stages))])
        found["_joint_weighted"] += learned_points(everything, judged, reference, largest)
    found = {"": [*as_trained, *refitted], "_as_trained": as_trained, **found}
    result: dict[str, Any] = {
        "error_largest_static": error_largest,
        "error_static": [1 - test.accuracy(k) for k in range(len(arguments.models))],
        "error_joint": error_joint,
        "error_distilled_networks": [1 - test_taught.accuracy(k) for k in range(len(test.stages))],
        "flops_static": [float(v) / largest for v in test.stage_costs()],
    }
    for suffix, those in found.items():
        best = cheapest(those, limit)
        result |= {
            f"error{suffix}": best.error,
            f"flops_ratio{suffix}": best.cost,
            f"setting{suffix}": best.label,
            f"curve{suffix}": curve(those),
        }
    pairs = [("", "_frozen"), ("", "_weighted")]
    pairs += [(ours, "_weighted") for ours in ("_joint_weighted", "_distilled")]
    for ours, other in pairs:
        for name, value in at_equal_cost(found[ours], found[other]).items():
            result[f"error{ours}_{name}{other}_at_equal_cost"] = value
    result["flops_ratio_neutral_oracle"] = neutral_oracle(test, largest)
    trained, cascade = together[len(together) // 2]
    result["variance_ratio_reinforce_over_exact"] = variance_ratio(
        trained, cascade, parts.train, arguments.draws
    )
    result |= {f"seconds_{name}": value for name, value in seconds.items()}
    return result


def training_options(options: argparse.ArgumentParser) -> None:
    """What the networks of this benchmark depend on."""
    options.add_argument(
        "--train",
        "--data",
        dest="train",
        type=Path,
        required=True,
        help="folder of the binary layout",
    )
    options.add_argument("--models", nargs="+", default=["preresnet8", "preresnet20"])
    options.add_argument("--work", type=Path, default=Path("runs/joint"), help="checkpoints")
    options.add_argument("--epochs", type=int, default=22, help="passes of each contender")
    options.add_argument("--warm-up", type=int, default=16, help="of them, those that all share")
    options.add_argument("--images", type=int, default=40_000, help="to train on")
    options.add_argument("--judge", type=int, default=5_000, help="to choose on, and to test on")
    options.add_argument("--alphas", type=float, nargs="+", default=list(ALPHAS))
    options.add_argument("--estimator", default="supervised")
    options.add_argument("--answers", default="combined", help="as for train_joint")
    options.add_argument("--supervision", type=float, default=1.0, help="as for train_joint")
    options.add_argument("--attached", dest="detached", action="store_false")
    options.add_argument(
        "--float32", action="store_true", help="also where bfloat16 would be faster"
    )
    options.add_argument("--seed", type=int, default=0)


def main() -> None:
    """Read the options, measure, report."""
    options = parser(__doc__ or "")
    training_options(options)
    options.add_argument("--draws", type=int, default=40, help="batches of the variance ratio")
    arguments = options.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    chosen = {name: getattr(arguments, name) for name in SETTINGS}
    report(arguments, measure(arguments) | chosen)


if __name__ == "__main__":
    main()
