"""Certificates of further risks are wrong no more often than they say, by repetition.

Cost, recall of each class, weighted classes, several risks at once. As in `test_certificates`: a
promise is broken where a candidate whose risk is above its limit passes; the share of broken
promises must not be above delta, by a binomial test at 1e-3; deliberately broken twins fail the
same test.
"""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from offramp.evaluation import Evaluation, FrontierPoint, Limit, evaluate, fit
from offramp.evaluation.cost_tests import CostTest
from offramp.evaluation.risk_tests import CountTest, RecallTest, WeightedTest
from offramp.risk import (
    Passed,
    Range,
    counted_p_value,
    fixed_sequence,
    paired_p_values,
    several_risks,
)
from offramp.trace import make_trace

DELTA = 0.1
FAST, FULL = 400, 6000
DRAWS = pytest.mark.parametrize(
    "draws", [FAST, pytest.param(FULL, marks=pytest.mark.statistical)], ids=["fast", "full"]
)


def unlikely(broken: int, draws: int, level: float = DELTA) -> bool:
    """True if so many broken promises contradict that each is broken with probability `level`."""
    return binomtest(broken, draws, level, alternative="greater").pvalue < 1e-3


def broken_walks(p_values, too_risky) -> tuple[int, int]:
    """How many walks end with a promise, and with one that is broken; `(draws, k)` and `(k,)`."""
    made = broken = 0
    for row in p_values:
        found = fixed_sequence(row, delta=DELTA)
        if isinstance(found, Passed):
            made += 1
            broken += bool(too_risky[: found.index + 1].any())
    return made, broken


@pytest.fixture(scope="module")
def template() -> Evaluation:
    """An evaluation to put counts into."""
    trace = make_trace(200, stages=3, classes=3, seed=0)
    return evaluate(trace, fit(trace, "random", progress=False).points[-1].candidate, bootstrap=0)


def points(template, before, after) -> list[FrontierPoint]:
    """A point for each of `after`, what evaluations hold; all were fitted on `before`."""
    fitted = replace(template, **before)
    return [
        FrontierPoint(candidate=template.candidate, fit=fitted, calibrate=replace(template, **held))
        for held in after
    ]


# The cost: bets on the costs of paths, or an exact test where there are two.

COSTS = (0.2, 0.5, 0.9, 1.4)
BUDGET = 0.5


def paths_of(mean: float, costs) -> np.ndarray:
    """Probabilities of paths with this mean cost: the cheapest, and all others alike."""
    others = float(np.mean(costs[1:]))
    rest = (mean - costs[0]) / (others - costs[0])
    return np.array([1 - rest, *[rest / (len(costs) - 1)] * (len(costs) - 1)])


