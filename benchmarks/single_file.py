"""The whole cascade in one ONNX file, against its networks run apart by hand, and the runtime.

Pretrained CIFAR ResNet-20 -> ResNet-56 (weights that we did not train) on test images after lossy
JPEG. One threshold on the probability that ResNet-20 gives its label; it lets a given share go on.

`single_file_over_parts` is the time of the one file over that of two sessions, one for each
network, and the code between them that a user would write: softmax, threshold, the survivors'
rows, the answers put back. `single_file_over_runtime` is the same over `offramp.Adaptive` with
folded batch-norms, channels last. Both are medians of ratios of interleaved rounds; below 1 the
file is faster. All sessions run without spinning, on the same number of threads. With --int8 all
three hold the networks in int8 of ONNX Runtime.
"""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from harness import parser, report

import offramp
from offramp.backends import Compiled, to_onnx, with_backend
from offramp.bundle import export_onnx
from offramp.models import ModelSpec, build
from offramp.policy import Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Normalize, time_side_by_side

NETWORKS = ("resnet20", "resnet56")
NORMALIZE = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SIZES = {1: 128, 128: 1024}  # batch size: images in a round
CALIBRATION = 256  # images for the scales of int8, the last ones

Array = np.ndarray
Model = Callable[[Array], tuple[Array, Array, Array]]


def load(data: Path) -> tuple[offramp.Cascade, Array]:
    """The two networks, and images `(n, 3, 32, 32)`, uint8."""
    networks = {
        name: build(
            ModelSpec(name=name, weights=str(data / "resnet_weights" / f"{name}_state.npz"))
        ).eval()
        for name in NETWORKS
    }
    with np.load(data / "test_jpeg_1000_5500.npz", allow_pickle=False) as held:
        images = held["images"].transpose(0, 3, 1, 2)
    cascade = offramp.Cascade.from_models(networks, transform=Normalize(**NORMALIZE))  # type: ignore[arg-type]
    return cascade, np.ascontiguousarray(images)


def threshold(cascade: offramp.Cascade, images: Array, survivors: float) -> float:
    """The largest probability of ResNet-20 below which the given share lies."""
    with torch.inference_mode():
        said, _ = cascade.stage(0).run(torch.from_numpy(images))
    return float(said.scores().softmax(dim=1).amax(dim=1).quantile(survivors))


def session(model: str | bytes, threads: int) -> onnxruntime.InferenceSession:
    """A session that leaves the cores alone between its operations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def by_hand(cascade: offramp.Cascade, images: Array, limit: float, threads: int) -> Model:
    """Two sessions, and what stands between them."""
    small, large = (
        session(whole_network(cascade.stage(k), images), threads) for k in range(len(NETWORKS))
    )

    def answer(x: Array) -> tuple[Array, Array, Array]:
        (logits,) = small.run(None, {"in.0": x})
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        (rows,) = np.nonzero(probabilities.max(axis=1) < limit)
        stage = np.zeros(len(x), dtype=np.int64)
        if len(rows):
            (logits[rows],) = large.run(None, {"in.0": x[rows]})
            stage[rows] = 1
        return logits, logits.argmax(axis=1), stage

    return answer


def whole_network(stage: Any, images: Array) -> bytes:
    """A network with its transform as an ONNX model."""
    if isinstance(stage.module, Compiled):
        return stage.module.files()[0]  # type: ignore[misc]
    both = torch.nn.Sequential(stage.transform, stage.module)
    return to_onnx(both, torch.from_numpy(images[:1]), name=stage.name).SerializeToString()


def one_file(path: Path, threads: int) -> Model:
    """The exported cascade."""
    held = session(str(path), threads)
    return lambda x: tuple(held.run(None, {"input": x}))  # type: ignore[return-value]


def compare(
    models: dict[str, Callable[[Any], object]], batches: Sequence[Any], rounds: int
) -> float:
    """Time of the last model over that of the first."""
    runs = {name: lambda m=model: [m(x) for x in batches] for name, model in models.items()}
    return time_side_by_side(runs, rounds=rounds)["ratio"]


def main() -> None:
    """Export, check that all three agree, and time them."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of the CIFAR-10 data")
    options.add_argument("--survivors", type=float, default=0.2, help="share that goes on")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--int8", action="store_true", help="quantize the networks")
    options.add_argument("--images", type=int, default=4500, help="the first of them")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore", UserWarning)
    cascade, images = load(arguments.data)
    images = images[: arguments.images]
    if arguments.int8:
        seen = torch.from_numpy(images[-CALIBRATION:])
        cascade = with_backend(cascade, "onnxruntime-int8", example=seen[:1], calibration=seen)
    limit = threshold(cascade, images, arguments.survivors)
    rule = Linear.threshold(Feature("max_prob", 0), limit)
    policy = Policy(cascade.topology, {(0,): Node(rule)})
    runtime = offramp.Adaptive(cascade, policy, fold=not arguments.int8)
    parts = by_hand(cascade, images, limit, arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        example = torch.from_numpy(images[:1])
        made = export_onnx(
            Adaptive(cascade, policy), Path(folder) / "cascade.onnx", example=example
        )
        single = one_file(made.path, arguments.threads)
    result: dict[str, Any] = {
        "threads": arguments.threads,
        "int8": arguments.int8,
        "megabytes": made.bytes / 1e6,
    }
    whole = images[: SIZES[128]]
    _, labels, stages = single(whole)
    result["went_on"] = float(stages.mean())
    for name, (_, other_labels, other_stages) in (
        ("parts", parts(whole)),
        ("runtime", as_arrays(runtime(torch.from_numpy(whole)))),
    ):
        same = (labels == other_labels) & (stages == other_stages)
        result[f"agrees_with_{name}"] = float(same.mean())
    for size, count in SIZES.items():
        batches = [images[k : k + size] for k in range(0, min(count, len(images)), size)]
        result[f"single_file_over_parts_batch{size}"] = compare(
            {"parts": parts, "single": single}, batches, arguments.rounds
        )
        result[f"single_file_over_runtime_batch{size}"] = compare(
            {"runtime": lambda x: runtime(torch.from_numpy(x)), "single": single},
            batches,
            arguments.rounds,
        )
    report(arguments, result)


def as_arrays(answer: offramp.runtime.Prediction) -> tuple[Array, Array, Array]:
    """Logits, labels and stages of the runtime."""
    return answer.log_probs.numpy(), answer.labels.numpy(), answer.stage.numpy()


if __name__ == "__main__":
    main()
