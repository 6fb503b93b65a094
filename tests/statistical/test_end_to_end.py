"""What `Frontier.cheapest` promises unasked holds, from a population to the chosen candidate.

Policies are fitted once. Every example of a population is replayed under every candidate, so their
true risks are known and their outcomes go together as they really do. Calibrations are drawn from
it with replacement; a promise is broken where the true risk of what is returned exceeds the limit.
The share of broken promises must not be above delta, by a binomial test at 1e-3, and deliberately
broken twins fail the same test.
"""

import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.stats import binomtest

from offramp.evaluation import (
    Calibration,
    Frontier,
    certify,
    evaluate_all,
    fit,
    replay,
)
from offramp.evaluation.certify import fixed_sequence
from offramp.evaluation.frontier import DELTA
from offramp.evaluation.judging import mark_fronts, optimism
from offramp.risk import NonePassed
from offramp.trace import make_trace

RISKS = ("accuracy_drop", "negative_flips")
FAST, FULL = 60, 1000
DRAWS = pytest.mark.parametrize(
    "draws", [FAST, pytest.param(FULL, marks=pytest.mark.statistical)], ids=["fast", "full"]
)

#: Accuracies of the stages, outputs, limit, and examples of one calibration.
LEARNED = "learned policies"  # the others are of thresholds
WORLDS = {
    "three stages": ((0.7, 0.82, 0.92), "logits", 0.04, 500),
    "labels with a confidence": ((0.75, 0.9), "labels", 0.04, 500),
    "tiny n": ((0.75, 0.9), "logits", 0.1, 30),
    "all safe": ((0.895, 0.9), "logits", 0.06, 400),
    "hardly any safe": ((0.5, 0.55, 0.93), "logits", 0.01, 300),
    "seldom different": ((0.97, 0.985), "logits", 0.01, 400),
    LEARNED: ((0.7, 0.82, 0.92), "logits", 0.04, 500),
}


@dataclass(frozen=True)
class World:
    """Candidates of a frontier, and their outcomes on a population: rows are candidates."""

    frontier: Frontier
    accuracy_drop: np.ndarray  # (k, n) in -1, 0, 1
    limit: float
    n: int

    def risk(self, name):
        """True risk of each candidate, by its label."""
        values = self.accuracy_drop if name == "accuracy_drop" else self.accuracy_drop.clip(min=0)
        everything = [*self.frontier.points, *self.frontier.singles]
        return dict(zip((p.candidate.label for p in everything), values.mean(axis=1), strict=True))


def spread(points, count=8):
    """A few of many points, from the cheapest to the most expensive: steps that are wide apart."""
    order = sorted(points, key=lambda p: p.fit.cost_ratio)
    return [order[i] for i in np.unique(np.linspace(0, len(order) - 1, count).astype(int))]


def built(name):
    """Fitted on 400 examples; the population has 4,000."""
    accuracies, kind, limit, n = WORLDS[name]
    trace = make_trace(4400, accuracies=accuracies, kind=kind, seed=5)
    divided = trace.split_into({"fit": 400, "calibrate": 4000}, seed=0)
    policy = "learned" if name == LEARNED else "threshold"
    frontier = fit(divided.subset("fit"), policy, combines=["last"], progress=False)
    population = divided.subset("calibrate")
    singles = list(frontier.singles)
    _, wanted = mark_fronts([*frontier.points, *singles])
    points = spread([p for p, on in zip(frontier.points, wanted, strict=False) if on])
    candidates = [p.candidate for p in (*points, *singles)]
    judged = [
        replace(p, calibrate=e)
        for p, e in zip((*points, *singles), evaluate_all(population, candidates), strict=True)
    ]
    wrong = np.array([replay(population, s.policy).wrong for s in candidates])
    f_wrong = population.wrong(population.topology.index(frontier.reference))
    held = replace(
        frontier,
        points=tuple(judged[: len(points)]),
        singles=tuple(judged[len(points) :]),
        calibration=replace(Calibration.of(population), n=n),
    )
    return World(held, wrong.astype(np.int64) - f_wrong, limit, n)


