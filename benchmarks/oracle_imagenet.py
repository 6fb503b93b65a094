"""Network selection at ImageNet scale, on the published answers of 67 networks.

The data are the five best labels of each network for the 50,000 validation images, without
confidences: enough for the oracles, which see the labels, and for policies that compare answers.

1. AlexNet -> Inception-v1 -> ResNet-50 with the costs of Bolukbasi et al. (ICML 2017), 18.42 /
   39.47 / 100: the three oracles on all images, on the chain and (`_dag`) with every jump allowed.
   The weights are not the paper's Caffe models but torchvision's AlexNet (56.5 % top-1) and
   ResNet-50 (76.1 %) and TF-slim's Inception-v1 (69.8 %).
2. The agreement policy on that chain: everyone passes AlexNet, and leaves after Inception-v1 if
   enough of their best labels are AlexNet's too. How many is chosen on half of the images, for a
   loss of 0 and of 1, 2 and 5 points (`_1pt`...); the figures are of the other half.
3. The best chain of two or three networks among those with a published count of multiply-adds
   (imagenet_costs.toml), for F the most accurate network and (`_resnet50`) for ResNet-50, at top-1
   and (`_top5`) top-5: chosen on half of the images, reported on the other. For the neutral oracle
   and (`_paper`) the paper's the chain ends in F; for the agreement policy (`_agreement`) it may
   end in any network, and is the cheapest without loss; beside it `best_single`, the cheapest
   network on its own that is at least as accurate as F. A policy that sees no labels cannot be
   expected to reach an oracle.

Costs are over F's own. A difference is accuracy minus F's on the same images: positive is better.
Intervals are 95 %, over the images reported on. `_chosen_in` is the share of random halvings in
which the same chain is chosen.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import parser, report

import offramp
from offramp.evaluation import evaluate, sweep
from offramp.fitting.baselines import fit_agreement
from offramp.fitting.oracles import ORACLES, oracle
from offramp.fitting.pareto import pareto_front
from offramp.policy import Candidate
from offramp.trace import Trace, from_predictions

PAPER = {"alexnet": 18.42, "inception_v1_tf": 39.47, "resnet50": 100.0}
LOSSES = {"": 0.0, "_1pt": 0.01, "_2pt": 0.02, "_5pt": 0.05}
OPTIONS = ((1, 1), (5, 3), (5, 4), (5, 5))  # of the agreement policy: depth, shared

Figures = dict[str, Any]


def load(data: Path, costs: Mapping[str, float], images: int) -> Trace:
    """The answers of the networks in `costs`, with all jumps between them in that order."""
    with np.load(data / "imagenet_val50k_top5_67models.npz", allow_pickle=False) as held:
        ranked = dict(zip(held["models"].tolist(), held["top5"], strict=True))
        labels = held["labels"][:images]
    return from_predictions(
        {name: ranked[name][:images] for name in costs},
        labels,
        costs=dict(costs),
        unit="multiply-adds",
        classes=1000,
        edges="full" if len(costs) < 5 else "chain",
    )


def published_costs() -> dict[str, float]:
    """Multiply-adds in millions of the networks that have a source, the cheapest first."""
    text = Path(__file__).with_name("imagenet_costs.toml").read_text("utf-8")
    rows = tomllib.loads(text)["networks"].items()
    found = {name: float(row["million_multiply_adds"]) for name, row in rows}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def of_oracle(
    part: Trace, kind: str, topology: offramp.Topology, *, reference: str, top: int
) -> Figures:
    """What an oracle costs and gets right, with intervals."""
    found = oracle(part, kind, topology=topology, reference=reference, top=top)
    stage = part.topology.index(reference)
    ratio = found.cost / part.stage_costs()[stage]
    gain = part.wrong(stage, top=top).astype(np.float64) - found.wrong
    return {
        "cost": float(ratio.mean()),
        "cost_ci": interval(ratio),
        "accuracy": float(1 - found.wrong.mean()),
        "difference": float(gain.mean()),
        "difference_ci": interval(gain),
    }


def interval(values: np.ndarray) -> list[float]:
    """95 % interval of the mean of tens of thousands of values."""
    half = 1.96 * float(values.std()) / len(values) ** 0.5
    return [float(values.mean()) - half, float(values.mean()) + half]


def of_policy(part: Trace, candidate: Candidate) -> Figures:
    """The same of a policy."""
    found = evaluate(part, candidate, bootstrap=2000)
    intervals: Figures = {}
    if found.cost_ratio_ci is not None and found.accuracy_drop_ci is not None:
        low, high = found.accuracy_drop_ci
        intervals = {"cost_ci": list(found.cost_ratio_ci), "difference_ci": [0 - high, 0 - low]}
    return {
        "cost": found.cost_ratio,
        "accuracy": found.accuracy,
        "difference": 0.0 - found.accuracy_drop,
        **intervals,
        "setting": candidate.label,
    }


def paper_chain(data: Path, top: int, images: int) -> Figures:
    """Static networks, oracles and the agreement policy on the paper's chain."""
    trace = load(data, PAPER, images)
    chain, reference = trace.topology.chain(list(PAPER)), list(PAPER)[-1]
    result: Figures = {}
    for k, name in enumerate(trace.stages):
        result[f"static_{name}_cost"] = PAPER[name] / PAPER[reference]
        result[f"static_{name}_accuracy_top{top}"] = trace.accuracy(k, top=top)
    for kind in ORACLES:
        for suffix, topology in (("", chain), ("_dag", trace.topology)):
            found = of_oracle(trace, kind, topology, reference=reference, top=top)
            result |= named(found, kind, f"_top{top}{suffix}")
    halved = trace.split_into({"fit": 0.5, "test": 0.5}, seed=0)
    frontier = offramp.fit(
        halved, "agreement", reference=reference, top=top, topologies=[chain], progress=False
    )
    for suffix, loss in LOSSES.items():
        found = of_policy(
            halved.subset("test"), frontier.cheapest(max_drop=loss, delta=None).candidate
        )
        result |= named(found, "agreement", f"_top{top}{suffix}")
    return result