def drawn_paths(means, n, draws, costs, seed=0) -> np.ndarray:
    """Counts of paths, `(draws, k, p)`; candidates share the luck of each example."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum([paths_of(mean, costs) for mean in means], axis=1)  # (k, p)
    counts = np.empty((draws, len(means), len(costs)), dtype=np.int64)
    first, last = np.zeros((len(means), 1)), np.full((len(means), 1), n)
    for row in counts:
        luck = np.sort(rng.random(n))
        reached = np.searchsorted(luck, ends[:, :-1].ravel()).reshape(len(means), -1)
        row[:] = np.diff(np.hstack([first, reached, last]))
    return counts


def cost_p_values(template, counts, costs, fitted) -> np.ndarray:
    """By the shipped test, `(draws, k)`; the bets are tuned on `fitted` counts of paths."""

    def held(c):
        n = int(c.sum())
        return {"n": n, "path_share": tuple((c / n).tolist()), "path_cost_ratio": tuple(costs)}

    after = [held(c) for row in counts for c in row]
    test = CostTest(limit=Limit(risk="cost", at_most=BUDGET), delta=DELTA)
    found = test.p_values(points(template, held(np.asarray(fitted)), after))
    return found.reshape(counts.shape[:2])


COST_WORLDS = {
    "just above the limit": ([0.5005], 300),
    "a narrow grid across the limit": (np.linspace(0.45, 0.55, 11), 300),
    "ties": ([0.45, 0.45, 0.5005, 0.5005, 0.6], 200),
    "tiny n": ([0.21, 0.501, 0.7], 25),
    "all safe": ([0.21, 0.3, 0.35], 300),
    "none safe": ([0.501, 0.6], 200),
}


@DRAWS
@pytest.mark.parametrize("costs", [COSTS, COSTS[:3:2]], ids=["four paths", "two paths"])
@pytest.mark.parametrize("name", COST_WORLDS)
def test_a_promised_cost_is_exceeded_with_probability_delta_at_most(template, name, costs, draws):
    means, n = COST_WORLDS[name]
    draws //= 2 if len(means) > 3 else 1
    counts = drawn_paths(means, n, draws, costs)
    fitted = np.rint(400 * paths_of(0.45, costs)).astype(int)
    p_values = cost_p_values(template, counts, costs, fitted)
    made, broken = broken_walks(p_values, np.asarray(means) > BUDGET)
    assert not unlikely(broken, draws), f"{broken} of {draws}"
    if name == "all safe":
        assert made > 0.95 * draws


@DRAWS
@pytest.mark.parametrize("fitted", [(400, 0, 0, 0), (0, 0, 0, 3), (1, 1, 1, 1)])
def test_a_misleading_fit_makes_no_promise_false(template, fitted, draws):
    counts = drawn_paths([0.5005], 200, draws, COSTS, seed=2)
    p_values = cost_p_values(template, counts, COSTS, fitted)
    assert not unlikely(int((p_values <= DELTA).sum()), draws)


RARE = (0.2, 0.3, 20.0)  # one path is very expensive, and few take it
RARELY = [0.5, 0.484, 0.016]


@DRAWS
def test_a_dear_path_that_was_not_seen_is_reckoned_with(template, draws):
    """The broken twin takes losses to be as high as those that were seen."""
    assert np.dot(RARE, RARELY) > BUDGET
    counts = np.random.default_rng(3).multinomial(60, RARELY, size=draws)
    p_values = cost_p_values(template, counts[:, None], RARE, np.array([200, 194, 6]))
    assert not unlikely(int((p_values <= DELTA).sum()), draws)
    twin = []
    for c in counts:
        seen = np.flatnonzero(c)
        values = np.array(RARE)[seen]
        within = Range(low=0.0, high=values.max(), limit=BUDGET)
        bet = 0.5 * within.highest_bet if within.rescaled_limit < 1 else 0.0
        twin.append(counted_p_value(values, c[seen], within=within, bet=bet))
    assert unlikely(int((np.array(twin) <= DELTA).sum()), draws)


# The recall of each class.

CLASS_LIMIT = 0.08


def drawn_classes(losses, corrections, sizes, draws, seed=0) -> np.ndarray:
    """Outcomes of the examples of each class, `(draws, 4, c)`; classes are independent."""
    rng = np.random.default_rng(seed)
    tables = np.empty((draws, 4, len(sizes)), dtype=np.int64)
    for y, (lost, won, size) in enumerate(zip(losses, corrections, sizes, strict=True)):
        shares = [0.9 - lost, won, lost, 0.1 - won]
        tables[:, :, y] = rng.multinomial(size, shares, size=draws)
    return tables


def recall_points(template, tables):
    after = [{"n": int(t.sum()), "class_outcomes": tuple(map(tuple, t.tolist()))} for t in tables]
    return points(template, after[0], after)


def recall_p(template, tables) -> np.ndarray:
    test = RecallTest(
        limit=Limit(risk="recall", at_most=CLASS_LIMIT), delta=DELTA,
        classes=tuple(range(tables.shape[2])),
    )  # fmt: skip
    return test.p_values(recall_points(template, tables))


def pooled_p(template, tables) -> np.ndarray:
    """The broken twin: the classes' counts are added up."""
    lost, won = tables[:, 2].sum(axis=1), tables[:, 1].sum(axis=1)
    n = int(tables[0].sum())
    return paired_p_values(lost, won, n, max_difference=CLASS_LIMIT, slack=DELTA / 100)


