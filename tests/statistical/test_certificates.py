"""Certificates are wrong no more often than they say, by repetition.

From populations whose risks are known, calibration examples are drawn again and again; a promise is
broken where the candidate that is returned has a risk above the limit. The share of broken promises
must not be above delta, by a binomial test at 1e-3. Deliberately broken twins fail the same test.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from offramp.risk import (
    Controlled,
    Passed,
    betting_p_values,
    binomial_p_values,
    bonferroni,
    conformal_risk_control,
    fixed_sequence,
    hoeffding_bentkus_p_values,
    holm,
    paired_p_values,
    rescaled_difference,
    several_risks,
)

LIMIT, DELTA = 0.05, 0.1
FAST, FULL = 1000, 10_000
DRAWS = pytest.mark.parametrize(
    "draws", [FAST, pytest.param(FULL, marks=pytest.mark.statistical)], ids=["fast", "full"]
)


@dataclass(frozen=True)
class Population:
    """Kinds of examples, how probable they are, and what each candidate makes of each.

    Candidates stand from the safest to the cheapest; a loss difference is -1, 0 or 1.
    """

    differences: np.ndarray  # (k, kinds)
    shares: np.ndarray  # (kinds,)
    n: int  # examples of one calibration

    def risk(self, kind: str) -> np.ndarray:
        """Risk of every candidate, `(k,)`."""
        values = self.differences if kind == "accuracy_drop" else np.maximum(self.differences, 0)
        return values @ self.shares

    def counts(self, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Losses and corrections of each candidate in each calibration, `(draws, k)`."""
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(self.n, self.shares, size=draws)  # (draws, kinds)
        return drawn @ (self.differences == 1).T, drawn @ (self.differences == -1).T


def nested(levels, n, *, corrected=0.0) -> Population:
    """Candidates that share their errors, as thresholds do: each makes those of the one before."""
    levels = np.asarray(levels)
    steps = np.diff(levels, prepend=0.0, append=1.0 - corrected)
    lost = np.tril(np.ones((len(levels), len(levels) + 1)))
    lost[:, -1] = 0.0
    won = np.full((len(levels), 1), -1.0)
    return Population(np.hstack([lost, won]), np.append(steps, corrected), n)


def independent(risk, candidates, n) -> Population:
    """Candidates that err independently, each at one risk."""
    kinds = np.array(np.meshgrid(*[[0.0, 1.0]] * candidates)).reshape(candidates, -1)
    shares = np.prod(np.where(kinds == 1, risk, 1 - risk), axis=0)
    return Population(kinds, shares / shares.sum(), n)


POPULATIONS = {
    "just above the limit": nested([0.0501], 300),
    "a narrow grid across the limit": nested(np.linspace(0.04, 0.06, 41), 500),
    "ties": nested([0.03, 0.03, 0.0501, 0.0501, 0.0501, 0.08], 400),
    "tiny n": nested([0.0, 0.051, 0.3, 0.6], 60),
    "all safe": nested([0.0, 0.01, 0.02], 400),
    "none safe": nested([0.0501, 0.06, 0.2], 200),
    "steps": nested([0.0, 0.03, 0.5, 0.9], 400),
    "independent, none safe": independent(0.0505, 8, 200),
    "corrections": nested([0.06, 0.0905, 0.12, 0.1405, 0.2], 400, corrected=0.09),
    "corrections only": nested([0.0, 0.0, 0.0], 100, corrected=0.05),
    "often different": nested([0.2, 0.3505, 0.4], 300, corrected=0.3),
}
SLOW_PAIRED = {"often different", "corrections"}  # hundreds of pairs of counts
NO_PROMISE = {"just above the limit", "none safe", "independent, none safe"}


def unlikely(broken: int, draws: int, level: float = DELTA) -> bool:
    """True if so many broken promises contradict that each is broken with probability `level`."""
    return binomtest(broken, draws, level, alternative="greater").pvalue < 1e-3


def each_kind(p_value, losses, corrections):
    """P-values of counts `(draws, k)`, each pair of counts computed once."""
    pairs, which = np.unique(
        np.stack([losses.ravel(), corrections.ravel()]), axis=1, return_inverse=True
    )
    return p_value(pairs[0], pairs[1])[np.ravel(which)].reshape(losses.shape)


