"""Classifiers and stopping networks trained together on CIFAR-10, against training them apart.

Pre-activation ResNets from scratch on the first 40,000 training images; policies fitted and chosen
on [40000:45000], judged on [45000:50000]. Every contender has had the same number of passes over
the training images, `--epochs`: the static networks each on its own; a joint cascade, once for each
alpha, the first half with every classifier taught on every image, the second half together with the
stopping networks, under one falling learning rate. `frozen` (stopping networks alone) and
`weighted` (the learned policy by weighted binary classification) decide over the static networks.
Of a joint cascade the stopping networks are used as they were trained (`_as_trained`) and fitted
anew on [40000:45000].

`flops_ratio` is mean FLOPs, stopping networks included, over those of the largest static network;
`error` is top-1. Each is the cheapest point that was, on [40000:45000], at least as accurate as the
largest static network there. `curve_*` are (cost ratio, error) on [45000:50000] of the points that
were on the front on [40000:45000]. Interrupted, the same command goes on.

    python benchmarks/joint_cifar10.py --train DIR --epochs 24 --out benchmarks/results/joint.json
"""

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import parser, report
from train_backbone import NORMALISE

import offramp
from offramp.data import CropAndFlip, Examples, cifar10
from offramp.evaluate.batch import evaluate_all
from offramp.models import ModelSpec, build
from offramp.policy import Setting
from offramp.policy.fitters import fitters
from offramp.policy.oracles import oracle
from offramp.policy.pareto import pareto_front
from offramp.policy.stopping_network import (
    make_networks,
    stop_odds,
    stopping_costs,
    with_stopping,
)
from offramp.policy.stopping_objective import Objective, drawn_label, drawn_stop
from offramp.stages import Cascade, measure_flops
from offramp.trace import Trace
from offramp.train import JointTraining, train_classifier, train_joint

ALPHAS = (0.01, 0.03, 0.1)
THRESHOLDS = (0.2, 0.5, 0.8)
AUGMENT = CropAndFlip(padding=4)


@dataclass(frozen=True)
class Point:
    """A policy: what it cost and how often it erred where it was chosen, and on test."""

    label: str
    chosen_cost: float
    chosen_error: float
    cost: float
    error: float


@dataclass(frozen=True)
class Parts:
    """The images: to train on, to fit and choose on, to judge on."""

    train: Examples
    fit: Examples
    test: Examples


