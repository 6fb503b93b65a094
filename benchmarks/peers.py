"""Adaptive inference against what a user would take instead, side by side.

The pretrained CIFAR ResNet-56 with exits and one threshold on the largest probability after each
(the policy that earlyon 0.3 knows), chosen for at most `--max-drop` on JPEG test images; timed on
images of the test part, both packages with the same network, heads, temperatures and thresholds.
All contenders of one batch size are called in turn, round after round; ratios are of medians.

    vs_earlyon        earlyon's time over ours, both in eager PyTorch
    vs_earlyon_folded the same over ours with batch norms folded into convolutions, eager as well
    vs_earlyon_best   the same over ours on the fastest exact backend of `--backends`
    vs_mask           computing every stage for everyone and choosing afterwards, over ours, eager
    vs_loop           ours one example at a time in a Python loop, over ours on the batch
    vs_compile        the network without exits under torch.compile, over ours on the best backend
    vs_static         the network without exits, eager, over ours, eager
    cost_ratio        FLOPs of the exits in use over the network's; what is saved on paper

Then int8, what many take instead of adaptive inference: ResNets 20 to 56 quantized alike, the
learned policy refitted on their own outputs and chosen for no loss against the quantized ResNet-56.

    vs_static_int8    throughput of the fastest adaptive int8 model over that of the fastest static
                      int8 ResNet-56, all of `--int8` in turn; with a backend's name within it
    difference_int8   accuracy of the policy minus the static int8 ResNet-56's, mean over `--seeds`
                      test parts; difference_int8_to_fp32 is against ResNet-56 in float32

earlyon is no dependency: `pip install earlyon==0.3.0`; without it its keys are left out. Heads are
those of `early_exit_cifar10.py` (the same `--work` takes them over).

    python benchmarks/peers.py --data DIR --train DIR --work runs/early_exit --json
"""

import argparse
import statistics
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from early_exit_cifar10 import BACKBONES, JPEG_SPLITS, jpeg_images, learn, with_exits
from harness import parser, report, scaled
from selection_cifar10 import NETWORKS, REFERENCE
from torch import Tensor, nn
from train_backbone import NORMALIZE

import offramp
from offramp.backends import with_backend
from offramp.data import Dataset, cifar10
from offramp.evaluation import evaluate
from offramp.fitting.chains import chains_to_fit
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.policy.rules import Constant, Linear
from offramp.runtime import Adaptive
from offramp.runtime.inflight import InFlight
from offramp.stages import Cascade, time_side_by_side
from offramp.trace import Trace

COUNTS = {1: 128, 32: 1024, 128: 1408}  # batch size: images of a round
EXACT = ("folded", "onnxruntime", "openvino")
INT8 = ("onnxruntime-int8", "openvino-int8")
CALIBRATION = 256  # images for the scales of int8
Run = Callable[[Tensor], object]


@dataclass(frozen=True, kw_only=True)
class Exits:
    """The cascade of exits, its policy, and images of the test part."""

    net: nn.Module
    cascade: Cascade
    candidate: Candidate
    cost_ratio: float
    accuracy_drop: float
    images: Tensor


def with_thresholds(options: argparse.Namespace) -> Exits:
    """Exits with the best thresholds on the largest probability."""
    backbone, name = BACKBONES["resnet56_clean"], "resnet56_clean"
    weights = options.data / "resnet_weights" / "resnet56_state.npz"
    cascade = with_exits(backbone, weights)
    work = options.work / name
    work.mkdir(parents=True, exist_ok=True)
    learn(cascade, backbone, options, work)
    unseen = jpeg_images(options.data, options.judge)
    sizes: Any = scaled(JPEG_SPLITS, len(unseen))
    trace = offramp.record(cascade, unseen).split_into(sizes, seed=0)
    chains = chains_to_fit(trace.subset("fit"), reference="last")
    frontier = offramp.fit(
        trace,
        "threshold",
        reference="last",
        topologies=chains,
        combines=["last"],
        confidences=["max_prob"],
        progress=False,
    )
    candidate = frontier.cheapest(max_drop=options.max_drop, delta=None).candidate
    test = trace.subset("test")
    found = evaluate(test, candidate, bootstrap=0)
    return Exits(
        net=build(ModelSpec(name="resnet56", weights=str(weights))).eval(),
        cascade=cascade,
        candidate=candidate,
        cost_ratio=found.cost_ratio,
        accuracy_drop=found.accuracy_drop,
        images=pixels(unseen, test),
    )


def pixels(images: Dataset, part: Trace) -> Tensor:
    """The images of a part of a trace, raw."""
    rows = torch.from_numpy(np.isin(images.ids, part.ids))
    return torch.as_tensor(images.take(rows).inputs)


