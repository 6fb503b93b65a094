"""Network selection at ImageNet scale, on the published answers of 67 networks.

The data are the five best labels of each network on the 50,000 validation images, without
confidences: enough for the oracles, which see the labels, and for policies that compare labels.
None of the networks was trained on these images.

1. AlexNet -> Inception-v1 -> ResNet-50 with the costs of Bolukbasi et al. (ICML 2017), 18.42 /
   39.47 / 100: the three oracles on all images, on the chain and (`_dag`) with every jump allowed.
   The weights differ from the paper's Caffe models: torchvision's AlexNet (56.5 % top-1) and
   ResNet-50 (76.1 %), TF-slim's Inception-v1 (69.8 %).
2. The agreement policy on that chain: everyone passes AlexNet, and leaves after Inception-v1 if
   enough of their best labels agree. How many is chosen on half of the images, for no loss and for
   one point (`_1pt`); cost and difference are of the other half.
3. The best chain of two or three networks among those with a published count of multiply-adds
   (imagenet_costs.toml), ending in F, for F the most accurate network and for ResNet-50: chosen on
   half of the images, reported on the other, for the neutral and the paper's oracle; and for the
   agreement policy, whose chain may end in a cheaper network.

Costs are over F's own. A difference is accuracy minus F's on the same images: positive is better.
Intervals are 95 %, bootstrap over the images of the half reported on. `..._chosen_in` counts how
often the same chain is chosen in random halvings.
"""

import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from harness import parser, report

import offramp
from offramp import Topology
from offramp.evaluate import DoNotCascade, evaluate
from offramp.evaluate.evaluation import paired_intervals
from offramp.policy import Setting
from offramp.policy.baselines import fit_agreement
from offramp.policy.oracles import ORACLES, oracle
from offramp.trace import Trace, from_predictions

PAPER = {"alexnet": 18.42, "inception_v1_tf": 39.47, "resnet50": 100.0}
OPTIONS = {1: (1, 1), 3: (5, 3), 4: (5, 4), 5: (5, 5)}  # labels shared: (depth, shared)
TOPS = (1, 5)
ROUNDS = 2000


def load(data: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Ranked labels `(n, 5)` of each network by name, and the true labels `(n,)`."""
    with np.load(data / "imagenet_val50k_top5_67models.npz", allow_pickle=False) as held:
        ranked = dict(zip(held["models"].tolist(), held["top5"], strict=True))
        return ranked, held["labels"]


def published_costs() -> dict[str, float]:
    """Multiply-adds in millions of the networks that have a source, the cheapest first."""
    table = tomllib.loads(Path(__file__).with_name("imagenet_costs.toml").read_text("utf-8"))
    costs = {name: row["million_multiply_adds"] for name, row in table["networks"].items()}
    return dict(sorted(costs.items(), key=lambda item: item[1]))


def trace_of(
    names: Sequence[str], data: tuple[dict[str, np.ndarray], np.ndarray], costs: dict[str, float]
) -> Trace:
    """A trace of some networks."""
    ranked, labels = data
    return from_predictions(
        {name: ranked[name] for name in names},
        labels,
        costs={name: costs[name] for name in names},
        unit="million multiply-adds",
        classes=1000,
        edges="full",
    )


def halves(trace: Trace, seed: int) -> Trace:
    """Half of the images to choose on (`fit`), half to report (`test`)."""
    return trace.divided({"fit": 0.5, "test": 0.5}, seed=seed)


def oracle_figures(
    part: Trace, kind: str, topology: Topology, reference: str, top: int
) -> dict[str, Any]:
    """Cost ratio, accuracy and difference of an oracle, with intervals."""
    found = oracle(part, kind, topology=topology, reference=reference, top=top)
    stage = part.topology.index(reference)
    ratio = found.cost / part.stage_costs()[stage]
    gain = part.wrong(stage, top=top).astype(np.float64) - found.wrong
    intervals = paired_intervals([ratio, gain], rounds=ROUNDS, seed=0)
    return {
        "cost": float(ratio.mean()),
        "cost_ci": list(intervals[0]),
        "accuracy": float(1 - found.wrong.mean()),
        "difference": float(gain.mean()),
        "difference_ci": list(intervals[1]),
    }


def policy_figures(part: Trace, setting: Setting) -> dict[str, Any]:
    """The same of a policy."""
    found = evaluate(part, setting, bootstrap=ROUNDS)
    assert_cost, assert_difference = found.cost_ratio_ci, found.difference_ci
    low, high = assert_difference or (0.0, 0.0)
    return {
        "cost": found.cost_ratio,
        "cost_ci": list(assert_cost or ()),
        "accuracy": found.accuracy,
        "difference": -found.difference,
        "difference_ci": [-high, -low],
        "setting": setting.label,
    }