def excess_p(losses, corrections, n):
    return binomial_p_values(losses, n, max_risk=LIMIT)


def bounded_p(losses, corrections, n):
    return hoeffding_bentkus_p_values(losses / n, n, max_risk=LIMIT)


def difference_p(losses, corrections, n):
    slack = DELTA / 100
    return paired_p_values(losses, corrections, n, max_difference=LIMIT, slack=slack)


def bounded_difference_p(losses, corrections, n):
    mean, limit = rescaled_difference((losses - corrections) / n, LIMIT)
    return hoeffding_bentkus_p_values(mean, n, max_risk=limit)


PROCEDURES = {
    "binomial": ("negative_flips", excess_p),
    "hoeffding-bentkus": ("negative_flips", bounded_p),
    "paired": ("accuracy_drop", difference_p),
    "hoeffding-bentkus of differences": ("accuracy_drop", bounded_difference_p),
}


def walk(p_values: np.ndarray) -> int | None:
    found = fixed_sequence(p_values, delta=DELTA)
    return found.index if isinstance(found, Passed) else None


def broken_promises(population, procedure, draws, *, choose=walk, seed=0) -> tuple[int, int]:
    """How many promises were made and how many of them are broken."""
    kind, p_value = PROCEDURES[procedure]
    losses, corrections = population.counts(draws, seed)
    p_values = each_kind(lambda a, c: p_value(a, c, population.n), losses, corrections)
    chosen = [choose(row) for row in p_values]
    risk = population.risk(kind)
    made = [index for index in chosen if index is not None]
    return len(made), sum(bool(risk[index] > LIMIT) for index in made)


@DRAWS
@pytest.mark.parametrize("procedure", PROCEDURES)
@pytest.mark.parametrize("name", POPULATIONS)
def test_promises_are_broken_with_probability_delta_at_most(name, procedure, draws):
    made, broken = broken_promises(POPULATIONS[name], procedure, draws)
    assert not unlikely(broken, draws), f"{broken} of {draws}"
    if name in NO_PROMISE:
        assert made == broken


def test_promises_are_made_where_they_can_be():
    """A procedure that never promises anything would pass the test above."""
    for procedure in ("binomial", "paired"):
        made, _ = broken_promises(POPULATIONS["all safe"], procedure, FAST)
        assert made >= 0.95 * FAST
    _, broken = broken_promises(POPULATIONS["just above the limit"], "binomial", FAST)
    assert broken > 0.03 * FAST
    made, _ = broken_promises(POPULATIONS["corrections only"], "paired", FAST)
    assert made >= 0.95 * FAST
    for procedure in (bonferroni, holm):
        made, _ = broken_promises(
            POPULATIONS["all safe"], "binomial", FAST, choose=any_of(procedure)
        )
        assert made >= 0.95 * FAST


def any_of(procedure):
    """Of an unordered set the cheapest that passed."""

    def choose(p_values):
        passed = np.flatnonzero(procedure(p_values, delta=DELTA))
        return int(passed[-1]) if len(passed) else None

    return choose


@DRAWS
@pytest.mark.parametrize("p_value", ["binomial", "paired"])
@pytest.mark.parametrize("procedure", [bonferroni, holm])
@pytest.mark.parametrize("name", sorted(POPULATIONS.keys() - SLOW_PAIRED))
def test_unordered_sets_promise_nothing_false_either(name, procedure, p_value, draws):
    _, broken = broken_promises(POPULATIONS[name], p_value, draws, choose=any_of(procedure))
    assert not unlikely(broken, draws)


# The betting bound looks at examples one by one.


def betting_broken(n: int, draws: int, values, shares, limit: float) -> int:
    """How often the bet against a risk just above the limit is won."""
    rng = np.random.default_rng(3)
    broken = 0
    for start in range(0, draws, 1000):
        columns = min(1000, draws - start)
        losses = rng.choice(values, p=shares, size=(n, columns))
        broken += int((betting_p_values(losses, max_risk=limit, delta=DELTA) <= DELTA).sum())
    return broken


