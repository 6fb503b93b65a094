"""What could be promised of a candidate by itself is where its certificate begins to hold."""

from dataclasses import replace

import numpy as np
import pytest

import offramp
from offramp._core.errors import InputError
from offramp.evaluation import drop_bound, evaluate, promisable
from offramp.evaluation.risk_tests import risk_p_values
from offramp.policy import Candidate
from offramp.risk import paired_p_values
from offramp.trace import make_trace

DELTA = 0.1


@pytest.fixture(scope="module")
def frontier():
    trace = make_trace(1800, accuracies=[0.85, 0.95], seed=4)
    trace = trace.split_into({"fit": 900, "calibrate": 900}, seed=0)
    return offramp.fit(trace, "threshold", progress=False, combines=["last"])


def test_the_test_holds_at_the_bound_and_not_below_it(frontier):
    points = [p for p in frontier.pareto if p.calibrate is not None][::4]
    assert len(points) >= 4
    for point in points:
        bound = drop_bound(point.calibrate, delta=DELTA)
        asked = {"risk": "accuracy_drop", "delta": DELTA}
        assert risk_p_values([point.calibrate], max_drop=bound, **asked)[0] <= DELTA
        if bound > 2e-5:
            below = risk_p_values([point.calibrate], max_drop=bound - 1e-5, **asked)[0]
            assert below > DELTA
        assert bound > point.calibrate.accuracy_drop


def test_it_is_the_inverse_of_the_paired_test(frontier):
    """The slow way: the first limit of a fine grid that the test promises."""
    found = frontier.pareto[len(frontier.pareto) // 2].calibrate
    lost = round(found.n * found.negative_flips)
    won = round(found.n * (found.negative_flips - found.accuracy_drop))
    grid = np.arange(1, 400) / 2000
    p = [
        paired_p_values(
            np.array([lost]), np.array([won]), found.n, max_difference=b, slack=0.01 * DELTA
        )[0]
        for b in grid
    ]
    first = grid[int(np.argmax(np.array(p) <= DELTA))]
    assert drop_bound(found, delta=DELTA) == pytest.approx(first, abs=1 / 2000)


@pytest.mark.parametrize("limit", [0.02, 0.04, 0.08])
def test_what_is_promised_could_be_promised_by_itself(frontier, limit):
    choice = frontier.cheapest(max_drop=limit, delta=DELTA)
    assert choice.guarantee is not None
    assert drop_bound(choice.calibrate, delta=DELTA) <= limit + 1e-5


def test_where_everything_is_lost_nothing_can_be_promised(frontier):
    found = frontier.pareto[0].calibrate
    lost = replace(found, accuracy_drop=1.0, negative_flips=1.0)
    assert drop_bound(lost, delta=DELTA) == 1.0


def test_more_certainty_promises_less(frontier):
    found = frontier.pareto[3].calibrate
    bounds = [drop_bound(found, delta=delta) for delta in (0.3, 0.1, 0.01)]
    assert bounds == sorted(bounds)
    with pytest.raises(InputError, match=r"delta must be in \(0, 1\), got 10"):
        drop_bound(found, delta=10)


def test_of_points_those_with_counts_on_calibrate_are_taken(frontier):
    found = promisable(frontier.pareto, delta=DELTA)
    costs = [one.cost_ratio for one in found]
    assert len(found) == len(frontier.pareto)
    assert costs == sorted(costs)
    bare = [replace(p, calibrate=None) for p in frontier.pareto]
    assert promisable(bare, delta=DELTA) == ()
    losses = make_trace(300, stages=2, seed=1, kind="losses")
    alone = Candidate.single(losses.topology, "stage0", reference="stage1")
    graded = replace(frontier.pareto[0], calibrate=evaluate(losses, alone, bootstrap=0))
    assert promisable([graded], delta=DELTA) == ()