def best_for_oracle(part: Trace, kind: str, reference: str, top: int) -> list[str]:
    """The chain of two or three networks, F last, on which an oracle is cheapest.

    Searched here for all first networks of a chain at once: the library takes one chain at a time.
    """
    f = part.topology.index(reference)
    costs = part.stage_costs()
    right = np.stack([~part.wrong(k, top=top) for k in range(f + 1)], axis=1)  # (n, f + 1)
    with_f = right[:, f : f + 1]
    calm = right & with_f  # (n, f + 1): leaving changes nothing
    lost = ~right & ~with_f if kind == "neutral" else np.zeros_like(right)
    may = calm | lost  # leave before F
    pairs = costs[:f] + (1 - may[:, :f].mean(axis=0)) * costs[f]
    best = int(pairs.argmin())
    least, chain = float(pairs[best]), [best, f]
    for b in range(1, f):
        first = (calm[:, :b] & right[:, b : b + 1]) | lost[:, :b]  # (n, b)
        gone = first | may[:, b : b + 1]
        total = costs[:b] + (1 - first.mean(axis=0)) * costs[b] + (1 - gone.mean(axis=0)) * costs[f]
        if total.min() < least:
            best = int(total.argmin())
            least, chain = float(total[best]), [best, b, f]
    return [part.stages[k] for k in chain]


def best_for_agreement(part: Trace, reference: str, top: int) -> Candidate:
    """The cheapest agreement policy without loss among all chains of three networks."""
    found = list(_agreements(part, top))
    costs = np.concatenate([cost for _, _, cost, _ in found])
    errors = np.concatenate([error for _, _, _, error in found])
    sizes = np.cumsum([0] + [len(cost) for _, _, cost, _ in found])
    candidates: list[Candidate] = []
    for i in np.flatnonzero(pareto_front(costs, errors)):
        block = int(np.searchsorted(sizes, i, side="right")) - 1
        pair, option, _, _ = found[block]
        chain = part.topology.chain([*pair, pair[1] + 1 + int(i - sizes[block])])
        candidates += fit_agreement(
            part, reference=reference, top=top, topologies=[chain], options=[option]
        )
    frontier = sweep(candidates, part, reference=reference, top=top, progress=False)
    return frontier.cheapest(max_drop=0.0, delta=None).candidate


