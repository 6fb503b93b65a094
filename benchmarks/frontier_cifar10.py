"""The picture of the README: frontiers, one promise, and what became of it on new images.

The logits of four pretrained CIFAR-10 ResNets (20, 32, 44, 56 layers; weights that we did not
train) on 4,500 test images after lossy JPEG, which they have never seen. For each seed: 2,000 to
fit, 1,000 to calibrate, 1,500 to test. Policies are fitted on fit; what is drawn was measured on
test, which nothing was chosen on, and is the mean over the seeds. Costs are FLOPs over those of
ResNet-56.

    networks            cost ratio and accuracy of each network alone
    learned, threshold  the same of the most accurate candidate within each of `COSTS`, chosen on
                        fit and calibrate; nothing is promised of these
    chosen              the same of the learned candidate that was certified on calibrate to lose
                        at most `max_drop` of accuracy on new images, except with probability
                        `delta`; of ResNet-56 where nothing was certified
    certified_share     seeds in which one was; `accuracy_drop` is its loss against ResNet-56

    python benchmarks/frontier_cifar10.py --data DIR --out benchmarks/results/frontier_cifar10.json
    python tools/draw_frontier.py
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import parser, report, scaled
from selection_cifar10 import NETWORKS, REFERENCE, SPLITS, load

import offramp
from offramp.evaluation import evaluate, references
from offramp.evaluation.batch import evaluate_all
from offramp.trace import Trace

METHODS = ("learned", "threshold")
COSTS = (0.33, 0.35, 0.37, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 1.0)  # over ResNet-56's
Numbers = dict[str, Any]


def measured(trace: Trace, *, max_drop: float, delta: float) -> Numbers:
    """What one division gives, on its test part."""
    test = trace.subset("test")
    alone = [p for p in references(test, REFERENCE) if p.kind == "static"]
    found: Numbers = {"networks": [[p.cost_ratio, p.accuracy] for p in alone]}
    for method in METHODS:
        frontier = offramp.fit(trace, method, reference=REFERENCE, progress=False)
        best = [frontier.best(max_cost=cost).candidate for cost in COSTS]
        found[method] = [[e.cost_ratio, e.accuracy] for e in evaluate_all(test, best)]
        if method == "learned":
            choice = frontier.cheapest(max_drop=max_drop, delta=delta)
    reached = evaluate(test, choice.candidate, bootstrap=0)
    return found | {
        "chosen": [reached.cost_ratio, reached.accuracy],
        "accuracy_drop": reached.accuracy_drop,
        "certified_share": float(choice.guarantee is not None),
    }


def main() -> None:
    """Fit, certify, and measure on test, division after division."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of the CIFAR-10 data")
    options.add_argument("--max-drop", type=float, default=0.01, help="of accuracy, to promise")
    options.add_argument("--delta", type=float, default=0.1, help="chance of a wrong promise")
    options.add_argument("--images", type=int, default=4500, help="in all parts together")
    options.add_argument("--seeds", type=int, default=20)
    arguments = options.parse_args()
    splits = scaled(SPLITS, arguments.images)
    trace = load(arguments.data).take(torch.arange(sum(splits.values())))
    each = [
        measured(
            trace.split_into(splits, seed=seed),  # type: ignore[arg-type]
            max_drop=arguments.max_drop,
            delta=arguments.delta,
        )
        for seed in range(arguments.seeds)
    ]
    mean = {key: np.mean([found[key] for found in each], axis=0).tolist() for key in each[0]}
    settings = {key: getattr(arguments, key) for key in ("seeds", "max_drop", "delta")}
    result = {**settings, "splits": splits, "reference": REFERENCE, **mean}
    result["networks"] = dict(zip(NETWORKS, mean["networks"], strict=True))
    report(arguments, result)


if __name__ == "__main__":
    main()
