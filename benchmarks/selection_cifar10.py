"""Network selection among pretrained CIFAR-10 ResNets, on test images after lossy JPEG.

The networks (20, 32, 44, 56 layers; weights that we did not train) have never seen these 4,500
images. For each seed: 2,000 to fit, 1,000 to calibrate, 1,500 to test. Topology, combination and
trade-off are chosen on fit and calibrate alone, for the learned and for the threshold policy with
equal freedom; test is only reported. The two end up at different differences, so each is also
chosen with other margins, and the curve of the threshold policy is read at the learned policy's
difference; keys call the threshold policy `_myopic`.

`difference` is accuracy minus ResNet-56's on the same images: positive is better. Its interval
treats the seeds as independent; their test parts overlap, so it is somewhat too narrow. Time is
measured at the learned point of the first seed, on the images of its test part, against the static
ResNet-56 on the same backend (folded batch-norm, channels last), in interleaved rounds.
"""

import statistics
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import parser, report, scaled, speedups

import offramp
from offramp.evaluation import evaluate
from offramp.evaluation.measured import MARGIN
from offramp.fitting.oracles import oracle
from offramp.fitting.search import sub_chains
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Normalize
from offramp.trace import Trace, from_npz

NETWORKS = ("resnet20", "resnet32", "resnet44", "resnet56")
MACS = {"resnet20": 40.55e6, "resnet32": 68.86e6, "resnet44": 97.17e6, "resnet56": 125.49e6}
REFERENCE = "resnet56"
MARGINS = (0.0, 0.25, 0.5, 0.75, 1.5)  # beside the default, for curves
SPLITS = {"fit": 2000, "calibrate": 1000, "test": 1500}


def load(data: Path) -> Trace:
    """The recorded logits of the four networks."""
    return from_npz(
        data / "resnet_logits" / "test_jpeg_1000_5500.npz",
        logits={name: f"logits_{name}" for name in NETWORKS},
        labels="labels",
        costs=offramp.Costs.simple(
            "flops", [2 * MACS[name] for name in NETWORKS], note="multiply-adds x 2"
        ),
    )


def choose(trace: Trace, method: str) -> dict[float, Candidate]:
    """For each margin the candidate chosen on fit and calibrate for no loss.

    It is a single network where no cascade pays.
    """
    frontier = offramp.fit(trace, method, reference=REFERENCE, progress=False)
    return {
        m: frontier.cheapest(max_drop=0.0, margin=m, delta=None).candidate
        for m in (MARGIN, *MARGINS)
    }


def neutral_oracle(trace: Trace) -> tuple[float, float]:
    """Cost ratio and difference on test of the neutral oracle on the chain best on fit."""
    chains = sub_chains(trace.topology)
    fit, test = trace.subset("fit"), trace.subset("test")

    def cost(part: Trace, chain: offramp.Topology) -> float:
        found = oracle(part, "neutral", topology=chain, reference=REFERENCE)
        return float(found.cost.mean())

    ending = [c for c in chains if c.names[c.active[-1]] == REFERENCE]
    best = min(ending, key=lambda chain: cost(fit, chain))
    found = oracle(test, "neutral", topology=best, reference=REFERENCE)
    own = trace.costs.segment[-1]
    lost = found.wrong.mean() - test.wrong(len(NETWORKS) - 1).mean()
    return float(found.cost.mean()) / own, -float(lost)


def interval(values: list[float]) -> list[float]:
    """95 % interval of the mean over seeds, normal approximation."""
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    mean = statistics.fmean(values)
    return [mean - half, mean + half]


def at_difference(curve: list[list[float]], difference: float) -> float:
    """Cost ratio of a curve (margin, cost ratio, difference) where it reaches a difference.

    Interpolated by a straight line through the whole curve: its points are noisy.
    """
    _, cost, reached = np.array(curve).T
    if not np.ptp(reached):  # one point only: no slope
        return float(cost.mean())
    slope, start = np.polyfit(reached, cost, 1)
    return float(start + slope * difference)


