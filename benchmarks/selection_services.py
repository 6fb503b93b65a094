"""Cascades of real prediction services: what they save and what they gain, cost in dollars.

The data are the answers of commercial services and one free open model each to four sets of
inputs: reviews (IMDB and WAIMAI, 2 classes), faces (FERPLUS, 7), spoken digits (AUDIOMNIST, 10;
services may hear something that is no digit: label 10, simply wrong). What they look like:

- An answer is one label and one confidence, never logits, and no two confidences mean the same.
  Google's for texts is the size of a sentiment score in steps of 0.1: 0 for 15 % (IMDB) and 7 %
  (WAIMAI). Amazon's for texts and Face++'s for faces fall far below chance (0.0001 of 2 classes,
  0.001 of 7) for labels that they stand by. Google's for faces has five values, 25 % of them 1;
  Bixin's for texts is 0 (30 %) or 1 (56 %) for most. Vader's never exceeds 0.58.
- The most expensive is not the best: of the reviews, Baidu (3.5 dollars per 10,000) is best on
WAIMAI,
  88.9 %, and near chance on IMDB, 51.6 %, where Google (2.5) is best, 86.4 %; of the faces, Google
  (15) has 67.7 % and Microsoft (10) 81.4 %; of the digits, Google (60) has 88.5 %, Microsoft (41)
  98.6 % and IBM (25) 98.3 %. Google never names two of the seven classes of faces (1 and 2).
- The free models are poor on their own (64-69 %; digits 92 %), and cost next to nothing, so that
  asking them first is nearly always worth it.

For each seed: 40 % to fit, 20 % to calibrate, 40 % to test. F is the best single service on fit
and calibrate. Topology (every chain in order of cost, and all jumps at once), combination, loss and
trade-off are chosen on fit and calibrate alone, for the learned and (`_myopic`) for the threshold
policy with equal freedom; test is only reported.

- `saving_<set>`: 1 - cost of the cheapest cascade without loss / cost of F. `difference_<set>`:
  its accuracy minus F's on the same inputs; positive is better.
- `accuracy_gain_<set>`: accuracy minus F's of the best cascade at F's price; `cost_ratio_<set>`:
  its cost over F's.
- `..._ci`: 95 % interval of the mean over seeds, which takes the seeds as independent; their test
  parts overlap, so it is too narrow. `..._range`: the lowest and the highest seed. `..._test_ci`:
  paired bootstrap over the test inputs of the first seed.
"""

import statistics
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import parser, report

from offramp._core.progress import progress_bar
from offramp.evaluation import Evaluation, Frontier, evaluate, sweep
from offramp.fitting.learned import fit_learned
from offramp.fitting.thresholds import fit_threshold
from offramp.policy import Candidate
from offramp.trace import Trace, from_predictions

SETS = ("IMDB", "WAIMAI", "FERPLUS", "AUDIOMNIST")
SHARES = {"fit": 0.4, "calibrate": 0.2, "test": 0.4}
LAMS = (0.0, *np.geomspace(2e-3, 1.0, 12).tolist())
LOSSES = ("negative_flips", "error")  # the second also rewards correcting F
BOOTSTRAP = 2000


@dataclass(frozen=True)
class Outcome:
    """What one policy does on the test inputs of one seed: without loss, and at F's price."""

    cheapest: Evaluation
    best: Evaluation


def load(path: Path) -> Trace:
    """The services of one set, the cheapest first, with every jump between them."""
    with np.load(path, allow_pickle=False) as held:
        rows = [row.split(",") for row in held["meta"][1:].tolist()]
        rows.sort(key=lambda row: float(row[2]))
        return from_predictions(
            {name: held[f"pred_{key}"] for key, name, *_ in rows},
            held["labels"],
            confidences={name: held[f"conf_{key}"] for key, name, *_ in rows},
            costs={name: float(per_10k) / 10_000 for _, name, per_10k, *_ in rows},
            unit="usd",
            classes=int(held["labels"].max()) + 1,
            edges="full",
        )


def frontier_of(divided: Trace, method: str, reference: str) -> Frontier:
    """All candidates of one policy, fitted on `fit`, measured on `calibrate` too."""
    part = divided.subset("fit")
    candidates: list[Candidate] = []
    if method == "threshold":
        candidates = fit_threshold(part, reference=reference)
    else:
        for loss in LOSSES:
            candidates += fit_learned(part, reference=reference, cost_weights=LAMS, loss=loss)
    return sweep(candidates, part, divided.subset("calibrate"), reference=reference, progress=False)


