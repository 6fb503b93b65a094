"""Does a promise hold? Certified operating points on real outputs, calibrated again and again.

Policies are fitted once on 2,000 examples. All others are the population, on which every
candidate's risk and cost are known exactly. 1,500 examples are drawn from it with replacement,
1,000 times; each time a candidate is chosen with `Frontier.cheapest(max_drop=B, delta=delta)`, and
without a promise on the same examples. A miss is a candidate whose risk on the population exceeds
B.

The outputs are the logits of four pretrained CIFAR-10 ResNets on images after lossy JPEG (F is
ResNet-56), and the answers of real prediction services (labels and confidences; F is the most
accurate on fit).

For each set, policy and risk; keys end in `_<set>`, `_myopic` (the threshold policy), `_excess`
(negative flips), those without an end are the images, learned policies, accuracy lost:

- `miss_rate`: share of calibrations with a miss; no certificate is no miss. `certified_share`:
  share that gave a certificate.
- `cost_ratio_certified`: mean cost on the population over F's, F alone (1) where nothing was
  certified; `cost_ratio_where_certified`: of the certificates alone.
- `cost_ratio_uncertified`, `miss_rate_uncertified`: the cheapest candidate whose risk, measured on
  the 1,500 alone, is within B. `..._measured`: chosen as `cheapest` does without delta, on fit and
  calibrate together, one standard error below B.
- `cost_increase`: of the certified over the uncertified; `..._over_measured`: over the measured.
- `cost_ratio_best`: the cheapest candidate that is within B on the population, which nobody knows.
- `cost_increase_ideal`: what no test of 1,500 examples avoids: the same order, walked by a normal
  test at delta that knows each candidate's variance on the population. `cost_increase_known_order`:
  such a test, its order that of the population's own costs and standard errors.
- `..._divisions`: the same for other random divisions into fit and population as well, the first
  included; with a fifth of the calibrations each.
- `cost_increase_mean_...`: mean over sets, policies and divisions.

What a promise costs by the number of examples, on the first set: means over `price_divisions`
divisions with `price_draws` calibrations each, and standard errors; keys end as above:

- `certified_over_uncertified_N`: cost of the certified over that of the uncertified candidate with
  N examples to calibrate on. `cost_ratio_certified_N`, `miss_rate_N`; `miss_rate_ci_N`: 95 %.
- `..._bound_N`: the least that any valid test could reach, see `least_cost`.
- `..._halved_N`: 2,000 + N examples, half of them to fit; over the uncertified of before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, parser, report
from scipy.stats import binom, norm
from selection_cifar10 import REFERENCE
from selection_cifar10 import load as load_networks
from selection_services import SETS
from selection_services import load as load_services

import offramp
from offramp._core.files import write_json
from offramp._core.progress import progress_bar
from offramp.evaluation import Calibration, Frontier, FrontierPoint, replay
from offramp.evaluation.evaluate import pooled
from offramp.evaluation.judging import mark_fronts
from offramp.evaluation.limits import read_limits
from offramp.evaluation.order import walk_order
from offramp.evaluation.risk_tests import SLACK
from offramp.evaluation.weights import risk_tests
from offramp.fitting.pareto import pareto_front
from offramp.risk import binomial_p_values, paired, paired_p_values
from offramp.trace import Trace

FIT, CALIBRATE = 2000, 1500
SIZES = (1500, 450)  # of calibrations whose price is reported
LIMIT, DELTA = 0.01, 0.1
POLICIES = ("learned", "threshold")
RISKS = {"accuracy_drop": "difference", "negative_flips": "excess"}  # and what keys call them
INCREASES = ("cost_increase", "cost_increase_ideal", "cost_increase_known_order")
DIVIDED = ("miss_rate", "certified_share", *INCREASES)
HELD = Calibration(n=CALIBRATE, fingerprint="", seen_in_training=False, lossy=False)

# A thousand calibrations ask for the p-values of the same pairs of counts again and again.
paired._p_value = lru_cache(maxsize=None)(paired._p_value)


@dataclass(frozen=True)
class World:
    """A frontier, and what each of its candidates does to every example of the population.

    Rows of the arrays are candidates, columns examples; the last row is F.
    """

    frontier: Frontier
    candidates: list[FrontierPoint]
    accuracy_drop: np.ndarray  # (k, n) in -1, 0, 1
    cost_ratio: np.ndarray  # (k, n)

    def losses(self, risk: str) -> np.ndarray:
        """What a risk is the mean of, `(k, n)`."""
        return self.accuracy_drop if risk == "accuracy_drop" else self.accuracy_drop.clip(min=0)

    def order(self, risk: str) -> list[int]:
        """The candidates that are tested, from the safest on."""
        places = {p.candidate.label: k for k, p in enumerate(self.candidates)}
        tests = risk_tests(read_limits({risk: LIMIT}), HELD, delta=DELTA)
        walked = walk_order(self.candidates[:-1], self.candidates[-1], tests, "difference")
        return [places[p.candidate.label] for p in walked]

    def known_order(self, risk: str) -> list[int]:
        """The order by what nobody knows: cost, and standard errors within the limit."""
        losses, cost = self.losses(risk), self.cost_ratio.mean(axis=1)
        room = (LIMIT - losses.mean(axis=1)) / np.maximum(losses.std(axis=1), 1e-3)
        front = np.flatnonzero(pareto_front(cost, -room) & (cost < cost[-1]))
        return [int(k) for k in front[np.argsort(-cost[front])]]


@dataclass(frozen=True)
class Draws:
    """What candidates lose and cost in each calibration of n examples, `(draws, k)`, as means."""

    n: int
    accuracy_drop: np.ndarray
    negative_flips: np.ndarray
    cost_ratio: np.ndarray

    @classmethod
    def of(cls, world: World, draws: int, seed: int, n: int = CALIBRATE) -> "Draws":
        """Examples drawn from the population with replacement."""
        size_of_all = world.accuracy_drop.shape[1]
        rng = np.random.default_rng(seed)
        values = (world.accuracy_drop, world.losses("negative_flips"), world.cost_ratio)
        found: list[list[np.ndarray]] = [[], [], []]
        for start in range(0, draws, 50):
            size = min(50, draws - start)
            shares = np.full(size_of_all, 1 / size_of_all)
            counts = rng.multinomial(n, shares, size=size).astype(np.float64)
            for rows, value in zip(found, values, strict=True):
                rows.append(counts @ value.T / n)
        return cls(n, *map(np.vstack, found))

    def risk(self, name: str) -> np.ndarray:
        """Of every candidate in every calibration, `(draws, k)`."""
        return self.accuracy_drop if name == "accuracy_drop" else self.negative_flips


def world(
    trace: Trace, policy: str, reference: str | None, seed: int, examples: int = FIT
) -> World:
    """Fit once on so many examples; replay the candidates on the population."""
    divided = trace.split_into({"fit": examples, "calibrate": len(trace) - examples}, seed=seed)
    frontier = offramp.fit(divided.subset("fit"), policy, reference=reference, progress=False)
    population = divided.subset("calibrate")
    f_stage = population.topology.index(frontier.reference)
    f = frontier.singles[f_stage]
    others = [p for p in frontier.singles if p is not f]
    points = [*frontier.points, *others]
    _, wanted = mark_fronts(points)  # those that calibrate is looked at with
    candidates = [*(p for p, on in zip(points, wanted, strict=True) if on or p in others), f]
    replays = [replay(population, p.candidate.policy) for p in candidates]
    f_wrong = population.wrong(f_stage).astype(np.int64)
    return World(
        frontier=frontier,
        candidates=candidates,
        accuracy_drop=np.array([r.wrong - f_wrong for r in replays], dtype=np.float64),
        cost_ratio=np.array([r.cost for r in replays]) / f.fit.reference_cost,
    )


def drawn(world: World, draws: Draws, row: int) -> Frontier:
    """The frontier as it would be with the examples of one draw as `calibrate`."""
    points = []
    for k, point in enumerate(world.candidates):
        found = replace(
            point.fit,
            n=CALIBRATE,
            split="calibrate",
            accuracy_drop=float(draws.accuracy_drop[row, k]),
            negative_flips=float(draws.negative_flips[row, k]),
            cost_ratio=float(draws.cost_ratio[row, k]),
        )
        points.append(replace(point, calibrate=found, judged_on_both=pooled(point.fit, found)))
    names = {p.candidate.label: i for i, p in enumerate(world.frontier.singles)}
    singles = [p for p in points if p.candidate.label in names]
    return replace(
        world.frontier,
        points=tuple(p for p in points if p.candidate.label not in names),
        singles=tuple(sorted(singles, key=lambda p: names[p.candidate.label])),
        calibration=HELD,
    )


def uncertified(draws: Draws, risk: str) -> np.ndarray:
    """The cheapest candidate within the limit on each draw alone, `(draws,)`; F always is."""
    within = draws.risk(risk) <= LIMIT + 1e-12
    return np.where(within, draws.cost_ratio, np.inf).argmin(axis=1)


def walked_ideally(world: World, draws: Draws, risk: str, order: Sequence[int]) -> np.ndarray:
    """Where a normal test at DELTA ends that knows every variance, `(draws,)`; F if at once."""
    spread = world.losses(risk)[order].std(axis=1) / np.sqrt(CALIBRATE)
    passed = draws.risk(risk)[:, order] + norm.isf(DELTA) * spread <= LIMIT
    steps = np.cumprod(passed, axis=1).sum(axis=1)
    return np.array([len(world.candidates) - 1, *order])[steps]


def walked(world: World, draws: Draws, risk: str) -> np.ndarray:
    """What `cheapest` promises on each draw, `(draws,)`, from its order and its p-values alone."""
    order = world.order(risk)
    lost = np.rint(draws.n * draws.negative_flips[:, order]).astype(np.int64)
    if risk == "accuracy_drop":
        won = lost - np.rint(draws.n * draws.accuracy_drop[:, order]).astype(np.int64)
        p_values = paired_p_values(
            lost.ravel(), won.ravel(), draws.n, max_difference=LIMIT, slack=SLACK * DELTA
        ).reshape(lost.shape)
    else:
        p_values = binomial_p_values(lost, draws.n, max_risk=LIMIT)
    steps = np.cumprod(p_values <= DELTA, axis=1).sum(axis=1)
    return np.array([len(world.candidates) - 1, *order])[steps]


def least_cost(world: World, risk: str, n: int) -> float:
    """The least mean cost that tests of n examples reach, however candidates are ordered.

    The risks and costs of all candidates are known to who chooses the tests, but what they promise
    must hold at other risks as well: then a candidate within the limit passes at most as often as
    by the most powerful test of its own risk against the limit. That is a randomized binomial test
    for negative flips, and about a normal test that knows the variance for differences. Something
    as cheap as c passes as often as the best of those as cheap, if candidates lose the same
    examples, as thresholds do; then whoever finds one too risky finds the cheaper ones so as well.
    """
    losses = world.losses(risk)
    mean, cost = losses.mean(axis=1), world.cost_ratio.mean(axis=1)
    if risk == "accuracy_drop":
        errors = np.maximum(losses.std(axis=1) / np.sqrt(n), 1e-9)
        power = norm.cdf((LIMIT - mean) / errors - norm.isf(DELTA))
    else:
        most = int(binom.ppf(DELTA, n, LIMIT))  # up to one less always passes, this many at times
        at_times = (DELTA - binom.cdf(most - 1, n, LIMIT)) / binom.pmf(most, n, LIMIT)
        power = binom.cdf(most - 1, n, mean) + at_times * binom.pmf(most, n, mean)
    others = np.argsort(cost[:-1], kind="stable")
    chance = np.maximum.accumulate(np.where(mean <= LIMIT, power, np.minimum(power, DELTA))[others])
    steps = np.diff(chance, prepend=0.0)
    return float(steps @ cost[others] + (1 - chance[-1]) * cost[-1])


def paid(
    trace: Trace, reference: str | None, policy: str, seed: int, draws: int
) -> dict[str, dict[str, float]]:
    """For each risk what a promise costs in one division, by the number of examples."""
    found: dict[str, dict[str, float]] = {risk: {} for risk in RISKS}
    usual, ratio = world(trace, policy, reference, seed), "certified_over_uncertified"
    cost = usual.cost_ratio.mean(axis=1)
    for n in SIZES:
        half = (FIT + n) // 2
        halved = world(trace, policy, reference, seed, half)
        drawn, again = Draws.of(usual, draws, seed, n), Draws.of(halved, draws, seed, half)
        for risk, row in found.items():
            plain = cost[uncertified(drawn, risk)].mean()
            row[f"{ratio}_bound_{n}"] = least_cost(usual, risk, n) / plain
            for name, where, of in ((n, usual, drawn), (f"halved_{n}", halved, again)):
                chosen = walked(where, of, risk)
                broken = where.losses(risk).mean(axis=1)[chosen] > LIMIT + 1e-12
                row[f"cost_ratio_certified_{name}"] = where.cost_ratio[chosen].mean()
                row[f"{ratio}_{name}"] = row[f"cost_ratio_certified_{name}"] / plain
                row[f"miss_rate_{name}"] = broken.mean()
    return found


def price(divisions: Sequence[dict[str, dict[str, float]]], policy: str) -> dict[str, Any]:
    """What `paid` found, as means over divisions with their standard errors."""
    result: dict[str, Any] = {}
    for risk, end in (("accuracy_drop", ""), ("negative_flips", "_excess")):
        end = ("" if policy == "learned" else "_myopic") + end
        for name in divisions[0][risk]:
            values = [each[risk][name] for each in divisions]
            mean, error = np.mean(values), np.std(values) / max(1, len(values) - 1) ** 0.5
            result[name + end] = float(mean)
            if name.startswith("miss_rate"):
                ends = [max(0.0, float(mean - 1.96 * error)), float(mean + 1.96 * error)]
                result[name.replace("miss_rate", "miss_rate_ci") + end] = ends
            else:
                result[f"{name}_error{end}"] = float(error)
    return result


def figures(world: World, risk: str, draws: Draws) -> dict[str, Any]:
    """All figures of one world and risk."""
    places = {p.candidate.label: k for k, p in enumerate(world.candidates)}
    f = len(world.candidates) - 1
    rows = []
    for row in range(len(draws.accuracy_drop)):
        frontier = drawn(world, draws, row)
        promised = frontier.cheapest(max_drop=LIMIT, risk=risk, delta=DELTA).candidate.label
        measured = frontier.cheapest(max_drop=LIMIT, risk=risk, delta=None).candidate.label
        rows.append((places[promised], places[measured]))
    certified, measured = np.array(rows).T
    if (certified != walked(world, draws, risk)).any():
        raise RuntimeError("cheapest does not promise what its order and tests give.")
    plain = uncertified(draws, risk)
    ideal = walked_ideally(world, draws, risk, world.order(risk))
    known = walked_ideally(world, draws, risk, world.known_order(risk))
    cost = world.cost_ratio.mean(axis=1)
    broken = world.losses(risk).mean(axis=1) > LIMIT + 1e-12
    had = certified != f

    def increase(chosen: np.ndarray) -> float:
        return float(cost[chosen].mean() / cost[plain].mean() - 1)

    return {
        "miss_rate": float(broken[certified].mean()),
        "certified_share": float(had.mean()),
        "cost_ratio_certified": float(cost[certified].mean()),
        "cost_ratio_where_certified": float(cost[certified[had]].mean()) if had.any() else None,
        "cost_ratio_uncertified": float(cost[plain].mean()),
        "miss_rate_uncertified": float(broken[plain].mean()),
        "cost_ratio_measured": float(cost[measured].mean()),
        "miss_rate_measured": float(broken[measured].mean()),
        "cost_increase": increase(certified),
        "cost_increase_ideal": increase(ideal),
        "cost_increase_known_order": increase(known),
        "cost_increase_over_measured": float(cost[certified].mean() / cost[measured].mean() - 1),
        "cost_ratio_best": float(cost[~broken].min()),
        "candidates": f,
        "tested_at_most": len(world.order(risk)),
        "population": world.accuracy_drop.shape[1],
        "reference": world.frontier.reference,
    }


def summary(found: Sequence[dict[str, Any]], suffix: str) -> dict[str, Any]:
    """Figures of the first division, and the main ones of all."""
    result = {f"{name}{suffix}": value for name, value in found[0].items()}
    if len(found) > 1:
        for name in DIVIDED:
            result[f"{name}{suffix}_divisions"] = [each[name] for each in found]
    return result


def of_set(
    trace: Trace, reference: str | None, policy: str, *, draws: int, divisions: int
) -> dict[str, list[dict[str, Any]]]:
    """Figures of every division, for each risk."""
    found: dict[str, list[dict[str, Any]]] = {risk: [] for risk in RISKS}
    for seed in range(divisions):
        fitted = world(trace, policy, reference, seed)
        calibrations = Draws.of(fitted, draws if seed == 0 else draws // 5, seed)
        for risk in RISKS:
            found[risk].append(figures(fitted, risk, calibrations))
    return found


def main() -> None:
    """Every set, policy and risk."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of the CIFAR-10 data")
    options.add_argument("--services", type=Path, help="by default the folder frugalml beside it")
    options.add_argument("--draws", type=int, default=1000, help="calibrations")
    options.add_argument("--divisions", type=int, default=3, help="into fit and population")
    options.add_argument("--price-divisions", type=int, default=100, help="for the price; 0: none")
    options.add_argument(
        "--price-draws", type=int, default=25, help="calibrations of each of these"
    )
    options.add_argument(
        "--sets", nargs="+", default=["images", *SETS], help="images, or a service"
    )
    arguments = options.parse_args()
    services = arguments.services or arguments.data.parent / "frugalml"
    given = {k: getattr(arguments, k) for k in ("draws", "price_divisions", "price_draws")}
    result: dict[str, Any] = {"max_loss": LIMIT, "delta": DELTA, **given}
    every: dict[str, list[dict[str, Any]]] = {risk: [] for risk in RISKS}
    with progress_bar("Sets and policies", len(arguments.sets) * len(POLICIES)) as step:
        for name in arguments.sets:
            images = name == "images"
            trace = load_networks(arguments.data) if images else None
            trace = trace or load_services(services / f"{name}.npz")
            reference = REFERENCE if images else None
            for policy in POLICIES:
                found = of_set(
                    trace, reference, policy, draws=arguments.draws, divisions=arguments.divisions
                )
                end = "" if images else f"_{name}"
                end += "" if policy == "learned" else "_myopic"
                result |= summary(found["accuracy_drop"], end)
                result |= summary(found["negative_flips"], f"{end}_excess")
                for risk in RISKS:
                    every[risk] += found[risk]
                if name == arguments.sets[0] and arguments.price_divisions:
                    seeds = range(arguments.price_divisions)
                    each = [paid(trace, reference, policy, k, arguments.price_draws) for k in seeds]
                    result |= price(each, policy)
                step(1)
            if arguments.out is not None:
                write_json(arguments.out, {**result, "machine": machine()})
    for risk, key in RISKS.items():
        for name in INCREASES:
            mean = float(np.mean([each[name] for each in every[risk]]))
            result[name.replace("increase", "increase_mean") + f"_{key}"] = mean
    report(arguments, result)


if __name__ == "__main__":
    main()
