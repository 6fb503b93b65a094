"""The runtime against the work it cannot avoid: pretrained CIFAR ResNet-20 -> ResNet-56.

`over_ideal` is the time of a pass over test images, in batches of a size, over the ideal of
methods.md 6: for each network the images that reach it, times its least time per image at batch
sizes up to that of the batches. A stream of single images can be below it: its survivors run in
larger batches. The threshold on ResNet-20's largest probability lets about a fifth of the images go
on. Networks by themselves, passes and streams take turns in each round; figures are ratios of
medians.

    plain      the cascade as it comes
    times      batches in parts of the best size by a table measured before (`measure_times`)
    stream     survivors of successive batches gather to full batches (`Adaptive.stream`)

`exits_unused_overhead`: 18 exits (average pooling and a linear layer) in ResNet-110 that a policy
asks and nobody takes, over the uncut network in the same backend, by median of ratios within
rounds; as `fuse_for` makes them for that policy, and `exits_unused_apart` with a call for each
segment. `exits_unasked`: the same exits for a policy that asks none of them. A backend that is not
here is named in `skipped`.

`decision_us`: microseconds that one exit takes beside its segment and its head, one image at a
time: a chain of 19 stages against its layers called by hand, in eager PyTorch, or its sessions of
ONNX Runtime; CPU time, least of all rounds.

With --keep-pages glibc keeps freed memory instead of giving it back between operations.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from harness import parser, report
from torch import Tensor, nn

import offramp
from offramp._core.errors import MissingExtraError, UnsupportedError
from offramp._core.memory import keep_freed_memory
from offramp.backends import with_backend
from offramp.models import ModelSpec, build, cifar_resnet
from offramp.models.heads import gap_linear
from offramp.policy import Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Normalize
from offramp.stages.timing import synchronize
from offramp.tuning import fuse_for, measure_times
from offramp.tuning.meter import Meter
from offramp.tuning.profile import ideal

NETWORKS = ("resnet20", "resnet56")
SIZES = (1, 32, 128, 512)
GO_ON = 0.2
IMAGES = {1: 128, 32: 512, 128: 1024, 512: 1024}  # in one pass
EXITS = 18
DECIDED = ("eager", "onnxruntime")  # where the same can be called by hand

Run = Callable[[], object]


def images_of(data: Path) -> Tensor:
    """Test images that were compressed, `(n, 3, 32, 32)`, 0 to 255."""
    with np.load(data / "test_jpeg_1000_5500.npz", allow_pickle=False) as held:
        return torch.from_numpy(held["images"]).permute(0, 3, 1, 2).contiguous()


def pretrained(data: Path) -> Cascade:
    """The two networks."""
    normalize = Normalize(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    folder = data / "resnet_weights"
    specs = {n: ModelSpec(name=n, weights=str(folder / f"{n}_state.npz")) for n in NETWORKS}
    networks = {name: build(spec) for name, spec in specs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Cascade.from_models(networks, specs=specs, transform=normalize)


def threshold(cascade: Cascade, images: Tensor) -> float:
    """The value on the first network's largest probability that lets a fifth go on."""
    with torch.inference_mode():
        said = [cascade.stage(0).run(part)[0] for part in images.split(64)]
        sure = [each.scores().softmax(dim=1).amax(dim=1) for each in said]
    return float(torch.cat(sure).quantile(GO_ON))


def policy_of(cascade: Cascade, value: float) -> Policy:
    """Leave where the largest probability is at least a value."""
    topology = cascade.topology
    nodes = {
        path: Node(Linear.threshold(Feature("max_prob", path[-1]), value))
        for path in topology.paths()
        if topology.children(path[-1])
    }
    return Policy(topology, nodes)


def in_backend(
    cascade: Cascade, backend: str, example: Tensor, *, fuse: Sequence[str] = ()
) -> Cascade:
    """The cascade in a backend; eager is the cascade itself."""
    if backend == "eager":
        return cascade
    return with_backend(cascade, backend, example=example, head_in_segment=fuse)