CLASS_WORLDS = {
    "one class just above": ([0.0805, 0.0, 0.01], [0.0, 0.0, 0.05], [200, 300, 100]),
    "every class just above": ([0.0805] * 3, [0.0] * 3, [200] * 3),
    "a rare class": ([0.02, 0.02, 0.09], [0.0] * 3, [300, 300, 40]),
    "with corrections": ([0.1305, 0.0, 0.0], [0.05, 0.0, 0.0], [250, 100, 100]),
    "one example": ([0.0, 0.0, 0.2], [0.0] * 3, [300, 300, 1]),
}
POOLED = {"one class just above", "a rare class", "with corrections", "one example"}


@DRAWS
@pytest.mark.parametrize("name", CLASS_WORLDS)
def test_a_promised_recall_is_missed_with_probability_delta_at_most(template, name, draws):
    tables = drawn_classes(*CLASS_WORLDS[name], draws)
    broken = int((recall_p(template, tables) <= DELTA).sum())
    assert not unlikely(broken, draws), f"{broken} of {draws}"
    if name in POOLED:
        assert unlikely(int((pooled_p(template, tables) <= DELTA).sum()), draws)


def test_a_recall_is_promised_where_it_can_be(template):
    tables = drawn_classes([0.0, 0.01, 0.02], [0.0, 0.0, 0.01], [300, 300, 300], FAST)
    assert int((recall_p(template, tables) <= DELTA).sum()) > 0.95 * FAST


# Classes that become more or less frequent.

SHARES = np.array([0.5, 0.3, 0.2])
WEIGHTS = (0.4, 1.0, 2.5)  # their mean is 1
SHIFT_LIMIT = 0.08


def drawn_shift(losses, corrections, n, draws, seed=0) -> np.ndarray:
    """Outcomes of `n` examples, `(draws, 4, c)`; also how many of each class is luck."""
    lost, won = np.array(losses), np.array(corrections)
    shares = np.stack([0.9 - lost, won, lost, 0.1 - won]) * SHARES  # (4, c)
    drawn = np.random.default_rng(seed).multinomial(n, shares.ravel(), size=draws)
    return drawn.reshape(draws, 4, -1)


def shift_p(template, tables, risk, fitted=None) -> np.ndarray:
    test = WeightedTest(limit=Limit(risk=risk, at_most=SHIFT_LIMIT), delta=DELTA, weights=WEIGHTS)
    before = tables[0] if fitted is None else fitted
    held = {"n": int(before.sum()), "class_outcomes": tuple(map(tuple, before.tolist()))}
    after = [{"n": int(t.sum()), "class_outcomes": tuple(map(tuple, t.tolist()))} for t in tables]
    return test.p_values(points(template, held, after))


def target(losses, corrections, risk) -> float:
    """The risk once the classes have their new shares."""
    lost = np.array(losses) - (np.array(corrections) if risk == "accuracy_drop" else 0)
    if risk == "error":
        lost = np.array(losses) + 0.1 - np.array(corrections)
    return float(lost @ (SHARES * WEIGHTS))


SHIFT_WORLDS = {
    "the heavy class loses": ("accuracy_drop", [0.0, 0.0, 0.161], [0.0] * 3, 500),
    "all lose": ("accuracy_drop", [0.0805] * 3, [0.0] * 3, 500),
    "with corrections": ("accuracy_drop", [0.05, 0.05, 0.241], [0.05, 0.05, 0.08], 500),
    "new errors": ("negative_flips", [0.02, 0.02, 0.141], [0.0] * 3, 500),
    "tiny n": ("negative_flips", [0.0, 0.0, 0.2], [0.0] * 3, 30),
    "errors": ("error", [0.0, 0.0, 0.0], [0.02, 0.02, 0.019], 400),
}