@DRAWS
@pytest.mark.parametrize(
    ("n", "values", "shares"),
    [
        (300, [0.0, 1.0], [0.95, 0.05]),
        (20, [0.0, 1.0], [0.95, 0.05]),
        (300, [0.0, 0.5, 1.0], [0.02, 0.94, 0.04]),
        (1, [0.0, 1.0], [0.5, 0.5]),
        (200, [0.3, 0.4], [0.5, 0.5]),
    ],
)
def test_bets_are_won_with_probability_delta_at_most(n, values, shares, draws):
    limit = float(np.dot(values, shares))  # the risk is the limit: nothing may be gained
    assert not unlikely(betting_broken(n, draws, values, shares, limit), draws)


def test_a_bet_on_sorted_losses_would_be_caught():
    """The broken twin: all good examples first."""
    rng = np.random.default_rng(0)
    losses = np.sort((rng.random((300, FAST)) < 0.05).astype(float), axis=0)
    won = betting_p_values(losses, max_risk=0.05, delta=DELTA) <= DELTA
    assert unlikely(int(won.sum()), FAST)


def betting_walks(population, draws, seed=0):
    """Promises by bets on every candidate of a sequence: whether made, and whether broken."""
    rng = np.random.default_rng(seed)
    losses = population.differences.clip(0, 1)  # (k, kinds)
    risk, k = population.risk("negative_flips"), len(losses)
    made = broken = 0
    for _ in range(0, draws, 100):
        kinds = rng.choice(len(population.shares), p=population.shares, size=(population.n, 100))
        columns = losses[:, kinds].transpose(1, 2, 0).reshape(population.n, 100 * k)
        p_values = betting_p_values(columns, max_risk=LIMIT, delta=DELTA).reshape(100, k)
        chosen = [index for index in map(walk, p_values) if index is not None]
        made += len(chosen)
        broken += sum(bool(risk[index] > LIMIT) for index in chosen)
    return made, broken


@DRAWS
@pytest.mark.parametrize("name", ["ties", "tiny n", "all safe", "none safe", "steps"])
def test_a_sequence_tested_by_bets_promises_nothing_false(name, draws):
    made, broken = betting_walks(POPULATIONS[name], draws)
    assert not unlikely(broken, draws)
    if name == "all safe":
        assert made > 0.9 * draws


# Several risks at once, and the expected loss.


@DRAWS
def test_of_several_risks_none_is_broken_more_often_than_delta(draws):
    """One risk is safe, the other just broken, and they go together."""
    population = nested([0.0501], 300, corrected=0.02)
    losses, corrections = population.counts(draws, seed=5)
    p_values = several_risks(
        np.stack(
            [
                each_kind(lambda a, c: excess_p(a, c, 300), losses, corrections)[:, 0],
                each_kind(lambda a, c: difference_p(a, c, 300), losses, corrections)[:, 0],
            ]
        )
    )
    assert not unlikely(int((p_values <= DELTA).sum()), draws)


EXPECTED = {
    "a narrow grid": nested(np.linspace(0.0, 0.2, 41), 100),
    "ties": nested([0.0, 0.04, 0.04, 0.06, 0.06, 0.3], 80),
    "tiny n": nested([0.0, 0.02, 0.2], 19),
    "all safe": nested([0.0, 0.01, 0.05], 60),
    "none safe but the first": nested([0.0, 0.4, 0.8], 60),
}


def expected_risk(population, draws, procedure):
    """Mean risk of what is returned, over calibrations, and the error of that mean.

    Where nothing is returned the fallback runs, which loses nothing.
    """
    rng = np.random.default_rng(0)
    losses, truth = population.differences.clip(0, 1), population.risk("negative_flips")
    risks = []
    for _ in range(draws):
        kinds = rng.choice(len(population.shares), p=population.shares, size=population.n)
        index = procedure(losses[:, kinds].T)
        risks.append(0.0 if index is None else truth[index])
    return np.mean(risks), np.std(risks) / draws**0.5