def earlyon_of(exits: Exits) -> nn.Module | None:
    """The same network, heads, temperatures and thresholds in earlyon; None if it is missing."""
    # Beside a CPU build of torch, torchvision fails to register the shapes of its own operators.
    sys.modules.setdefault(
        "torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations")
    )
    try:
        from earlyon.core.types import EarlyExitConfig, ExitPoint
        from earlyon.core.wrappers import EarlyExitWrapper
    except ImportError:
        return None
    policy, topology = exits.candidate.policy, exits.candidate.policy.topology
    points, heads, thresholds, temperatures = [], {}, [], {}
    for path in topology.paths()[:-1]:
        stage, rule = exits.cascade.stage(path[-1]), policy.node(path).leave
        name = f"exit{len(points)}"
        points.append(ExitPoint(name, f"1.{stage.group}", 1))
        heads[name] = stage.head
        thresholds.append(threshold_of(rule))
        temperatures[name] = float(policy.temperatures[path[-1]])
    temperatures["final"] = float(policy.temperatures[topology.active[-1]])
    config = EarlyExitConfig(
        backbone="custom",
        num_classes=10,
        exit_points=points,
        confidence_thresholds=thresholds,
        temperatures=temperatures,
    )
    whole = nn.Sequential(NORMALIZE, exits.net)
    shape = (1, 3, 32, 32)
    return EarlyExitWrapper(whole, heads, nn.Identity(), config, input_shape=shape).eval()


def threshold_of(rule: object) -> float:
    """The probability from which a rule lets go; above 1 for never."""
    if isinstance(rule, Constant):
        return 0.0 if rule.take else 1.0
    if not isinstance(rule, Linear):
        raise TypeError(f"A threshold is a Linear rule, got {type(rule).__name__}.")
    return -float(rule.bias)


class Masked:
    """Every stage for everyone; the first that lets go answers."""

    def __init__(self, model: offramp.Adaptive) -> None:
        self.model, self.policy = model, model.policy
        inner = self.policy.topology.paths()[:-1]
        self.limits = [*(threshold_of(self.policy.node(path).leave) for path in inner), 0.0]

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        running = InFlight(self.model.program, batch, torch.arange(len(batch), device=batch.device))
        labels, undecided = torch.zeros(len(batch)).long(), torch.ones(len(batch)).bool()
        for stage, limit in zip(self.policy.topology.active, self.limits, strict=True):
            logits = running.visit(stage, None).scores() / self.policy.temperatures[stage]
            best = logits.softmax(dim=1).max(dim=1)
            leaves = undecided & (best.values >= limit)
            labels = torch.where(leaves, best.indices, labels)
            undecided = undecided & ~leaves
        return labels


def run_earlyon(wrapped: nn.Module, batch: Tensor) -> Tensor:
    """One batch through earlyon; a single example takes its faster way."""
    if len(batch) == 1:
        return wrapped(batch).prediction  # type: ignore[no-any-return]
    return wrapped.forward_inference_batched(batch).predictions  # type: ignore[no-any-return, operator]


def compare_exits(exits: Exits, options: argparse.Namespace) -> dict[str, Any]:
    """Times of everything but int8, for each batch size."""
    images = exits.images
    example = images[:2]
    wrapped = earlyon_of(exits)
    eager = offramp.Adaptive(exits.cascade, exits.candidate)
    topology = exits.candidate.policy.topology
    asked = [topology.names[stage] for stage in topology.active]
    backends = {
        name: offramp.Adaptive(
            with_backend(exits.cascade, name, example=example, head_in_segment=asked),
            exits.candidate,
        )
        for name in options.backends
    }
    whole = nn.Sequential(NORMALIZE, exits.net).eval()
    static = torch.inference_mode()(whole.forward)
    contenders: dict[str, Run] = {"eager": eager, "mask": Masked(eager), "static": static}
    contenders |= backends
    if wrapped is not None:
        contenders["earlyon"] = lambda x: run_earlyon(wrapped, x)
    if options.compile:
        contenders["compile"] = torch.inference_mode()(torch.compile(whole, dynamic=True))
    result: dict[str, Any] = {"labels_differ": differing(contenders, images[:256])}
    for size in options.batch_sizes:
        batches = list(images[: COUNTS.get(size, 1024)].split(size))
        also: dict[str, Run] = {}
        if size > 1:
            also["loop"] = lambda x: [eager(one) for one in x.split(1)]
        times = timed(contenders | also, batches, options.rounds)
        result |= ratios(times, options.backends, size)
    return result


def differing(contenders: Mapping[str, Run], images: Tensor) -> dict[str, int]:
    """How many labels of each contender are not ours, one image at a time."""
    ours = torch.cat([labels_of(contenders["eager"](x)) for x in images.split(1)])
    routed = [name for name in contenders if name not in ("static", "compile")]
    return {
        name: int(
            (torch.cat([labels_of(contenders[name](x)) for x in images.split(1)]) != ours).sum()
        )
        for name in routed
    }


def labels_of(answer: Any) -> Tensor:
    if isinstance(answer, Tensor):
        return answer if answer.dim() == 1 else answer.argmax(dim=1)
    return answer.labels  # type: ignore[no-any-return]


def timed(contenders: Mapping[str, Run], batches: list[Tensor], rounds: int) -> Mapping[str, float]:
    """Median seconds of each over all batches."""
    functions = {
        name: (lambda run=run: [run(x) for x in batches]) for name, run in contenders.items()
    }
    return time_side_by_side(functions, rounds=rounds)