@DRAWS
@pytest.mark.parametrize("name", SHIFT_WORLDS)
def test_under_known_weights_promises_are_broken_with_probability_delta_at_most(
    template, name, draws
):
    risk, losses, corrections, n = SHIFT_WORLDS[name]
    assert SHIFT_LIMIT < target(losses, corrections, risk) < 1.3 * SHIFT_LIMIT
    tables = drawn_shift(losses, corrections, n, draws)
    fitted = drawn_shift(losses, corrections, 400, 1, seed=9)[0]
    broken = int((shift_p(template, tables, risk, fitted) <= DELTA).sum())
    assert not unlikely(broken, draws), f"{broken} of {draws}"


def test_under_known_weights_promises_are_made_where_they_can_be(template):
    tables = drawn_shift([0.01, 0.01, 0.02], [0.0, 0.0, 0.02], 1500, FAST)
    fitted = drawn_shift([0.01, 0.01, 0.02], [0.0, 0.0, 0.02], 800, 1, seed=9)[0]
    assert int((shift_p(template, tables, "accuracy_drop", fitted) <= DELTA).sum()) > 0.9 * FAST


def test_weights_that_are_left_out_would_be_caught(template):
    """The broken twin: an exact test of the shares as they are now."""
    _, losses, corrections, n = SHIFT_WORLDS["the heavy class loses"]
    tables = drawn_shift(losses, corrections, n, FAST)
    lost, won = tables[:, 2].sum(axis=1), tables[:, 1].sum(axis=1)
    p = paired_p_values(lost, won, n, max_difference=SHIFT_LIMIT, slack=DELTA / 100)
    assert unlikely(int((p <= DELTA).sum()), FAST)


def test_a_limit_that_is_not_rescaled_with_the_losses_would_be_caught():
    """The broken twin: losses are divided by the largest weight, the limit is not."""
    _, losses, corrections, n = SHIFT_WORLDS["all lose"]
    tables = drawn_shift(losses, corrections, n, FAST)
    kinds = np.outer([0.0, -1.0, 1.0, 0.0], WEIGHTS) / max(WEIGHTS)
    within = Range(low=-1.0, high=1.0, limit=SHIFT_LIMIT)
    p = [counted_p_value(kinds.ravel(), t.ravel(), within=within, bet=0.5) for t in tables]
    assert unlikely(int((np.array(p) <= DELTA).sum()), FAST)


# Costs and disagreements of classes that become more or less frequent.

DEAR = np.array(
    [0.05, 0.1, 0.35]
)  # how often a class takes the most expensive path; as often the second
DIFFER = np.array([0.02, 0.05, 0.1205])


def shifted_points(template, n, draws):
    """Points, and the mean cost and disagreement once the classes have their new shares."""
    ways, costs = np.stack([1 - 2 * DEAR, DEAR, DEAR]), np.array(COSTS[:3])  # (p, c), (p,)
    rng = np.random.default_rng(8)

    def held(size):
        by_path = rng.multinomial(size, (ways * SHARES).ravel()).reshape(3, -1)
        of_class = by_path.sum(axis=0)
        differing = rng.binomial(of_class, DIFFER)
        return {
            "n": size,
            "path_share": tuple((by_path.sum(axis=1) / size).tolist()),
            "path_cost_ratio": COSTS[:3],
            "class_paths": tuple(map(tuple, by_path.tolist())),
            "class_outcomes": (tuple(of_class.tolist()), *[(0, 0, 0)] * 3),
            "class_disagreements": tuple(differing.tolist()),
            "disagreement": int(differing.sum()) / size,
        }

    made = points(template, held(600), [held(n) for _ in range(draws)])
    future = SHARES * WEIGHTS
    return made, float(costs @ ways @ future), float(DIFFER @ future)