def networks(names: Sequence[str], seed: int) -> Cascade:
    """The cascade from scratch."""
    nets = {n: build(ModelSpec(name=n, arguments={"seed": seed})) for n in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Cascade.of_models(nets, edges="full", preprocess=NORMALISE)


def traces(cascade: Cascade, parts: Parts) -> tuple[Trace, Trace]:
    """Outputs on the images to choose on and on those to judge on."""
    example = parts.fit.batch(0, 1).inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        costs = with_stopping(measure_flops(cascade, example), parts.fit.classes)
    first, second = (
        offramp.record(cascade, part, costs=costs, progress=False)
        for part in (parts.fit, parts.test)
    )
    return first, second


def static(names: Sequence[str], parts: Parts, arguments: argparse.Namespace) -> Cascade:
    """Each network trained on its own."""
    cascade = networks(names, arguments.seed)
    for name in names:
        train_classifier(
            cascade.stage(name).module,
            parts.train,
            epochs=arguments.epochs,
            seed=arguments.seed,
            preprocess=NORMALISE,
            augment=AUGMENT,
            batch_size=128,
            optimiser="sgd",
            learning_rate=0.2,
            weight_decay=5e-4,
            bfloat16=True,
            checkpoint=arguments.work / f"static_{name}.safetensors",
            description=f"Training {name}",
        )
    return cascade


def joint(
    names: Sequence[str], parts: Parts, arguments: argparse.Namespace
) -> list[tuple[JointTraining, Cascade]]:
    """The same networks trained together, for each alpha.

    The loss is a mean over the networks; `count` brings each one's own rates back, as if alone.
    """
    found, count = [], len(names)
    for alpha in arguments.alphas:
        together = networks(names, arguments.seed)
        trained = train_joint(
            together,
            parts.train,
            alpha=alpha,
            epochs=arguments.epochs,
            warm_up=arguments.epochs // 2,
            seed=arguments.seed,
            estimator=arguments.estimator,
            supervision=arguments.supervision,
            augment=AUGMENT,
            validation=parts.fit.rows(torch.arange(min(1000, len(parts.fit)))),
            batch_size=128,
            learning_rate=0.2 * count,
            weight_decay=5e-4 / count,
            schedule="cosine",
            bfloat16=True,
            checkpoint=arguments.work / f"joint_{alpha:g}.safetensors",
        )
        found.append((trained, together))
    return found


def points(settings: Sequence[Setting], chosen: Trace, test: Trace, largest: float) -> list[Point]:
    """What settings do; `largest` is what the largest static network costs."""
    pairs = zip(settings, evaluate_all(chosen, settings), evaluate_all(test, settings), strict=True)
    return [
        Point(s.label, a.cost / largest, 1 - a.accuracy, b.cost / largest, 1 - b.accuracy)
        for s, a, b in pairs
    ]


def cheapest(found: Sequence[Point], limit: float) -> Point:
    """The cheapest as accurate as `limit` where it was chosen, else the most accurate."""
    within = [p for p in found if p.chosen_error <= limit]
    if within:
        return min(within, key=lambda p: (p.chosen_cost, p.chosen_error))
    return min(found, key=lambda p: (p.chosen_error, p.chosen_cost))


def curve(found: Sequence[Point]) -> list[list[float]]:
    """(cost ratio, error) on test of those on the front where they were chosen."""
    on = pareto_front(
        np.array([p.chosen_cost for p in found]), np.array([p.chosen_error for p in found])
    )
    kept = {(p.cost, p.error) for p, keep in zip(found, on, strict=True) if keep}
    return [list(pair) for pair in sorted(kept)]


def at_equal_cost(first: list[list[float]], second: list[list[float]]) -> float | None:
    """Mean error of the first curve minus the second's, over the costs that both reach."""
    (a, u), (b, v) = np.array(first).T, np.array(second).T
    low, high = max(a.min(), b.min()), min(a.max(), b.max())
    if not high > low:
        return None
    costs = np.linspace(low, high, 50)
    return float(np.mean(np.interp(costs, a, u) - np.interp(costs, b, v)))


def variance_ratio(trained: JointTraining, cascade: Cascade, part: Examples, draws: int) -> float:
    """Total variance of REINFORCE's gradient over that of the exact one, over random batches."""
    nets = make_networks(len(trained.rules), part.classes, 64, seed=0)
    for network, rule in zip(nets, trained.rules, strict=True):
        network.load_rule(rule)  # type: ignore[operator]
    costs = trained.alpha * stopping_costs(trained.costs, trained.topology)
    objective = Objective(stage_cost=costs, drawn_answers=True)
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
        images.rows(torch.arange(arguments.images)),
        images.rows(torch.arange(40_000, 40_000 + held)),
        images.rows(torch.arange(45_000, 45_000 + held)),
    )
    start = time.monotonic()
    apart = static(arguments.models, parts, arguments)
    seconds = {"static": time.monotonic() - start}
    chosen, test = traces(apart, parts)
    reference = arguments.models[-1]
    largest = float(chosen.stage_costs()[-1])
    limit, error_largest = (1 - t.accuracy(len(arguments.models) - 1) for t in (chosen, test))
    frozen = points(fitters["stopping"](chosen, reference=reference), chosen, test, largest)
    weighted = points(fitters["weighted"](chosen, reference=reference), chosen, test, largest)
    start = time.monotonic()
    together = joint(arguments.models, parts, arguments)
    seconds["joint"] = time.monotonic() - start
    as_trained: list[Point] = []
    refitted: list[Point] = []
    for trained, cascade in together:
        seen, judged = traces(cascade, parts)
        settings = [
            trained.setting(threshold=threshold, combine=combine, reference=reference)
            for threshold in THRESHOLDS
            for combine in ("policy", "last")
        ]
        as_trained += points(settings, seen, judged, largest)
        again = fitters["stopping"](seen, reference=reference)
        refitted += points(again, seen, judged, largest)
    everything = {
        "": [*as_trained, *refitted],
        "_as_trained": as_trained,
        "_frozen": frozen,
        "_weighted": weighted,
    }
    result: dict[str, Any] = {
        "error_largest_static": error_largest,
        "error_static": [1 - test.accuracy(k) for k in range(len(arguments.models))],
        "flops_static": [float(v) / largest for v in test.stage_costs()],
    }
    for suffix, found in everything.items():
        best = cheapest(found, limit)
        result |= {
            f"error{suffix}": best.error,
            f"flops_ratio{suffix}": best.cost,
            f"setting{suffix}": best.label,
            f"curve{suffix}": curve(found),
        }
    for other in ("_frozen", "_weighted"):
        result[f"error_minus{other}_at_equal_cost"] = at_equal_cost(
            result["curve"], result[f"curve{other}"]
        )
    result["flops_ratio_neutral_oracle"] = neutral_oracle(test, largest)
    trained, cascade = together[len(together) // 2]
    result["variance_ratio_reinforce_over_exact"] = variance_ratio(
        trained, cascade, parts.train, arguments.draws
    )
    result |= {f"seconds_{name}": value for name, value in seconds.items()}
    return result


def main() -> None:
    """Read the options, measure, report."""
    options = parser(__doc__ or "")
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
    options.add_argument("--epochs", type=int, default=24, help="passes of each contender")
    options.add_argument("--images", type=int, default=40_000, help="to train on")
    options.add_argument("--judge", type=int, default=5_000, help="to choose on, and to test on")
    options.add_argument("--alphas", type=float, nargs="+", default=list(ALPHAS))
    options.add_argument("--estimator", default="supervised")
    options.add_argument("--supervision", type=float, default=1.0, help="as for train_joint")
    options.add_argument("--draws", type=int, default=40, help="batches of the variance ratio")
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    names = ("models", "epochs", "images", "judge", "alphas", "estimator", "supervision", "seed")
    settings = {name: getattr(arguments, name) for name in names}
    report(arguments, measure(arguments) | settings)


if __name__ == "__main__":
    main()
