"""Does the demo keep its promise? Its choice, made again over many divisions of the same images.

The demo's networks are trained on 400 of the 1,797 digits of scikit-learn, `--trainings` times,
each with a seed and a training part of its own. The images that were not trained on are recorded
once and divided again and again into fit, calibrate and test; each time the demo's own function
fits, certifies and chooses. No seed is chosen: 0, 1, 2, ...

    broken_share       divisions whose choice loses more than allowed on new images. The new
                       images of a division are those that nothing was fitted on, calibrate and
                       test together: from them calibrate was drawn, and of them a certificate
                       speaks. It may be `delta` at most
    broken_share_test  the same on test alone, where 347 images add luck of their own
    certified_share    divisions in which something was promised; in the others F runs alone
    mean_cost_ratio    mean cost over F's on test, F alone included

`uncertified` holds the same figures for `cheapest(max_drop=, delta=None)` without the margin
too, on the same divisions.
"""

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from harness import parser, report

import offramp
from offramp.evaluation import evaluate
from offramp.policy import Candidate
from offramp.project.demo import DELTA, MAX_LOSS, promised
from offramp.project.worlds.digits import SIZES, pictures, trained
from offramp.trace import Trace


def recorded(seed: int) -> Trace:
    """The demo's networks of one training on all images that they were not trained on."""
    train = SIZES["train"]
    examples = pictures()
    parts = examples.split_into(
        {"train": train, "test": len(examples) - train}, seed=seed, stratified=True
    )
    cascade = trained(parts, seed=seed, progress=False)
    return offramp.record(cascade, parts.subset("test"), progress=False)


def losses(parts: Trace, candidate: Candidate) -> dict[str, float]:
    """Accuracy lost on new images and on test, and the cost ratio on test."""
    test = evaluate(parts.subset("test"), candidate, bootstrap=0)
    held = evaluate(parts.subset("calibrate"), candidate, bootstrap=0)
    new = (test.n * test.accuracy_drop + held.n * held.accuracy_drop) / (test.n + held.n)
    return {"new": new, "test": test.accuracy_drop, "cost": test.cost_ratio}


def shares(found: list[dict[str, float]]) -> dict[str, float]:
    """Over all divisions."""
    rounding = 1e-9  # a loss of exactly what is allowed keeps the promise
    return {
        "broken_share": float(np.mean([row["new"] > MAX_LOSS + rounding for row in found])),
        "broken_share_test": float(np.mean([row["test"] > MAX_LOSS + rounding for row in found])),
        "mean_cost_ratio": float(np.mean([row["cost"] for row in found])),
        "mean_loss": float(np.mean([row["new"] for row in found])),
    }


def main() -> None:
    """Train, divide, choose, count."""
    options = parser(__doc__ or "")
    options.add_argument("--divisions", type=int, default=200)
    options.add_argument("--trainings", type=int, default=4)
    arguments = options.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    traces = [recorded(seed) for seed in range(arguments.trainings)]
    sizes = {name: size for name, size in SIZES.items() if name != "train"}
    certified: list[dict[str, float]] = []
    measured: list[dict[str, float]] = []
    kept = 0
    for seed in range(arguments.divisions):
        parts = traces[seed % len(traces)].split_into(sizes, seed=seed)
        frontier, choice = promised(parts, seed=seed, progress=False)
        kept += choice.guarantee is not None
        certified.append(losses(parts, choice.candidate))
        measured.append(
            losses(parts, frontier.cheapest(max_drop=MAX_LOSS, margin=0, delta=None).candidate)
        )
    costs = traces[0].stage_costs()
    result: dict[str, Any] = {
        "divisions": arguments.divisions,
        "trainings": arguments.trainings,
        "allowed": MAX_LOSS,
        "delta": DELTA,
        **shares(certified),
        "certified_share": kept / arguments.divisions,
        "uncertified": shares(measured),
        "cost_steps": [float(after / before) for before, after in pairwise(costs)],
        "accuracies": [[trace.accuracy(k) for k in range(len(costs))] for trace in traces],
    }
    report(arguments, result)


if __name__ == "__main__":
    main()
