"""Promises where every example differs are kept: of mean prices, of budgets, of graded losses.

A frontier is fitted once. Examples are drawn from a population on which the true risks are known,
and the limit stands just below what one candidate really does, so that choosing it, or anything
worse, breaks the promise. A twin that only measures breaks it far too often.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from offramp.evaluation import Choice, FrontierPoint, fit, replay
from offramp.evaluation import certify as certified
from offramp.evaluation.tally import Tally, costs_rounded_up, losses_rounded_up
from offramp.risk import conformal_limit
from offramp.trace import Trace, make_trace

DELTA, N = 0.1, 500


def unlikely(broken: int, draws: int) -> bool:
    """True if so many broken promises contradict that each is broken with probability delta."""
    return binomtest(broken, draws, DELTA, alternative="greater").pvalue < 1e-3


def population() -> Trace:
    """Losses between 0 and 1, and prices that are higher for hard examples."""
    trace = make_trace(8000, stages=2, seed=3, kind="losses")
    rng = np.random.default_rng(0)
    hard = 1 + 2 * trace.losses.double().numpy()
    spread = rng.gamma(4.0, 0.25, size=(len(trace), 2)) * hard
    return replace(trace, prices=torch.from_numpy(spread * np.array([1.0, 4.0])))


class World:
    """Some candidates, and what each does to every example of the population."""

    def __init__(self) -> None:
        trace = population().split_into({"fit": 1000, "calibrate": 7000}, seed=0)
        frontier = fit(trace, "threshold", confidences=["value_0"], progress=False)
        self.trace = trace.subset("calibrate")
        self.fallback, self.calibration = frontier.singles[1], frontier.calibration
        points = sorted((p for p in frontier.points if p.calibrate), key=lambda p: p.fit.cost_ratio)
        self.points = points[2:-2:3]
        f_loss = self.trace.loss(1)
        replays = [replay(self.trace, p.candidate.policy) for p in self.points]
        self.costs = np.stack([done.cost for done in replays])  # (k, n)
        self.losses = np.stack([done.loss for done in replays])
        self.differences = self.losses - f_loss

    def drawn(self, rows: np.ndarray) -> list[FrontierPoint]:
        """The points as they are where these examples were drawn."""

        def again(k: int, p: FrontierPoint) -> FrontierPoint:
            new = replace(
                p.calibrate,
                n=len(rows),
                cost_tally=Tally.of(costs_rounded_up(self.costs[k, rows])),
                loss_tally=Tally.of(losses_rounded_up(self.losses[k, rows])),
                difference_tally=Tally.of(losses_rounded_up(self.differences[k, rows])),
            )
            return replace(p, calibrate=new)

        return [again(k, p) for k, p in enumerate(self.points)]

    def true(self, risk: str, budget: float) -> np.ndarray:
        """What each candidate does in truth, `(k,)`, in the terms of the limit."""
        if risk == "cost":
            return self.costs.mean(axis=1) / self.points[0].fit.reference_cost
        if risk == "over_budget":
            return (self.costs > budget).mean(axis=1)
        of = {"error": self.losses, "accuracy_drop": self.differences}
        of["negative_flips"] = self.differences.clip(min=0)
        return of[risk].mean(axis=1)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


BUDGET = 12.0


def limit_of(world: World, risk: str) -> tuple[float, np.ndarray]:
    """A limit just below the risk of a candidate in the middle."""
    true = world.true(risk, BUDGET)
    return float(np.sort(true)[len(true) // 2]) - 1e-6, true


def promised(world: World, points: list[FrontierPoint], risk: str, limit: float) -> Choice:
    limits = {risk: {BUDGET: limit} if risk == "over_budget" else limit}
    calibration = replace(world.calibration, n=points[0].calibrate.n)
    return certified(points, world.fallback, calibration, limits, delta=DELTA)


def measured(world: World, rows: np.ndarray, risk: str, limit: float) -> int | None:
    """The twin: the candidate of the most risk within the limit, as measured on the examples."""
    few = World.__new__(World)
    few.points, few.costs = world.points, world.costs[:, rows]
    few.losses, few.differences = world.losses[:, rows], world.differences[:, rows]
    seen = few.true(risk, BUDGET)
    within = np.flatnonzero(seen <= limit)
    return int(within[seen[within].argmax()]) if len(within) else None


@pytest.mark.parametrize(
    "risk", ["cost", "over_budget", "error", "accuracy_drop", "negative_flips"]
)
def test_a_promise_is_broken_at_most_so_often_and_a_measurement_far_more(world, risk):
    limit, true = limit_of(world, risk)
    rng, draws = np.random.default_rng(7), 250
    broken = kept = naive = 0
    labels = [p.candidate.label for p in world.points]
    for _ in range(draws):
        rows = rng.integers(world.costs.shape[1], size=N)
        found = promised(world, world.drawn(rows), risk, limit)
        if found.guarantee is not None:
            kept += 1
            broken += true[labels.index(found.candidate.label)] > limit
        guess = measured(world, rows, risk, limit)
        naive += guess is not None and true[guess] > limit
    assert not unlikely(broken, draws)
    assert unlikely(naive, draws)
    assert kept > draws // 5  # it does promise something


def test_a_conformal_budget_is_exceeded_at_most_so_often():
    rng, draws = np.random.default_rng(0), 4000
    costs = rng.lognormal(size=(draws, 40))
    limits = np.array([conformal_limit(row[:-1], delta=DELTA) for row in costs])
    over = int((costs[:, -1] > limits).sum())
    assert not unlikely(over, draws)
    assert over > draws * DELTA / 2
    plain = np.quantile(costs[:, :-1], 1 - DELTA, axis=1, method="lower")  # the twin
    assert unlikely(int((costs[:, -1] > plain).sum()), draws)