def conformal(losses):
    found = conformal_risk_control(losses, max_risk=LIMIT)
    return found.index if isinstance(found, Controlled) else None


def too_high(mean, error):
    """True if a mean risk contradicts, at 1e-3, that its expectation is within the limit."""
    return mean > LIMIT + norm.isf(1e-3) * error


@DRAWS
@pytest.mark.parametrize("name", EXPECTED)
def test_conformal_risk_control_keeps_the_expected_loss(name, draws):
    mean, error = expected_risk(EXPECTED[name], draws, conformal)
    assert not too_high(mean, error)
    if name == "a narrow grid":
        assert mean > 0.6 * LIMIT


def without_the_worst_example(losses):
    """The broken twin: the mean loss itself, no worst example added."""
    within = losses.mean(axis=0) <= LIMIT
    return int(np.cumprod(within).sum()) - 1 if within[0] else None


def cheapest_of_any(losses):
    """The broken twin: takes losses that fall along the candidates as if they did not."""
    within = (losses.sum(axis=0) + 1) / (len(losses) + 1) <= LIMIT
    return int(np.flatnonzero(within)[-1]) if within.any() else None


@pytest.mark.parametrize(
    ("population", "twin"),
    [
        (nested(np.linspace(0.0, 0.4, 81), 20), without_the_worst_example),
        (independent(0.07, 8, 60), cheapest_of_any),
    ],
    ids=["no worst example", "no monotone losses"],
)
def test_the_test_above_catches_a_broken_control(population, twin):
    assert too_high(*expected_risk(population, FAST, twin))
    if twin is without_the_worst_example:
        assert not too_high(*expected_risk(population, FAST, conformal))


# Broken twins: faults of public code. Each must fail the test that the real procedure passes.


def first_failure(p_values):
    """Returns the first candidate that failed."""
    return min(int(np.cumprod(p_values <= DELTA).sum()), len(p_values) - 1)


def best_first(p_values):
    """Orders the candidates on the examples that they are tested on."""
    order = np.argsort(p_values)
    index = walk(p_values[order])
    return None if index is None else int(order[: index + 1].max())


def uncorrected(p_values):
    """The cheapest of an unordered set that passes at delta, however many were tried."""
    passed = np.flatnonzero(p_values <= DELTA)
    return int(passed[-1]) if len(passed) else None


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("steps", first_failure),
        ("independent, none safe", best_first),
        ("independent, none safe", uncorrected),
    ],
)
def test_the_test_above_catches_a_broken_choice(name, twin):
    population = POPULATIONS[name]
    _, honest = broken_promises(population, "binomial", FAST)
    _, broken = broken_promises(population, "binomial", FAST, choose=twin)
    assert not unlikely(honest, FAST)
    assert unlikely(broken, FAST)


def test_the_test_above_catches_a_variance_over_candidates():
    """The spread of the candidates' means in place of the spread of the examples."""
    population = POPULATIONS["a narrow grid across the limit"]
    losses, _ = population.counts(FAST, seed=0)
    means = losses / population.n
    spread = means.std(axis=1, keepdims=True) / np.sqrt(population.n)
    p_values = norm.cdf((means - LIMIT) / np.maximum(spread, 1e-12))
    risk = population.risk("negative_flips")
    chosen = [walk(row) for row in p_values]
    broken = sum(index is not None and bool(risk[index] > LIMIT) for index in chosen)
    assert unlikely(broken, FAST)


def test_the_test_above_catches_a_limit_that_is_not_compared_example_by_example():
    """The reference's error counted once, on 200 examples of fit, and added to the limit."""
    rng = np.random.default_rng(0)
    f_error, n = 0.1, 1000
    f_on_fit = rng.binomial(200, f_error, size=FAST) / 200
    errors = rng.binomial(n, f_error + LIMIT + 0.001, size=FAST)  # a difference above the limit
    p_values = [
        binomial_p_values(np.array([e]), n, max_risk=LIMIT + max(f, 1e-6))[0]
        for e, f in zip(errors, f_on_fit, strict=True)
    ]
    assert unlikely(int((np.array(p_values) <= DELTA).sum()), FAST)
