"""Makes `docs/playground/data`: a recorded trace of the digits, and their cascade as ONNX.

    python tools/make_playground.py

What it writes is committed, for two reasons: the trace and the networks must be of one training,
whose last bits differ from machine to machine, and whoever opens the pages from a folder has
nothing installed. Run it again when certificates, policies or the export change; the extra `onnx`
is needed. A test compares what the pages compute with Python.
"""

import argparse
import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import offramp
from offramp._core.types import SPLITS, Split
from offramp.data import CropAndFlip, Dataset, digits
from offramp.evaluation import Choice, Frontier, FrontierPoint
from offramp.models import ModelSpec, build
from offramp.policy import Linear
from offramp.policy.features import Feature
from offramp.policy.of_labels import distribution_of
from offramp.stages import Cascade, Normalize
from offramp.trace import Trace
from offramp.train import train_classifier

FOLDER = Path(__file__).parents[1] / "docs" / "playground" / "data"
SURE = "max_prob"  # what thresholds are set on: the one statistic that needs no explanation
#: Name, width, depth and learning rate of the networks: those of the demo, the large one narrower,
#: so that the pages stay light.
NETWORKS = (("small", 4, 3, 0.015), ("middle", 10, 4, 0.008), ("large", 20, 5, 0.004))
EPOCHS = 60
SIZES: dict[Split, int] = {"train": 400, "fit": 500, "calibrate": 550, "test": 347}
DEPLOYED = {"risk": "accuracy_drop", "limit": 0.02, "delta": 0.1}
ASKED = [
    {"risk": risk, "limit": limit, "delta": delta, "n": n}
    for risk in ("accuracy_drop", "negative_flips")
    for limit in (0.005, 0.01, 0.02, 0.035, 0.05)
    for delta in (0.01, 0.05, 0.1, 0.3)
    for n in (100, 250, 400, 550)
]


def told(frontier: Frontier, parts: Mapping[str, Trace]) -> dict[str, Any]:
    """What the pages need of a frontier of thresholds and of recorded examples, as JSON values.

    Args:
        frontier: Of one policy, thresholds on `SURE` of the last answer.
        parts: Examples by name, all recorded of the same stages; "calibrate" is tested on.
    """
    points = [*frontier.points, *frontier.singles]
    trace = parts["calibrate"]
    temperatures = frontier.points[0].candidate.policy.temperatures
    return {
        "stages": list(trace.stages),
        "reference": trace.stages.index(frontier.reference),
        "class_names": list(trace.class_names or map(str, range(trace.classes))),
        "costs": trace.stage_costs().tolist(),
        "unit": trace.costs.unit,
        "fit_n": points[0].fit.n,
        "points": [_point(point, single=point in frontier.singles) for point in points],
        "parts": {name: _part(part, temperatures) for name, part in parts.items()},
    }


def _point(point: FrontierPoint, *, single: bool) -> dict[str, Any]:
    policy, fit = point.candidate.policy, point.fit
    chain = policy.topology.active
    thresholds = [_threshold(policy.node(chain[: k + 1]).leave) for k in range(len(chain) - 1)]
    return {
        "single": single,
        "stages": list(chain),
        "thresholds": thresholds,
        "ratios": list(fit.path_cost_ratio),
        "cost": fit.cost_ratio,
        "fit": {"n": fit.n, **_counts(fit.n, fit.negative_flips, fit.accuracy_drop)},
    }


def _threshold(rule: object) -> float | None:
    """The value that the statistic has to reach; None where nobody leaves."""
    return -float(rule.bias) if isinstance(rule, Linear) else None


def _counts(n: int, flips: float, drop: float) -> dict[str, int]:
    return {"lost": round(n * flips), "won": round(n * (flips - drop))}


def _part(part: Trace, temperatures: torch.Tensor) -> dict[str, Any]:
    """Labels, and what each stage says and how sure it is, in the very float32 of the runtime."""
    said, sure = [], []
    for k in range(len(part.stages)):
        distribution = distribution_of(part.output(k), temperatures[k])
        said.append(_packed(distribution.label.numpy().astype(np.uint8)))
        value = Feature(SURE, k).of(lambda _, d=distribution: d)
        sure.append(_packed(value.numpy().astype("<f4")))
    labels = _packed(part.labels.numpy().astype(np.uint8))
    return {"n": len(part), "labels": labels, "said": said, "sure": sure}


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")


