"""What a frontier promises is kept: fitted once, calibrated again and again, from end to end.

Examples are drawn with replacement from a population on which the true risks are known. Wrong
answers, disagreement, recall, cost, several limits at once, and known weights of the classes.
"""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from offramp.evaluation import Choice, fit, replay
from offramp.evaluation.gears import merged
from offramp.trace import make_trace

DELTA = 0.1


def unlikely(broken: int, draws: int) -> bool:
    """True if so many broken promises contradict that each is broken with probability delta."""
    return binomtest(broken, draws, DELTA, alternative="greater").pvalue < 1e-3


LIMITS = {
    "error": {"error": 0.13},
    "disagreement": {"disagreement": 0.08},
    "recall": {"recall": 0.08},
    "cost": {"cost": 0.4},
    "several": {"accuracy_drop": 0.05, "recall": 0.1, "cost": 0.6},
    "learned": {"accuracy_drop": 0.05},
    "weighted cost": {"cost": 0.45},
    "weighted disagreement": {"disagreement": 0.12},
}
SHIFT = (1.5, 0.5, 1.0)


class World:
    """A frontier, and what each of its candidates does to every example of a population."""

    def __init__(self) -> None:
        trace = make_trace(4000, stages=3, classes=3, seed=2)
        trace = trace.split_into({"fit": 1000, "calibrate": 3000}, seed=0)
        made = fit(trace, "threshold", combines=["last"], confidences=["margin"], progress=False)
        keep = [p for p in made.points if p.calibrate][::3]
        self.frontier = replace(made, points=tuple(keep))
        self.population = trace.subset("calibrate")
        self.labels = self.population.labels.numpy()
        f = trace.topology.index(made.reference)
        self.f_wrong = self.population.wrong(f).astype(int)
        self.f_first = self.population.output(f).top(1)[:, 0].numpy()
        everything = [*keep, *made.singles]
        self.replays = {id(p): replay(self.population, p.candidate.policy) for p in everything}

    def drawn(self, times: np.ndarray):
        """The frontier as it is where each example was drawn so many times."""
        n = int(times.sum())

        def again(p):
            done, e = self.replays[id(p)], p.calibrate
            wrong = done.wrong.astype(int)
            kinds = 3 * (2 * wrong + self.f_wrong) + self.labels
            table = np.bincount(kinds, weights=times, minlength=12).astype(int).reshape(4, 3)
            right, won, lost, _ = table.sum(axis=1).tolist()
            ways = np.bincount(3 * done.path + self.labels, times, minlength=3 * len(done.paths))
            by_path = ways.astype(int).reshape(-1, 3)
            paths = by_path.sum(axis=1) / n
            other = done.labels[:, 0] != self.f_first
            differs = np.bincount(self.labels[other], times[other], minlength=3).astype(int)
            new = replace(
                e, n=n, negative_flips=lost / n, accuracy_drop=(lost - won) / n,
            accuracy=(right + won) / n,
                disagreement=int(differs.sum()) / n,
                class_disagreements=tuple(differs.tolist()),
                class_paths=tuple(map(tuple, by_path.tolist())),
                path_share=tuple(paths.tolist()), class_outcomes=tuple(map(tuple, table.tolist())),
                cost_ratio=float(paths @ np.array(e.path_cost_ratio)),
            )  # fmt: skip
            return replace(p, calibrate=new)

        return replace(
            self.frontier,
            points=tuple(again(p) for p in self.frontier.points),
            singles=tuple(again(p) for p in self.frontier.singles),
            calibration=replace(self.frontier.calibration, n=n),
        )

    def exceeds(self, candidate, drop: float) -> bool:
        """Whether a candidate loses more than that on the whole population."""
        everything = (*self.frontier.points, *self.frontier.singles)
        e = next(p.calibrate for p in everything if p.candidate is candidate)
        return e.accuracy_drop > drop

    def broken(self, found: Choice, weights=None) -> bool:
        """Whether the candidate exceeds one of the limits on the whole population."""
        e = next(
            p.calibrate
            for p in (*self.frontier.points, *self.frontier.singles)
            if p.candidate is found.candidate
        )
        table = np.array(e.class_outcomes)
        lost = table[2] - table[1]
        ways, heavy = np.array(e.class_paths), np.ones(3) if weights is None else weights
        truth = {
            "error": 1 - e.accuracy,
            "disagreement": float(np.array(e.class_disagreements) @ heavy) / e.n,
            "recall": float((lost / table.sum(axis=0)).max()),
            "cost": float(np.array(e.path_cost_ratio) @ ways @ heavy) / e.n,
            "accuracy_drop": float(lost @ heavy) / e.n,
        }
        return any(truth[limit.risk] > limit.at_most for limit in found.limits)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize(
    "draws", [30, pytest.param(1000, marks=pytest.mark.statistical)], ids=["fast", "full"]
)
@pytest.mark.parametrize("name", LIMITS)
def test_what_a_frontier_promises_is_kept_over_calibrations(world, name, draws):
    n, rng = 800, np.random.default_rng(6)
    size = len(world.labels)
    counts = np.bincount(world.labels) / size
    weights = None
    if name.startswith("learned"):  # the last class makes up for the others, so that the mean is 1
        weights = (*SHIFT[:2], (1 - counts[0] * SHIFT[0] - counts[1] * SHIFT[1]) / counts[2])
    made = broken = 0
    for _ in range(draws):
        times = np.bincount(rng.integers(0, size, n), minlength=size)
        found = world.drawn(times).certify(LIMITS[name], delta=DELTA, class_weights=weights)
        if found.guarantee is not None:
            made += 1
            broken += world.broken(found, None if weights is None else np.array(weights))
    assert made > 0.5 * draws
    assert not unlikely(broken, draws), f"{broken} of {draws}"