def ratios(times: Mapping[str, float], backends: list[str], size: int) -> dict[str, Any]:
    """What the others take over what we take."""
    best = min(backends, key=lambda name: times[name])
    found: dict[str, Any] = {f"best_backend_batch{size}": best}
    pairs = {
        "vs_earlyon": ("earlyon", "eager"),
        "vs_earlyon_folded": ("earlyon", "folded"),
        "vs_earlyon_best": ("earlyon", best),
        "vs_mask": ("mask", "eager"),
        "vs_loop": ("loop", "eager"),
        "vs_compile": ("compile", best),
        "vs_static": ("static", "eager"),
    }
    for key, (other, ours) in pairs.items():
        if other in times and ours in times:
            found[f"{key}_batch{size}"] = times[other] / times[ours]
    return found


def compare_int8(options: argparse.Namespace) -> dict[str, Any]:
    """The quantized cascade against the quantized network, for each int8 backend."""
    weights = options.data / "resnet_weights"
    networks = {
        name: build(ModelSpec(name=name, weights=str(weights / f"{name}_state.npz"))).eval()
        for name in NETWORKS
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        cascade = Cascade.from_models(networks, transform=NORMALIZE)
    scales = torch.as_tensor(cifar10(options.train).take(torch.arange(CALIBRATION)).inputs)
    unseen = jpeg_images(options.data, options.judge)
    exact, sizes = offramp.record(cascade, unseen), scaled(JPEG_SPLITS, len(unseen))
    result: dict[str, Any] = {}
    contenders: dict[str, Run] = {}
    for backend in options.int8:
        quantized = with_backend(cascade, backend, example=scales[:2], calibration=scales)
        name = quantized.topology.names[-1]
        trace = offramp.record(quantized, unseen, costs=exact.costs)
        to_own, to_exact, costs, first = [], [], [], None
        for seed in range(options.seeds):
            divided = trace.split_into(sizes, seed=seed)  # type: ignore[arg-type]
            frontier = offramp.fit(divided, "learned", reference=name, progress=False)
            candidate = frontier.cheapest(max_drop=0.0, delta=None).candidate
            test = divided.subset("test")
            found = evaluate(test, candidate, bootstrap=0)
            other = exact.split_into(sizes, seed=seed).subset("test")  # type: ignore[arg-type]
            to_own.append(found.accuracy_drop)
            to_exact.append(other.accuracy(NETWORKS.index(REFERENCE)) - found.accuracy)
            costs.append(found.cost_ratio)
            first = first or (candidate, pixels(unseen, test))
        candidate, images = first  # type: ignore[misc]
        contenders[f"adaptive {backend}"] = offramp.Adaptive(quantized, candidate)
        contenders[f"static {backend}"] = Adaptive.single(quantized, name)
        result[f"difference_int8_{backend}"] = -statistics.fmean(to_own)
        result[f"difference_int8_to_fp32_{backend}"] = -statistics.fmean(to_exact)
        result[f"cost_ratio_int8_{backend}"] = statistics.fmean(costs)
        result[f"setting_int8_{backend}"] = candidate.label
    for size in options.batch_sizes:
        batches = list(images[: COUNTS.get(size, 1024)].split(size))
        times = timed(contenders, batches, options.rounds)
        adaptive, static = (
            {backend: times[f"{kind} {backend}"] for backend in options.int8}
            for kind in ("adaptive", "static")
        )
        for backend in options.int8:
            result[f"vs_static_int8_{backend}_batch{size}"] = static[backend] / adaptive[backend]
        best = min(adaptive, key=adaptive.__getitem__)
        result[f"best_int8_batch{size}"] = best
        result[f"vs_static_int8_batch{size}"] = min(static.values()) / adaptive[best]
    return result


def main() -> None:
    """Train or read the heads, choose thresholds, time everything in turn."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of the CIFAR-10 data")
    options.add_argument(
        "--train", type=Path, required=True, help="folder of the official binary layout"
    )
    options.add_argument("--work", type=Path, default=Path("runs/early_exit"), help="checkpoints")
    options.add_argument("--images", type=int, default=50_000, help="training images of heads")
    options.add_argument("--judge", type=int, default=5_000, help="JPEG images at most")
    options.add_argument("--epochs", type=int, default=8)
    options.add_argument("--max-drop", type=float, default=0.01)
    options.add_argument("--backends", nargs="*", default=list(EXACT), help="none: only int8")
    options.add_argument("--int8", nargs="*", default=list(INT8), help="none: only exits")
    options.add_argument("--batch-sizes", type=int, nargs="+", default=list(COUNTS))
    options.add_argument("--rounds", type=int, default=11)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--no-compile", dest="compile", action="store_false")
    arguments = options.parse_args()
    result: dict[str, Any] = {"threads": torch.get_num_threads()}
    if arguments.backends:
        exits = with_thresholds(arguments)
        result["cost_ratio"] = exits.cost_ratio
        result["difference"] = -exits.accuracy_drop
        result["setting"] = exits.candidate.label
        result |= compare_exits(exits, arguments)
    if arguments.int8:
        result |= compare_int8(arguments)
    report(arguments, result)


if __name__ == "__main__":
    main()