def one_seed(data: Path, name: str, seed: int) -> tuple[str, dict[str, Outcome]]:
    """F, and what the learned and the threshold policy do on the test inputs."""
    divided = load(data / f"{name}.npz").split_into(SHARES, seed=seed)  # type: ignore[arg-type]
    chosen_on = divided.take(divided.split != 3)
    reference = divided.stages[chosen_on.most_accurate()]
    test, bootstrap = divided.subset("test"), BOOTSTRAP if seed == 0 else 0
    found: dict[str, Outcome] = {}
    for method in ("learned", "threshold"):
        frontier = frontier_of(divided, method, reference)
        candidates = (
            frontier.cheapest(max_drop=0.0, delta=None).candidate,
            frontier.best(max_cost=1.0).candidate,
        )
        found[method] = Outcome(*(evaluate(test, s, bootstrap=bootstrap) for s in candidates))
    return reference, found


def figures(
    name: str, values: list[float], test_ci: tuple[float, float] | None, sign: float
) -> dict[str, Any]:
    """Mean over seeds with its intervals; `sign` turns that of the evaluation the same way."""
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    mean = statistics.fmean(values)
    return {
        name: mean,
        f"{name}_ci": [mean - half, mean + half],
        f"{name}_range": [min(values), max(values)],
        f"{name}_test_ci": sorted(sign * end for end in test_ci or ()),
    }


def summary(name: str, suffix: str, outcomes: list[Outcome]) -> dict[str, Any]:
    """The figures of one set and policy."""
    first, end = outcomes[0], f"{name}{suffix}"
    cheapest, best = [o.cheapest for o in outcomes], [o.best for o in outcomes]
    cost_ci = first.cheapest.cost_ratio_ci
    saved_ci = None if cost_ci is None else (cost_ci[0] - 1, cost_ci[1] - 1)
    return {
        **figures(f"saving_{end}", [1 - e.cost_ratio for e in cheapest], saved_ci, -1),
        **figures(
            f"difference_{end}",
            [-e.accuracy_drop for e in cheapest],
            first.cheapest.accuracy_drop_ci,
            -1,
        ),
        **figures(
            f"accuracy_gain_{end}",
            [-e.accuracy_drop for e in best],
            first.best.accuracy_drop_ci,
            -1,
        ),
        **figures(f"cost_ratio_{end}", [e.cost_ratio for e in best], first.best.cost_ratio_ci, 1),
        f"settings_{end}": dict(Counter(map(_described, cheapest)).most_common()),
        f"settings_accuracy_{end}": dict(Counter(map(_described, best)).most_common()),
    }


def _described(found: Evaluation) -> str:
    policy, loss = found.candidate.policy, found.candidate.parameters.get("loss")
    edges = [policy.topology.children(k) for k in policy.topology.active]
    branching = any(len(children) > 1 for children in edges)
    chain = "every jump" if branching else policy.topology.describe()
    return ", ".join(str(x) for x in (policy.combine, loss, chain) if x is not None)


def of_set(
    data: Path, name: str, seeds: Iterable[int], pool: ProcessPoolExecutor
) -> dict[str, Any]:
    """All figures of one set."""
    seeds = list(seeds)
    references: list[str] = []
    outcomes: dict[str, list[Outcome]] = {"learned": [], "threshold": []}
    with progress_bar(name, len(seeds), enabled=True) as step:
        for reference, found in pool.map(partial(one_seed, data, name), seeds):
            references.append(reference)
            for method, outcome in found.items():
                outcomes[method].append(outcome)
            step(1)
    return {
        f"best_single_{name}": dict(Counter(references).most_common()),
        f"best_single_accuracy_{name}": statistics.fmean(
            o.cheapest.reference_accuracy for o in outcomes["learned"]
        ),
        f"best_single_usd_per_10000_{name}": 10_000
        * statistics.fmean(o.cheapest.reference_cost for o in outcomes["learned"]),
        **summary(name, "", outcomes["learned"]),
        **summary(name, "_myopic", outcomes["threshold"]),
    }


def main() -> None:
    """All sets, seed by seed."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of the services' answers")
    options.add_argument("--seeds", type=int, default=20, help="random divisions")
    options.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    options.add_argument("--workers", type=int, default=1, help="processes")
    arguments = options.parse_args()
    result: dict[str, Any] = {"seeds": arguments.seeds, "shares": SHARES}
    with ProcessPoolExecutor(arguments.workers) as pool:
        for name in arguments.sets:
            result |= of_set(arguments.data, name, range(arguments.seeds), pool)
    report(arguments, result)


if __name__ == "__main__":
    main()