def _agreements(
    part: Trace, top: int
) -> Iterator[tuple[tuple[int, int], tuple[int, int], np.ndarray, np.ndarray]]:
    """Mean cost and error of each pair and option, every more expensive network the last."""
    count, costs = len(part.stages), part.stage_costs()
    ranked = [part.output(k).top(5).numpy().astype(np.int16) for k in range(count)]  # (n, 5)
    wrong = np.stack([part.wrong(k, top=top) for k in range(count)], axis=1).astype(np.float32)
    for b in range(1, count - 1):
        for a in range(b):
            five = (ranked[a][:, :, None] == ranked[b][:, None, :]).sum(axis=(1, 2))  # (n,)
            one = (ranked[a][:, 0] == ranked[b][:, 0]).astype(np.int64)
            for depth, shared in OPTIONS:
                leaves = (one if depth == 1 else five) >= shared
                stays = (~leaves).astype(np.float32)
                error = (wrong[leaves, b].sum() + stays @ wrong[:, b + 1 :]) / len(part)
                yield (
                    (a, b),
                    (depth, shared),
                    costs[a] + costs[b] + stays.mean() * costs[b + 1 :],
                    error,
                )


def cheapest_single(part: Trace, reference: str, top: int) -> str:
    """The cheapest network that is at least as accurate as F, to compare chains with."""
    least = part.accuracy(part.topology.index(reference), top=top)
    costs = dict(zip(part.stages, part.stage_costs(), strict=True))
    accurate = [n for k, n in enumerate(part.stages) if part.accuracy(k, top=top) >= least]
    return min(accurate, key=costs.__getitem__)


def best_chains(trace: Trace, reference: str, *, top: int, seeds: int, suffix: str) -> Figures:
    """The best chain for each way to leave, chosen on one half and reported on the other."""
    halvings = [trace.split_into({"fit": 0.5, "test": 0.5}, seed=seed) for seed in range(seeds)]
    test = halvings[0].subset("test")
    result: Figures = {}
    for variant, kind in (("", "neutral"), ("_paper", "paper")):
        chosen = [best_for_oracle(h.subset("fit"), kind, reference, top) for h in halvings]
        chain = trace.topology.chain(chosen[0])
        found = of_oracle(test, kind, chain, reference=reference, top=top)
        result |= named_chain(found, f"best_chain{variant}{suffix}", chosen, reference)
    chosen = [[cheapest_single(h.subset("fit"), reference, top)] for h in halvings]
    single = Candidate.single(trace.topology, chosen[0][0], reference=reference, top=top)
    result |= named_chain(of_policy(test, single), f"best_single{suffix}", chosen, reference)
    candidates = [best_for_agreement(h.subset("fit"), reference, top) for h in halvings]
    chosen = [_stages(candidate) for candidate in candidates]
    found = of_policy(test, candidates[0])
    return result | named_chain(found, f"best_chain_agreement{suffix}", chosen, reference)


def _stages(candidate: Candidate) -> list[str]:
    topology = candidate.policy.topology
    return [topology.names[k] for k in topology.active]


def named(found: Figures, prefix: str, suffix: str) -> Figures:
    """Figures under full names; those of intervals end in `_ci`."""
    ends = {key: "_ci" if key.endswith("_ci") else "" for key in found}
    return {
        f"{prefix}_{key.removesuffix('_ci')}{suffix}{ends[key]}": value
        for key, value in found.items()
    }


def named_chain(found: Figures, name: str, chosen: Sequence[list[str]], reference: str) -> Figures:
    """Figures of the chain that the first halving chose."""
    same = sum(chain == chosen[0] for chain in chosen) / len(chosen)
    renamed = {key.replace("cost", "cost_ratio"): value for key, value in found.items()}
    return {
        name: " -> ".join(chosen[0]),
        f"{name}_reference": reference,
        **named(renamed, name, ""),
        f"{name}_chosen_in": same,
    }


def main() -> None:
    """The paper's chain, then the best one."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of the ImageNet answers")
    options.add_argument("--seeds", type=int, default=5, help="random halvings")
    options.add_argument("--images", type=int, default=50_000, help="the first of them")
    arguments = options.parse_args()
    result: Figures = {"stand_in_for_googlenet": "inception_v1_tf", "seeds": arguments.seeds}
    for top in (1, 5):
        result |= paper_chain(arguments.data, top, arguments.images)
    trace = load(arguments.data, published_costs(), arguments.images)
    result["networks_with_published_cost"] = len(trace.stages)
    for top in (1, 5):
        accurate = trace.split_into({"fit": 0.5, "test": 0.5}, seed=0).subset("fit")
        names = {"": trace.stages[accurate.most_accurate(top=top)], "_resnet50": "resnet50"}
        for end, reference in names.items():
            suffix = end if top == 1 else f"{end}_top{top}"
            result |= best_chains(trace, reference, top=top, seeds=arguments.seeds, suffix=suffix)
    report(arguments, result)


if __name__ == "__main__":
    main()