@DRAWS
@pytest.mark.parametrize("n", [40, 400])
def test_a_shifted_risk_is_exceeded_with_probability_delta_at_most(template, n, draws):
    made, cost, disagreement = shifted_points(template, n, draws)
    for risk, truth in (("cost", cost), ("disagreement", disagreement)):
        limit = Limit(risk=risk, at_most=truth - 1e-4)
        test = WeightedTest(limit=limit, delta=DELTA, weights=WEIGHTS)
        assert not unlikely(int((test.p_values(made) <= DELTA).sum()), draws)
        if n == 400:  # the twin: the shares of classes as they are now
            plain = CostTest if risk == "cost" else CountTest
            now = plain(limit=limit, delta=DELTA).p_values(made)
            assert unlikely(int((now <= DELTA).sum()), draws)


def test_a_shifted_cost_or_disagreement_is_promised_where_it_can_be(template):
    made, cost, disagreement = shifted_points(template, 1500, FAST)
    for risk, truth in (("cost", cost), ("disagreement", disagreement)):
        within = Limit(risk=risk, at_most=1.75 * truth)
        p = WeightedTest(limit=within, delta=DELTA, weights=WEIGHTS).p_values(made)
        assert int((p <= DELTA).sum()) > 0.9 * FAST


# Several risks at once.


def three_risks(template, draws, cheap, lost):
    """P-values of cost, excess and disagreement of one candidate, `(3, draws)`.

    What leaves early saves and may be lost or differ; so the risks are tied to one another.
    """
    n, rng = 300, np.random.default_rng(4)
    # leaves early and is lost; leaves early and differs only; leaves early and agrees; goes on
    shares = [lost, 0.05, cheap - lost - 0.05, 1 - cheap]
    counts = rng.multinomial(n, shares, size=draws)
    early = counts[:, :3].sum(axis=1)
    after = [
        {
            "n": n,
            "path_share": (e / n, 1 - e / n),
            "path_cost_ratio": (0.2, 1.2),
            "negative_flips": c[0] / n,
            "disagreement": (c[0] + c[1]) / n,
        }
        for e, c in zip(early.tolist(), counts.tolist(), strict=True)
    ]
    held = points(template, after[0], after)
    limits = {"cost": 0.5, "negative_flips": 0.06, "disagreement": 0.12}
    tests = [
        (CostTest if risk == "cost" else CountTest)(limit=Limit(risk=risk, at_most=b), delta=DELTA)
        for risk, b in limits.items()
    ]
    risks = {
        "cost": 0.2 * cheap + 1.2 * (1 - cheap),
        "negative_flips": lost,
        "disagreement": lost + 0.05,
    }
    broken = any(risks[name] > b for name, b in limits.items())
    return np.stack([test.p_values(held) for test in tests]), broken


@DRAWS
@pytest.mark.parametrize(
    ("cheap", "lost"), [(0.6995, 0.01), (0.95, 0.0601), (0.6995, 0.0601), (0.95, 0.0701)]
)
def test_several_promises_are_all_kept_with_probability_one_minus_delta(
    template, cheap, lost, draws
):
    p_values, broken = three_risks(template, draws, cheap, lost)
    assert broken
    assert not unlikely(int((several_risks(p_values) <= DELTA).sum()), draws)
    if (cheap, lost) != (0.6995, 0.0601):  # the twin: one risk that passes is enough
        assert unlikely(int((p_values.min(axis=0) <= DELTA).sum()), draws)


def test_several_promises_are_made_where_they_can_be(template):
    p_values, broken = three_risks(template, FAST, cheap=0.95, lost=0.02)
    assert not broken
    assert int((several_risks(p_values) <= DELTA).sum()) > 0.9 * FAST