def answered(frontier: Frontier, trace: Trace, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What Python promises, tested on the first `n` examples of the part `calibrate`."""
    part = trace.subset("calibrate").take(torch.arange(asked["n"]))
    frontier = frontier.calibrated_on(part, fit=trace.subset("fit"))
    limits = {asked["risk"]: asked["limit"]}
    choice = frontier.certify(limits, delta=asked["delta"])
    points = [*frontier.points, *frontier.singles]
    guarantee = choice.guarantee
    promised = guarantee is not None
    return {
        "chosen": _place(points, choice) if promised else None,
        "p": guarantee.p_value if promised else None,
        "tested": guarantee.tested if promised else None,
        "needed": choice.examples_needed,
        "cost": choice.point.tested.cost_ratio if promised and choice.point.tested else None,
    }


def _place(points: Sequence[FrontierPoint], choice: Choice) -> int:
    return next(i for i, point in enumerate(points) if point.candidate is choice.candidate)


def shuffled(trace: Trace, seed: int) -> Trace:
    """The examples in random order, so that the first few are a sample of all."""
    rows = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
    return trace.take(rows)


def thresholds(trace: Trace) -> Frontier:
    """The frontier that the pages know how to replay."""
    options: dict[str, Any] = {"combines": ["last"], "confidences": [SURE]}
    return offramp.fit(trace, "threshold", progress=False, **options)


def trained(examples: Dataset, seed: int) -> Cascade:
    """The networks of the demo, shifted images among those that they learn from."""
    part = examples.subset("train")
    shift = CropAndFlip(padding=1, flip=False)
    transform = Normalize(1 / 16, 0.305, 0.376)
    models, specs = {}, {}
    for k, (name, width, depth, learning_rate) in enumerate(NETWORKS):
        arguments = {"width": width, "depth": depth, "classes": 10, "seed": seed + k}
        specs[name] = ModelSpec(name="small_cnn", arguments=arguments)
        models[name] = build(specs[name])
        train_classifier(
            models[name],
            part,
            epochs=EPOCHS,
            seed=seed,
            transform=transform,
            augment=shift,
            learning_rate=learning_rate,
            description=f"Training {name}",
        )
    return Cascade.from_models(
        models, transform=transform, specs=specs, class_names=examples.class_names
    )


def main() -> None:
    """Train, record, export, and write it all down."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--out", type=Path, default=FOLDER)
    given = words.parse_args()
    torch.set_num_threads(1)  # networks this small gain nothing from more
    examples = digits().split_into(SIZES, seed=given.seed, stratified=True)
    cascade = trained(examples, given.seed)
    fresh = examples.take(examples.split != SPLITS.index("train"))
    trace = shuffled(offramp.record(cascade, fresh), given.seed)
    frontier = thresholds(trace)
    parts = {name: trace.subset(name) for name in ("calibrate", "test")}
    held = told(frontier, parts)
    held["checks"] = [{**asked, "python": answered(frontier, trace, asked)} for asked in ASKED]
    held["images"] = _images(examples, parts["test"])
    choice = frontier.certify({DEPLOYED["risk"]: DEPLOYED["limit"]}, delta=DEPLOYED["delta"])
    held["deployed"] = _deployed(frontier, choice)
    given.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(held, separators=(",", ":"))
    (given.out / "digits.js").write_text(f"const RECORDED = {text};\n", encoding="utf-8")
    one = torch.zeros(1, 1, 8, 8)
    _export(offramp.Adaptive(cascade, choice), given.out / "cascade.onnx", one)
    for name in trace.stages:
        alone = offramp.Adaptive.single(cascade, name)
        _export(alone, given.out / f"{name}.onnx", one)
    print(choice.sentence)


def _images(examples: Dataset, test: Trace) -> str:
    """Pixels of the test images in the order of the trace, `(n, 64)`, from 0 to 16."""
    place = {name: i for i, name in enumerate(examples.ids.tolist())}
    rows = [place[name] for name in test.ids.tolist()]
    pixels = examples.inputs[torch.tensor(rows)].numpy()
    return _packed(pixels.reshape(len(rows), -1).astype(np.uint8))


def _deployed(frontier: Frontier, choice: Choice) -> dict[str, Any]:
    """What stands in `cascade.onnx`: the point, and what is promised of it."""
    points = [*frontier.points, *frontier.singles]
    temperatures = choice.candidate.policy.temperatures.tolist()
    place, words = _place(points, choice), choice.sentence
    return {**DEPLOYED, "point": place, "temperatures": temperatures, "words": words}


def _export(model: offramp.Adaptive, path: Path, example: torch.Tensor) -> None:
    made = offramp.export_onnx(model, path, example=example, overwrite=True)
    print(f"{path.name}: {made.bytes} bytes")


if __name__ == "__main__":
    main()