# Gears: several limits, one delta for all of them.

DROPS = (0.01, 0.02, 0.04, 0.08)


def calibrations(world, draws, n):
    size, rng = len(world.labels), np.random.default_rng(8)
    for _ in range(draws):
        yield world.drawn(rng.multinomial(n, np.full(size, 1 / size)))


@pytest.mark.parametrize(
    "draws", [30, pytest.param(1000, marks=pytest.mark.statistical)], ids=["fast", "full"]
)
def test_gears_keep_all_their_promises_at_once(world, draws):
    broken, held = 0, 0
    for frontier in calibrations(world, draws, 500):
        gears = list(frontier.gears(DROPS, delta=DELTA))[1:]
        held += len(gears)
        broken += any(world.exceeds(gear.candidate, gear.guarantee.bound) for gear in gears)
    assert not unlikely(broken, draws)
    assert held > 2 * draws


def walks(draws):
    """P-values of four gears: each has one candidate, whose risk is just above its limit."""
    rng = np.random.default_rng(3)
    return rng.random((draws, len(DROPS)))  # as large as it can be: uniform


def together(row):
    passed, _ = merged([[1.0], [3.0], [2.0], [0.5]], [np.array([p]) for p in row], DELTA)
    return any(count for count, _ in passed)


def each_by_itself(row):
    """The broken twin: every gear has the whole delta."""
    return any(p <= DELTA for p in row)


def the_safest_looking_first(row):
    """The broken twin: the order is read off the examples that are tested on."""
    passed, _ = merged([[-p] for p in row], [np.array([p]) for p in row], DELTA)
    return any(count for count, _ in passed)


@pytest.mark.parametrize(
    ("how", "fails"), [(together, False), (each_by_itself, True), (the_safest_looking_first, True)]
)
def test_of_gears_tested_together_any_is_wrong_with_probability_delta_at_most(how, fails):
    draws = 2000
    assert unlikely(sum(map(how, walks(draws))), draws) == fails