def speed(
    data: Path, candidate: Candidate, splits: dict[str, int], rounds: int
) -> dict[str, float]:
    """Wall-clock of ResNet-56 over the adaptive model's, at batch 128 and 1."""
    normalize = Normalize(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    weights = data / "resnet_weights"
    networks = {
        name: build(ModelSpec(name=name, weights=str(weights / f"{name}_state.npz")))
        for name in NETWORKS
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        cascade = offramp.Cascade.from_models(networks, transform=normalize)
    with np.load(data / "test_jpeg_1000_5500.npz", allow_pickle=False) as held:
        images = torch.from_numpy(held["images"]).permute(0, 3, 1, 2).contiguous()
    order = np.random.default_rng(0).permutation(sum(splits.values()))
    test = images[
        torch.from_numpy(order[-splits["test"] :])
    ]  # as Trace.split_into with seed 0 cuts it
    adaptive = offramp.Adaptive(cascade, candidate, fold=True)
    static = Adaptive.single(cascade, REFERENCE, fold=True)
    found = speedups(adaptive, static, test, rounds=rounds)
    with_all = torch.cat([adaptive(x).labels for x in test.split(128)])
    f_labels = torch.cat([static(x).labels for x in test.split(128)])
    found["agreement_with_reference"] = float((with_all == f_labels).float().mean())
    return found


def main() -> None:
    """Fit, choose, test; then time the chosen point."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of the CIFAR-10 data")
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--rounds", type=int, default=15, help="timed rounds")
    options.add_argument("--images", type=int, default=4500, help="in all parts together")
    arguments = options.parse_args()
    splits = scaled(SPLITS, arguments.images)
    trace = load(arguments.data).take(torch.arange(sum(splits.values())))
    costs: dict[str, list[float]] = {"": [], "_myopic": [], "_neutral_oracle": []}
    differences: dict[str, list[float]] = {name: [] for name in costs}
    curves: dict[str, dict[float, list[tuple[float, float]]]] = {"": {}, "_myopic": {}}
    topologies: Counter[str] = Counter()
    first: Candidate | None = None
    for seed in range(arguments.seeds):
        divided = trace.split_into(splits, seed=seed)  # type: ignore[arg-type]
        for suffix, method in (("", "learned"), ("_myopic", "threshold")):
            for margin, candidate in choose(divided, method).items():
                found = evaluate(divided.subset("test"), candidate, bootstrap=0)
                curves[suffix].setdefault(margin, []).append(
                    (found.cost_ratio, -found.accuracy_drop)
                )
                if margin != MARGIN:
                    continue
                costs[suffix].append(found.cost_ratio)
                differences[suffix].append(-found.accuracy_drop)
                if method == "learned":
                    first = first or candidate
                    topologies[
                        f"{candidate.policy.combine}: {candidate.policy.topology.describe()}"
                    ] += 1
        cost, difference = neutral_oracle(divided)
        costs["_neutral_oracle"].append(cost)
        differences["_neutral_oracle"].append(difference)
    result: dict[str, Any] = {"seeds": arguments.seeds, **{k: str(v) for k, v in splits.items()}}
    for suffix in costs:
        result[f"cost_ratio{suffix}"] = statistics.fmean(costs[suffix])
        result[f"cost_ratio{suffix}_ci"] = interval(costs[suffix])
        result[f"difference{suffix}"] = statistics.fmean(differences[suffix])
        result[f"difference{suffix}_ci"] = interval(differences[suffix])
    paired = [a - b for a, b in zip(costs[""], costs["_myopic"], strict=True)]
    result["cost_ratio_minus_myopic"] = statistics.fmean(paired)
    result["cost_ratio_minus_myopic_ci"] = interval(paired)
    for suffix, curve in curves.items():
        result[f"curve{suffix}"] = [
            [margin, *np.mean(values, axis=0).tolist()] for margin, values in sorted(curve.items())
        ]
    result["cost_ratio_myopic_at_equal_difference"] = at_difference(
        result["curve_myopic"], statistics.fmean(differences[""])
    )
    result["topologies"] = dict(topologies.most_common())
    if first is not None:
        result["timed_setting"] = first.label
        result |= speed(arguments.data, first, splits, arguments.rounds)
    report(arguments, result)


if __name__ == "__main__":
    main()
