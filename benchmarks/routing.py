"""Losses in place of labels, on public correctness of prediction services example by example.

Each service's answers become what they lost, 0 or 1, and the confidence it stated; labels and
classes are forgotten. Then, for each set:

- `same_front_<set>`: largest difference of loss, at equal cost or less, between the threshold
  frontier of the losses and that of the labels (pairs of services, threshold on the largest
  probability), and the other way round. Where a service states confidences of 0 or 1, labels round
  them to ties that losses keep apart, so it need not be 0 to the last digit.
- `cost_<set>`: mean cost over the reference's of what `cheapest(max_drop=0.01)` certifies on
  losses, over draws of calibration examples. `certified_<set>`: share of draws in which it
  certifies something. `broken_<set>`: share in which the certified candidate loses more than it
  promises, which may be 0.1 at most. `..._budget`: the same of a certificate that promises too that
  at most one example in five costs more than 1.2 times what the reference costs.
- `..._graded`: the same of losses between 0 and 1: 0.3 for a wrong answer, plus what a stage's
  confidence was off, so that the bets on graded losses are tested on real answers.

40 % of the examples to fit; of the rest, the population on which true losses are known, `n`
calibration examples are drawn again and again with replacement.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import parser, report
from selection_services import SETS
from selection_services import load as load_services

import offramp
from offramp._core.progress import progress_bar
from offramp.evaluation import replay
from offramp.evaluation.results import FrontierPoint
from offramp.trace import from_losses

MAX_DROP, DELTA = 0.01, 0.1
BUDGET, OVER = 1.2, 0.2  # times the reference's cost; share of examples that may cost more
_DRAWN = 10**9  # ids of drawn examples begin there


def without_labels(trace: offramp.Trace, *, graded: bool = False) -> offramp.Trace:
    """What the services' answers lost, and what they said of their confidence."""
    lost = np.stack([trace.wrong(k) for k in range(len(trace.topology))], axis=1)
    sure = trace.confidence.double().numpy()  # type: ignore[union-attr]
    losses = 0.3 * lost + 0.7 * (1 - lost - sure) ** 2 if graded else lost
    return from_losses(
        losses, confidences=sure, names=trace.stages, costs=trace.costs, ids=trace.ids, edges="full"
    )


def gap(one: offramp.Frontier, other: offramp.Frontier) -> float:
    """The most that the second loses more at a cost of the first or less."""
    here, there = (
        [(p.fit.cost_ratio, p.fit.accuracy_drop) for p in (*f.points, *f.singles)]
        for f in (one, other)
    )
    return max(min(d for c, d in there if c <= cost + 1e-9) - drop for cost, drop in here)


class Population:
    """A fitted frontier, and what its candidates do to examples that it has not seen."""

    def __init__(self, trace: offramp.Trace) -> None:
        divided = trace.split_into({"fit": 0.4, "calibrate": 0.6}, seed=0)
        self.fit, self.rest = divided.subset("fit"), divided.subset("calibrate")
        frontier = offramp.fit(divided, "threshold", progress=False)
        points = sorted((p for p in frontier.points if p.calibrate), key=lambda p: p.fit.cost_ratio)
        self.frontier = replace(frontier, points=tuple(points[:: max(1, len(points) // 40)]))
        f = self.rest.topology.index(frontier.reference)
        self.budget, self.f_loss = BUDGET * self.rest.mean_cost(f), self.rest.loss(f)

    def truth(self, point: FrontierPoint) -> tuple[float, float]:
        """True loss against the reference, and share of examples that cost more than the budget."""
        done = replay(self.rest, point.candidate.policy)
        over = done.cost > self.budget * (1 + 1e-9)
        return float((done.loss - self.f_loss).mean()), float(over.mean())

    def drawn(self, n: int, rng: np.random.Generator) -> offramp.Frontier:
        """The frontier calibrated on examples drawn with replacement."""
        rows = torch.from_numpy(rng.integers(len(self.rest), size=n))
        part = replace(
            self.rest,
            labels=self.rest.labels[rows],
            losses=self.rest.losses[rows],  # type: ignore[index]
            features=self.rest.features[rows],  # type: ignore[index]
            ids=_DRAWN + np.arange(n),
            split=None,
        )
        return self.frontier.calibrated_on(part, fit=self.fit)


def promises(world: Population, draws: int, n: int, suffix: str) -> dict[str, Any]:
    """How often a promise is made and broken, and what it costs."""
    rng = np.random.default_rng(0)
    drawn = [world.drawn(n, rng) for _ in range(draws)]
    asked: dict[str, dict[str, Any]] = {
        "": {},
        "_budget": {"max_request_cost": world.budget, "over_budget": OVER},
    }
    result: dict[str, Any] = {}
    for name, budget in asked.items():
        found = [f.cheapest(max_drop=MAX_DROP, delta=DELTA, **budget) for f in drawn]
        truths = [world.truth(c.point) for c in found]
        broken = [
            c.guarantee is not None and (lost > MAX_DROP or (bool(budget) and over > OVER))
            for c, (lost, over) in zip(found, truths, strict=True)
        ]
        result |= {
            f"cost_{suffix}{name}": float(np.mean([c.fit.cost_ratio for c in found])),
            f"certified_{suffix}{name}": float(np.mean([c.guarantee is not None for c in found])),
            f"broken_{suffix}{name}": float(np.mean(broken)),
        }
    return result


def of_set(path: Path, name: str, draws: int, n: int) -> dict[str, Any]:
    """All figures of one set."""
    labeled = load_services(path)
    lost = without_labels(labeled)
    pairs = [lost.topology.chain([j, k]) for j, k in lost.topology.edges]
    one_at_a_time = {"combines": ["last"], "topologies": pairs, "grid": 200, "progress": False}
    fronts = [
        offramp.fit(labeled, "threshold", confidences=["max_prob"], **one_at_a_time),
        offramp.fit(lost, "threshold", confidences=["value_0"], **one_at_a_time),
    ]
    return {
        f"same_front_{name}": max(gap(*fronts), gap(*reversed(fronts))),
        **promises(Population(lost), draws, n, name),
        **promises(Population(without_labels(labeled, graded=True)), draws, n, f"{name}_graded"),
    }


def main() -> None:
    """All sets."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of the services' answers")
    options.add_argument("--draws", type=int, default=100, help="draws of calibration examples")
    options.add_argument("--n", type=int, default=2000, help="calibration examples of each")
    options.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    arguments = options.parse_args()
    result: dict[str, Any] = {"draws": arguments.draws, "n": arguments.n}
    with progress_bar("Sets", len(arguments.sets), enabled=True) as step:
        for name in arguments.sets:
            path = arguments.data / f"{name}.npz"
            result |= of_set(path, name, arguments.draws, arguments.n)
            step(1)
    report(arguments, result)


if __name__ == "__main__":
    main()