@pytest.fixture(scope="module")
def world():
    """Worlds by name, each built once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = built(name)
        return made[name]

    return get


def drawn(world, rng, *, ordered_on="fit"):
    """The frontier with the evaluations of one calibration."""
    size = world.accuracy_drop.shape[1]
    counts = rng.multinomial(world.n, np.full(size, 1 / size))
    lost, won = (world.accuracy_drop == 1) @ counts, (world.accuracy_drop == -1) @ counts

    def seen(point, k):
        found = replace(
            point.calibrate,
            n=world.n,
            negative_flips=float(lost[k] / world.n),
            accuracy_drop=float((lost[k] - won[k]) / world.n),
        )
        return replace(point, calibrate=found, fit=point.fit if ordered_on == "fit" else found)

    points, singles = world.frontier.points, world.frontier.singles
    return replace(
        world.frontier,
        points=tuple(seen(p, k) for k, p in enumerate(points)),
        singles=tuple(seen(p, k) for k, p in enumerate(singles, start=len(points))),
    )


def promised(frontier, limit, risk):
    """What a user gets who says nothing of `delta`."""
    return frontier.cheapest(max_drop=limit, risk=risk)


def measured(frontier, limit, risk):
    """The broken twin: the cheapest within the limit on the same examples, taken for a promise."""
    return frontier.cheapest(max_drop=limit, risk=risk, margin=0.0, delta=None)


def credited(frontier, limit, risk):
    """The broken twin: the optimism of the fit is granted to the limit as well."""
    gained = max(optimism(p.fit) for p in frontier.points)
    return frontier.cheapest(max_drop=limit + gained, risk=risk)


def broken_promises(world, risk, draws, *, limit=None, ordered_on="fit", seed=0, choose=promised):
    """How many candidates were promised, and how many of them break it."""
    rng = np.random.default_rng(seed)
    truth = world.risk(risk)
    limit = world.limit if limit is None else limit
    made = broken = 0
    for _ in range(draws):
        frontier = drawn(world, rng, ordered_on=ordered_on)
        found = choose(frontier, limit, risk)
        if found.refused is None:
            made += 1
            broken += truth[found.candidate.label] > limit + 1e-12
    return made, int(broken)


def hard_limits(world, risk):
    """Limits that one candidate is just not within."""
    risks = sorted(value for value in world.risk(risk).values() if 0.02 < value < 0.06)
    return risks[0] - 1e-4, risks[len(risks) // 2] - 1e-4


def unlikely(broken, draws):
    """True if so many broken promises contradict that each is broken with chance `DELTA`."""
    return binomtest(broken, draws, DELTA, alternative="greater").pvalue < 1e-3


@DRAWS
@pytest.mark.parametrize("risk", RISKS)
@pytest.mark.parametrize("name", ["three stages", "tiny n", "hardly any safe", LEARNED])
def test_promises_are_broken_with_probability_delta_at_most(world, name, risk, draws):
    _, broken = broken_promises(world(name), risk, draws)
    assert not unlikely(broken, draws), f"{broken} of {draws}"


@pytest.mark.statistical
@pytest.mark.parametrize("risk", RISKS)
@pytest.mark.parametrize("name", ["labels with a confidence", "all safe", "seldom different"])
def test_promises_of_further_worlds_hold_as_well(world, name, risk):
    _, broken = broken_promises(world(name), risk, FULL)
    assert not unlikely(broken, FULL), f"{broken} of {FULL}"


@DRAWS
@pytest.mark.parametrize("risk", RISKS)
def test_promises_hold_for_a_limit_right_below_the_risk_of_a_candidate(world, risk, draws):
    """The hardest limits: one candidate is just not within it."""
    here = world("three stages")
    for limit in hard_limits(here, risk):
        _, broken = broken_promises(here, risk, draws, limit=limit)
        assert not unlikely(broken, draws), f"{broken} of {draws} at {limit}"


@pytest.mark.parametrize("risk", RISKS)
def test_promises_are_made_where_they_can_be(world, risk):
    made, _ = broken_promises(world("three stages"), risk, FAST)
    assert made > 0.5 * FAST


def first_failure(p_values, *, delta):
    """The broken twin: goes on to the first candidate that failed."""
    found = fixed_sequence(p_values, delta=delta)
    if isinstance(found, NonePassed):
        return found
    return replace(found, index=min(found.index + 1, len(p_values) - 1))


def test_the_test_above_catches_an_order_chosen_on_the_same_split(world):
    """Candidates that are all just not safe, and err independently: the luckiest comes first."""
    here = world("three stages")
    size = here.accuracy_drop.shape[1]
    lost = np.arange(size) < size * here.limit + 4
    rng = np.random.default_rng(0)
    rows = [rng.permutation(lost) for _ in here.accuracy_drop]
    unsafe = replace(here, accuracy_drop=np.array(rows, dtype=np.int64))
    assert min(unsafe.risk("negative_flips").values()) > here.limit
    _, honest = broken_promises(unsafe, "negative_flips", FAST)
    _, broken = broken_promises(unsafe, "negative_flips", FAST, ordered_on="calibrate")
    assert not unlikely(honest, FAST)
    assert unlikely(broken, FAST)


@pytest.mark.parametrize("risk", RISKS)
def test_the_test_above_catches_a_measurement_that_is_taken_for_a_promise(world, risk):
    """Half of the time it takes the candidate that is just not within the limit."""
    here = world("three stages")
    limit = hard_limits(here, risk)[0]
    _, honest = broken_promises(here, risk, FAST, limit=limit)
    _, broken = broken_promises(here, risk, FAST, limit=limit, choose=measured)
    assert not unlikely(honest, FAST)
    assert unlikely(broken, FAST)


@pytest.mark.parametrize("risk", RISKS)
def test_the_test_above_catches_optimism_that_is_granted_to_the_limit(world, risk):
    """Luck orders the candidates; it says nothing of what the examples of a test have shown."""
    here = world(LEARNED)
    limit = hard_limits(here, risk)[0]
    _, honest = broken_promises(here, risk, FAST, limit=limit)
    _, broken = broken_promises(here, risk, FAST, limit=limit, choose=credited)
    assert not unlikely(honest, FAST)
    assert unlikely(broken, FAST)


@pytest.mark.parametrize("risk", RISKS)
def test_the_test_above_catches_the_first_failing_candidate(world, risk, monkeypatch):
    monkeypatch.setattr(sys.modules[certify.__module__], "fixed_sequence", first_failure)
    _, broken = broken_promises(world("three stages"), risk, FAST, limit=0.03)
    assert unlikely(broken, FAST)
