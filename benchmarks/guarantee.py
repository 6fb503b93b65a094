"""Does a promise hold? Certified operating points on real outputs, calibrated again and again.

Policies are fitted once on 2,000 examples. All others are the population, on which every setting's
risk and cost are known exactly. 1,500 examples are drawn from it with replacement, 1,000 times;
each time a setting is chosen with `Frontier.cheapest(max_loss=B, delta=delta)`, and without a
promise on the same examples. A miss is a setting whose risk on the population exceeds B.

The outputs are the logits of four pretrained CIFAR-10 ResNets on images after lossy JPEG (F is
ResNet-56), and the answers of real prediction services (labels and confidences; F is the most
accurate on fit).

For each set, policy and risk; keys end in `_<set>`, `_myopic`, `_excess`, those without an end are
the images, learned policies, accuracy lost:

- `miss_rate`: share of calibrations with a miss; no certificate is no miss. `certified_share`:
  share that gave a certificate.
- `cost_ratio_certified`: mean cost on the population over F's, F alone (1) where nothing was
  certified; `cost_ratio_where_certified`: of the certificates alone.
- `cost_ratio_uncertified`, `miss_rate_uncertified`: the cheapest setting whose risk, measured on
  the 1,500 alone, is within B. `..._measured`: chosen as `cheapest` does without delta, on fit and
  calibrate together, one standard error below B.
- `cost_increase`: of the certified over the uncertified; `..._over_measured`: over the measured.
- `cost_ratio_best`: the cheapest candidate that is within B on the population, which nobody knows.
- `..._divisions`: the same for other random divisions into fit and population as well, the first
  included; with a fifth of the calibrations each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from harness import parser, report
from selection_cifar10 import REFERENCE
from selection_cifar10 import load as load_networks
from selection_services import SETS
from selection_services import load as load_services

import offramp
from offramp._core.progress import progress_bar
from offramp.evaluate import Calibration, Frontier, FrontierPoint, replay
from offramp.evaluate.evaluation import pooled
from offramp.evaluate.judging import mark_fronts
from offramp.policy.risk import paired
from offramp.trace import Trace

FIT, CALIBRATE = 2000, 1500
LIMIT, DELTA = 0.01, 0.1
POLICIES = ("weighted", "myopic")
RISKS = ("difference", "excess")
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
    difference: np.ndarray  # (k, n) in -1, 0, 1
    cost_ratio: np.ndarray  # (k, n)

    def losses(self, risk: str) -> np.ndarray:
        """What a risk is the mean of, `(k, n)`."""
        return self.difference if risk == "difference" else self.difference.clip(min=0)


def world(trace: Trace, policy: str, reference: str | None, seed: int) -> World:
    """Fit once; replay the candidates on the population."""
    divided = trace.divided({"fit": FIT, "calibrate": len(trace) - FIT}, seed=seed)
    frontier = offramp.fit(divided.part("fit"), policy, reference=reference, progress=False)
    population = divided.part("calibrate")
    f_stage = population.topology.index(frontier.reference)
    f = frontier.singles[f_stage]
    others = [p for p in frontier.singles if p is not f]
    points = [*frontier.points, *others]
    _, wanted = mark_fronts(points)  # those that calibrate is looked at with
    candidates = [*(p for p, on in zip(points, wanted, strict=True) if on or p in others), f]
    replays = [replay(population, p.setting.policy) for p in candidates]
    f_wrong = population.wrong(f_stage).astype(np.int64)
    return World(
        frontier=frontier,
        candidates=candidates,
        difference=np.array([r.wrong - f_wrong for r in replays], dtype=np.float64),
        cost_ratio=np.array([r.cost for r in replays]) / f.fit.reference_cost,
    )


def drawn(world: World, counts: np.ndarray) -> Frontier:
    """The frontier as it would be with the examples of one draw as `calibrate`."""
    difference = world.difference @ counts / CALIBRATE
    excess = world.losses("excess") @ counts / CALIBRATE
    cost_ratio = world.cost_ratio @ counts / CALIBRATE
    points = []
    for k, point in enumerate(world.candidates):
        found = replace(
            point.fit,
            n=CALIBRATE,
            split="calibrate",
            difference=float(difference[k]),
            excess=float(excess[k]),
            cost_ratio=float(cost_ratio[k]),
        )
        points.append(replace(point, calibrate=found, judged_on_both=pooled(point.fit, found)))
    names = {p.setting.label: i for i, p in enumerate(world.frontier.singles)}
    singles = [p for p in points if p.setting.label in names]
    return replace(
        world.frontier,
        points=tuple(p for p in points if p.setting.label not in names),
        singles=tuple(sorted(singles, key=lambda p: names[p.setting.label])),
        calibration=HELD,
    )


def uncertified(world: World, counts: np.ndarray, risk: str) -> int:
    """The cheapest candidate within the limit on one draw alone; F always is."""
    within = world.losses(risk) @ counts <= LIMIT * CALIBRATE + 1e-9
    return int(np.where(within, world.cost_ratio @ counts, np.inf).argmin())


def figures(world: World, risk: str, draws: int, seed: int) -> dict[str, Any]:
    """All figures of one world and risk."""
    n = world.difference.shape[1]
    rng = np.random.default_rng(seed)
    places = {p.setting.label: k for k, p in enumerate(world.candidates)}
    f = len(world.candidates) - 1
    rows = []
    for _ in range(draws):
        counts = rng.multinomial(CALIBRATE, np.full(n, 1 / n)).astype(np.float64)
        frontier = drawn(world, counts)
        promised = frontier.cheapest(max_loss=LIMIT, risk=risk, delta=DELTA).setting.label
        measured = frontier.cheapest(max_loss=LIMIT, risk=risk).setting.label
        rows.append((places[promised], uncertified(world, counts, risk), places[measured]))
    certified, plain, measured = np.array(rows).T
    cost = world.cost_ratio.mean(axis=1)
    broken = world.losses(risk).mean(axis=1) > LIMIT + 1e-12
    had = certified != f
    return {
        "miss_rate": float(broken[certified].mean()),
        "certified_share": float(had.mean()),
        "cost_ratio_certified": float(cost[certified].mean()),
        "cost_ratio_where_certified": float(cost[certified[had]].mean()) if had.any() else None,
        "cost_ratio_uncertified": float(cost[plain].mean()),
        "miss_rate_uncertified": float(broken[plain].mean()),
        "cost_ratio_measured": float(cost[measured].mean()),
        "miss_rate_measured": float(broken[measured].mean()),
        "cost_increase": float(cost[certified].mean() / cost[plain].mean() - 1),
        "cost_increase_over_measured": float(cost[certified].mean() / cost[measured].mean() - 1),
        "cost_ratio_best": float(cost[~broken].min()),
        "candidates": f,
        "population": n,
        "reference": world.frontier.reference,
    }


def summary(found: Sequence[dict[str, Any]], suffix: str) -> dict[str, Any]:
    """Figures of the first division, and the main ones of all."""
    result = {f"{name}{suffix}": value for name, value in found[0].items()}
    if len(found) > 1:
        for name in ("miss_rate", "certified_share", "cost_increase"):
            result[f"{name}{suffix}_divisions"] = [each[name] for each in found]
    return result


def main() -> None:
    """Every set, policy and risk."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of the CIFAR-10 data")
    options.add_argument("--services", type=Path, help="by default the folder frugalml beside it")
    options.add_argument("--draws", type=int, default=1000, help="calibrations")
    options.add_argument("--divisions", type=int, default=3, help="into fit and population")
    options.add_argument(
        "--sets", nargs="+", default=["images", *SETS], help="images, or a service"
    )
    arguments = options.parse_args()
    services = arguments.services or arguments.data.parent / "frugalml"
    result: dict[str, Any] = {"max_loss": LIMIT, "delta": DELTA, "draws": arguments.draws}
    works = len(arguments.sets) * len(POLICIES) * arguments.divisions
    with progress_bar("Policies and divisions", works) as step:
        for name in arguments.sets:
            images = name == "images"
            trace = load_networks(arguments.data) if images else None
            trace = trace or load_services(services / f"{name}.npz")
            for policy in POLICIES:
                found: dict[str, list[dict[str, Any]]] = {risk: [] for risk in RISKS}
                for seed in range(arguments.divisions):
                    fitted = world(trace, policy, REFERENCE if images else None, seed)
                    draws = arguments.draws if seed == 0 else arguments.draws // 5
                    for risk in RISKS:
                        found[risk].append(figures(fitted, risk, draws, seed))
                    step(1)
                end = "" if images else f"_{name}"
                end += "" if policy == "weighted" else f"_{policy}"
                result |= summary(found["difference"], end)
                result |= summary(found["excess"], f"{end}_excess")
    report(arguments, result)


if __name__ == "__main__":
    main()