def seconds(run: Run) -> float:
    """Of one call, until the device is done as well."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def answer_all(model: Adaptive, parts: Sequence[Tensor]) -> None:
    """Batch after batch."""
    for part in parts:
        model(part)


def stream_all(model: Adaptive, parts: Sequence[Tensor]) -> None:
    """The same as a stream."""
    for _ in model.stream(parts):
        pass


def over_ideal(
    cascade: Cascade,
    policy: Policy,
    images: Tensor,
    rounds: int,
    passes: Mapping[int, int] = IMAGES,
) -> dict[str, dict[str, float]]:
    """Time of each way to run over the ideal, for each batch size with its images in a pass."""
    every = [2**k for k in range(8) if 2**k <= max(passes)]
    times = measure_times(cascade, images[:128], batch_sizes=[*every, max(passes)], rounds=rounds)
    models = {"plain": Adaptive(cascade, policy), "times": Adaptive(cascade, policy, times=times)}
    stages = {k: cascade.stage(k) for k in range(len(cascade))}
    found: dict[str, dict[str, float]] = {}
    for size, count in passes.items():
        parts = list(images[:count].split(size))
        sizes = [*(each for each in every if each < size), size]
        meter = Meter(cascade.topology, stages, images[:128], sizes)
        runs: dict[str, Run] = {
            "plain": partial(answer_all, models["plain"], parts),
            "times": partial(answer_all, models["times"], parts),
            "stream": partial(stream_all, models["times"], parts),
        }
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds + 1):
            if number == 1:  # the first round was to warm up
                meter.forget()
                taken = {name: [] for name in runs}
            for name, run in runs.items():
                taken[name].append(seconds(run))
            meter.round()
        limit, _ = ideal(models["plain"], parts, meter, at_most=size)
        found[str(size)] = {name: median(taken[name]) / sum(limit.values()) for name in runs}
    return found


def exits_unused(backend: str, rounds: int) -> dict[str, dict[str, float]]:
    """Time of ResNet-110 with exits that nobody takes over that of the uncut network."""
    net = cifar_resnet(110).eval()
    blocks = [(f"layer{k}.{b}", 16 * 2 ** (k - 1)) for k in (1, 2, 3) for b in range(18)]
    chosen = [blocks[round((i + 1) * len(blocks) / (EXITS + 1)) - 1] for i in range(EXITS)]
    heads = {name: gap_linear(channels, 10) for name, channels in chosen}
    one = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    at = [name for name, _ in chosen]
    exits = Cascade.from_network(net, at, head=heads, example=one)
    policy = policy_of(exits, 2.0)  # no probability is as large
    uncut: nn.Module = in_backend(Cascade.from_models({"net": net}), backend, one).stage(0).module
    apart = in_backend(exits, backend, one, fuse=at)  # every exit is asked
    joined = fuse_for(exits, policy, one, backend=backend)
    alone = Policy(exits.topology.chain([exits.topology.names[-1]]), {})
    models = {
        "exits_unused_overhead": Adaptive(joined, policy),
        "exits_unused_apart": Adaptive(apart, policy),
        "exits_unasked": Adaptive(fuse_for(exits, alone, one, backend=backend), alone),
    }
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    for size, calls in ((1, 20), (128, 1)):
        batch = one.expand(size, -1, -1, -1).contiguous()

        def whole(batch: Tensor = batch, calls: int = calls) -> None:
            with torch.inference_mode():
                for _ in range(calls):
                    uncut(batch)

        def with_exits(model: Adaptive, batch: Tensor = batch, calls: int = calls) -> None:
            for _ in range(calls):
                model(batch)

        for name, model in models.items():
            run = partial(with_exits, model)
            whole(), run()
            found[name][str(size)] = median(seconds(run) / seconds(whole) for _ in range(rounds))
    return found


class Added(nn.Module):
    """As little as a segment may do."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return x + 1.0


def decision_us(backend: str, rounds: int) -> float:
    """Microseconds of one exit beside its segment and its head."""
    segments = nn.Sequential(*(Added() for _ in range(EXITS + 1)))
    last = gap_linear(16, 10).eval()
    net = nn.Sequential(segments, last).eval()
    one = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    heads = {f"0.{k}": gap_linear(16, 10).eval() for k in range(EXITS)}
    exits = Cascade.from_network(net, list(heads), head=heads, example=one)
    exits = in_backend(exits, backend, one, fuse=exits.topology.names)
    model = Adaptive(exits, policy_of(exits, 2.0))

    def by_layers() -> None:
        x = one
        for segment, head in zip(segments, (*heads.values(), last), strict=True):
            x = segment(x)
            head(x)

    by_hand = by_sessions(exits, one) if backend == "onnxruntime" else by_layers
    taken: dict[str, list[float]] = {"model": [], "by hand": []}
    with torch.inference_mode():
        for _ in range(20 * rounds):
            for name, run in (("model", partial(model, one)), ("by hand", by_hand)):
                start = time.process_time()
                run()
                taken[name].append(time.process_time() - start)
    return (min(taken["model"]) - min(taken["by hand"])) / EXITS * 1e6


def by_sessions(exits: Cascade, one: Tensor) -> Run:
    """The same models of ONNX Runtime one after the other, as somebody would write it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    models = [stage.module.files() for stage in exits]  # type: ignore[operator]
    sessions = [onnxruntime.InferenceSession(model, options) for (model,) in models]
    names = [
        (session.get_inputs()[0].name, [given.name for given in session.get_outputs()])
        for session in sessions
    ]

    def run() -> None:
        x = one.numpy()
        for session, (name, outputs) in zip(sessions, names, strict=True):
            x, *_ = session.run(outputs, {name: x})

    return run


def measured(backend: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one backend."""
    images, original = images_of(options.data)[: options.images], pretrained(options.data)
    value = threshold(original, images)
    cascade = in_backend(original, backend, images[:8])
    went_on = Adaptive(cascade, policy_of(cascade, value))(images[:512]).stage.float().mean()
    return {
        "went_on": float(went_on),
        "over_ideal": over_ideal(cascade, policy_of(cascade, value), images, options.rounds),
        **exits_unused(backend, options.rounds),
        **({"decision_us": decision_us(backend, options.rounds)} if backend in DECIDED else {}),
    }


def main() -> None:
    """Measure each backend."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True, help="folder of the CIFAR-10 data")
    options.add_argument("--backends", nargs="+", default=["eager", "folded", "onnxruntime"])
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--images", type=int, default=4500, help="the first of them")
    options.add_argument("--threads", type=int, help="of PyTorch; by default all cores")
    options.add_argument("--keep-pages", action="store_true")
    arguments = options.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    kept = keep_freed_memory() if arguments.keep_pages else False
    found: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for backend in arguments.backends:
        try:
            found[backend] = measured(backend, arguments)
        except (MissingExtraError, UnsupportedError) as error:
            skipped[backend] = str(error)
    ways = ("plain", "times")  # a stream answers later; it stands beside them
    best = {
        str(size): min(
            each["over_ideal"][str(size)][way] for each in found.values() for way in ways
        )
        for size in SIZES
    }
    report(
        arguments,
        {
            "over_ideal": best,
            "backends": found,
            "skipped": skipped,
            "pages_kept": kept,
            "threads": torch.get_num_threads(),
            "version": offramp.__version__,
        },
    )


if __name__ == "__main__":
    main()
