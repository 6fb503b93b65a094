"""What predicting the stages' losses saves beside the learned policy, at equal accuracy.

For each division: 40 % to fit, 20 % to calibrate, 40 % to test. The policy "learned" is fitted
alone, and beside "deferral"; each time one candidate is chosen on fit and calibrate, for several
allowed losses and margins, and judged on test. The two end up at different accuracies, so the
points of the learned policy, means over the divisions, make a curve, which is read where the
choice among both has arrived.

Sets: the four of `selection_services.py`; `selection`, the four ResNets of `selection_cifar10.py`;
`words`, `pairs` and `sentences` of `languages.py` (its packages are needed); and recorded traces.

- `cost_change_<set>`: cost of the choice among both over that of the learned policy at the same
  accuracy, minus 1; negative is better. No loss was allowed; `_1pt`: one point was.
- `cost_ratio_<set>`, `difference_<set>`: cost over the reference's and accuracy minus its, of the
  choice among both; `_learned`: of the learned policy alone.
- `cost_change_knowing_<set>`: where there are more than 20 classes, so that "learned" does not try
  by itself to look at which class is named, the same against "learned" that was told to.
- `chosen_<set>`: share of the divisions in which a deferral policy was chosen.
- `..._ci`: 95 % interval by drawing divisions anew, both policies on the same; their test parts
  overlap, so it is too narrow.
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import languages
import numpy as np
import selection_cifar10
import selection_services
import torch
from harness import parser, report

import offramp
from offramp._core.progress import progress_bar
from offramp.evaluation import Frontier, evaluate
from offramp.trace import Trace

SHARES = {"fit": 0.4, "calibrate": 0.2, "test": 0.4}
LAMS = (0.0, *np.geomspace(4e-3, 0.8, 11).tolist())
#: Allowed loss and margin of each point of a curve; the first two are reported.
POINTS = ((0.0, 1.0), (0.01, 1.0), (0.0, 2.0), (0.0, 0.5), (0.0, 0.0), (0.005, 1.0), (0.02, 1.0))
NAMES = ("", "_1pt")
_TEXTS = tuple(languages.FILES)
SETS = (*selection_services.SETS, "selection", *_TEXTS)
_MANY = 20  # classes, beyond which the learned policy has to be told to look at them
DRAWS = 1000

Curve = list[tuple[float, float]]  # cost ratio and difference of each of POINTS


def texts(data: Path, name: str, most: int | None) -> Trace:
    """What four language detectors say about the texts of one file."""
    languages.check_packages()
    examples = languages.texts_of(data / "languages")
    languages.CODES = tuple(sorted({code for each in examples.values() for code, _ in each}))
    few = examples[name] if most is None else languages.some(examples[name], most)
    for detector in languages.DETECTORS:
        languages.detected(detector, ["a text that has models loaded"])
    return languages.recorded(languages.cascade_of(), few)


def load(data: Path, name: str, most: int | None) -> Trace:
    """The recorded outputs of one set."""
    if name in _TEXTS:
        return texts(data, name, most)
    if name == "selection":
        trace = selection_cifar10.load(data / "cifar10")
    else:
        trace = selection_services.load(data / "frugalml" / f"{name}.npz")
    return trace if most is None else trace.take(torch.arange(min(most, len(trace))))


def one_division(trace: Trace, seed: int) -> dict[str, tuple[Curve, bool]]:
    """For each contender its points on test, and whether a deferral policy was chosen."""
    divided = trace.split_into(SHARES, seed=seed)  # type: ignore[arg-type]
    chosen_on, test = divided.take(divided.split != 3), divided.subset("test")
    options: dict[str, Any] = {
        "reference": divided.stages[chosen_on.most_accurate()],
        "combines": ["last"],
        "cost_weights": LAMS,
        "loss": "error",
        "progress": False,
    }
    both = offramp.fit(divided, ["learned", "deferral"], **options)
    alone = replace(both, points=tuple(p for p in both.points if p.candidate.method == "learned"))
    frontiers = {"": both, "_learned": alone}
    if trace.classes > _MANY:
        frontiers["_knowing"] = offramp.fit(divided, "learned", class_features=True, **options)
    return {end: judged(frontier, test) for end, frontier in frontiers.items()}


def judged(frontier: Frontier, test: Trace) -> tuple[Curve, bool]:
    """What the choices of a frontier do on test."""
    curve: Curve = []
    methods = []
    for allowed, margin in POINTS:
        choice = frontier.cheapest(max_drop=allowed, margin=margin, delta=None)
        found = evaluate(test, choice.candidate, bootstrap=0)
        curve.append((found.cost_ratio, -found.accuracy_drop))
        methods.append(choice.candidate.method)
    return curve, methods[0] == "deferral"


def cost_at(curve: np.ndarray, difference: float) -> float:
    """Cost where a curve reaches a difference: straight lines between its points, as they stand."""
    order = np.argsort(curve[:, 1])
    return float(np.interp(difference, curve[order, 1], curve[order, 0]))


def changes(both: np.ndarray, other: np.ndarray, point: int) -> dict[str, Any]:
    """Relative change of cost at one of `POINTS`, and its interval.

    Args:
        both: Of the choice among both policies, `(divisions, points, 2)`.
        other: Of whom it is compared with.
        point: Which point.
    """
    rng, count = np.random.default_rng(0), len(both)

    def change(rows: np.ndarray) -> float:
        cost, difference = both[rows, point].mean(axis=0)
        return float(cost / cost_at(other[rows].mean(axis=0), difference) - 1)

    drawn = [change(rng.integers(0, count, count)) for _ in range(DRAWS)]
    return {"": change(np.arange(count)), "_ci": np.quantile(drawn, [0.025, 0.975]).tolist()}


def summary(name: str, found: Sequence[dict[str, tuple[Curve, bool]]]) -> dict[str, Any]:
    """The figures of one set."""
    curves = {end: np.array([one[end][0] for one in found]) for end in found[0]}
    result: dict[str, Any] = {f"divisions_{name}": len(found)}
    for point, suffix in enumerate(NAMES):
        for end in ("", "_learned"):
            cost, difference = curves[end][:, point].mean(axis=0).tolist()
            result[f"cost_ratio_{name}{suffix}{end}"] = cost
            result[f"difference_{name}{suffix}{end}"] = difference
        for end in curves.keys() - {""}:
            other = "" if end == "_learned" else end
            for kind, value in changes(curves[""], curves[end], point).items():
                result[f"cost_change{other}_{name}{suffix}{kind}"] = value
    return result | {f"chosen_{name}": statistics.fmean(one[""][1] for one in found)}


def main() -> None:
    """Division by division, all sets in each."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of the real data")
    options.add_argument("--divisions", type=int, default=20)
    options.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    options.add_argument("--traces", nargs="*", default=[], help="further ones: NAME=FOLDER")
    options.add_argument("--most", type=int, help="examples of each set; by default all")
    options.add_argument("--tiny", action="store_true", help="few examples, one division")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    most, divisions = (400, 1) if arguments.tiny else (arguments.most, arguments.divisions)
    loaders: dict[str, Callable[[], Trace]] = {
        name: lambda name=name: load(arguments.data, name, most) for name in arguments.sets
    }
    for given in arguments.traces:
        name, _, folder = given.partition("=")
        loaders[name] = lambda folder=folder: offramp.load_trace(folder)
    traces = {name: loader() for name, loader in loaders.items()}
    found: dict[str, list[dict[str, tuple[Curve, bool]]]] = {name: [] for name in traces}
    with (
        suppress(KeyboardInterrupt),  # what is there by then is reported
        progress_bar("Deferral", divisions * len(traces), enabled=True) as step,
    ):
        for seed in range(divisions):
            for name, trace in traces.items():
                found[name].append(one_division(trace, seed))
                step(1)
    result: dict[str, Any] = {}
    for name, those in found.items():
        result |= summary(name, those) if those else {}
    report(arguments, result)


if __name__ == "__main__":
    main()
