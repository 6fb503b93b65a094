"""The runtime on a GPU, against the work it cannot avoid, one compiled network, and earlyon.

Pre-activation ResNet-20 -> ResNet-56, as `runtime.py` measures the pretrained ones on a CPU: a
threshold lets a fifth of the images go on. Images lie on the device. Weights are those of
`gpu/run.sh networks` where they are given, else random: what goes on is the same share.

    over_ideal        time of a pass over the ideal of methods.md 6, by backend and batch size
    waits             times that the host waited for the device in one batch, by backend
    speedup           the large network alone over the cascade, both on the fastest backend of each
    speedup_compiled  the same network under torch.compile (CUDA graphs within), over the cascade
    vs_earlyon        ResNet-56 with three exits: earlyon's time over ours, both eager; without
                      earlyon (`pip install earlyon==0.3.0`) it is left out

Seconds are medians of rounds that take turns; the device is waited for before and after each.
`left_out` names what could not be measured and why. `--tiny` and a CPU try the code.
"""

import argparse
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import parser, report
from peers import Exits, earlyon_of, run_earlyon
from runtime import GO_ON, answer_all, in_backend, over_ideal, policy_of, seconds, threshold
from torch import Tensor, nn
from train_backbone import NORMALIZE

from offramp._core.errors import MissingExtraError, UnsupportedError
from offramp.models import ModelSpec, build
from offramp.models.heads import gap_linear
from offramp.policy import Candidate, Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade

SIZES = (1, 128, 1024)
NETWORKS, SMALL = ("preresnet20", "preresnet56"), ("preresnet8", "preresnet14")
BACKENDS = {"cuda": ("eager", "cuda", "cuda-graph"), "cpu": ("eager", "folded")}
EXITS = ("layer1.8", "layer2.8", "layer3.4")
LEAST_S = 45.0  # seconds left that something more is begun with

Left = Callable[[], float]


def unlimited() -> float:
    """Seconds left where nobody counts them."""
    return math.inf


def networks(names: Sequence[str], folder: Path | None, device: str) -> Cascade:
    """The two networks, on the device."""
    weights = {n: None if folder is None else folder / f"{n}.safetensors" for n in names}
    nets = {}
    for n, path in weights.items():
        held = str(path) if path is not None and path.exists() else None
        net = build(ModelSpec(name=n, weights=held)).eval()
        nets[n] = net.to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Cascade.from_models(nets, transform=NORMALIZE).to(device)


def images_on(device: str, count: int) -> Tensor:
    """Noise with a shape in it, bytes, on the device: speed does not depend on what is seen."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    return (smooth * 255).to(torch.uint8).to(device)


def waits(run: Callable[[], object], device: str) -> int | None:
    """How often the host waits for the device; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    run()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in seen)


def side_by_side(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, after two rounds to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for _ in range(2 + rounds):
            for name, run in runs.items():
                taken[name].append(seconds(run))
    return {name: median(each[2:]) for name, each in taken.items()}


def each_of(module: Callable[[Tensor], object], parts: Sequence[Tensor]) -> None:
    """A network on batch after batch."""
    for part in parts:
        module(part)


def measure(options: argparse.Namespace, left: Left = unlimited) -> dict[str, Any]:
    """All figures.

    Args:
        options: Of the command line.
        left: Seconds that are left; what there is no time for is in `left_out`.
    """
    device, left_out = options.device, dict[str, str]()
    passes = {size: _in_a_pass(size, options.tiny) for size in options.batch_sizes}
    images = images_on(device, max(passes.values()))
    original = networks(SMALL if options.tiny else NETWORKS, options.weights, device)
    value = threshold(original, images)
    policy = policy_of(original, value)
    result: dict[str, Any] = {"over_ideal": {}, "waits": {}, "batch_sizes": list(passes)}
    models: dict[str, Adaptive] = {}
    wholes: dict[str, nn.Module] = {}
    for backend in BACKENDS[torch.device(device).type]:
        if left() < LEAST_S:
            left_out[backend] = "no time was left"
            continue
        try:
            cascade = in_backend(original, backend, images[:8])
        except (MissingExtraError, UnsupportedError) as error:
            left_out[backend] = str(error)
            continue
        models[backend] = Adaptive(cascade, policy)
        wholes[backend] = Adaptive.single(cascade, 1)
        result["over_ideal"][backend] = over_ideal(cascade, policy, images, options.rounds, passes)
        result["waits"][backend] = waits(partial(models[backend], images[:128]), device)
    answer = models["eager"](images)
    result["went_on"] = float((answer.stage > 0).float().mean())
    result |= _against_one(models, wholes, original, images, passes, options, left, left_out)
    result["vs_earlyon"] = _against_earlyon(images, passes, options, left, left_out)
    return result | {"left_out": left_out}


def _in_a_pass(size: int, tiny: bool) -> int:
    return max(size, 4 if tiny else min(2048, max(64, 8 * size)))


def _against_one(
    models: Mapping[str, Adaptive],
    wholes: Mapping[str, nn.Module],
    cascade: Cascade,
    images: Tensor,
    passes: Mapping[int, int],
    options: argparse.Namespace,
    left: Left,
    left_out: dict[str, str],
) -> dict[str, dict[str, float]]:
    """The large network alone, in each backend and compiled, over the cascade."""
    large = nn.Sequential(cascade.stage(1).transform, cascade.stage(1).module)
    found: dict[str, dict[str, float]] = {"speedup": {}, "speedup_compiled": {}}
    for size, count in passes.items():
        parts = list(images[:count].split(size))
        runs: dict[str, Callable[[], object]] = {}
        for name, model in models.items():
            runs[f"ours {name}"] = partial(answer_all, model, parts)
            runs[f"alone {name}"] = partial(each_of, wholes[name], parts)
        if options.compile and left() > 2 * LEAST_S:
            runs |= _compiled(large, parts, left_out)
        elif options.compile:
            left_out[f"torch.compile, batch {size}"] = "no time was left"
        taken = side_by_side(runs, options.rounds)
        best = min(value for name, value in taken.items() if name.startswith("ours"))
        alone = min(value for name, value in taken.items() if name.startswith("alone"))
        found["speedup"][str(size)] = alone / best
        if "compiled" in taken:
            found["speedup_compiled"][str(size)] = taken["compiled"] / best
    return found


def _compiled(
    net: nn.Module, parts: Sequence[Tensor], left_out: dict[str, str]
) -> dict[str, Callable[[], object]]:
    """The network under torch.compile, for batches of one size."""
    mode = "reduce-overhead" if parts[0].is_cuda else "default"
    try:
        compiled = torch.compile(net, mode=mode, dynamic=False)
        with torch.inference_mode():
            compiled(parts[0])
    except Exception as error:  # noqa: BLE001  (whatever a compiler raises)
        left_out[f"torch.compile, batch {len(parts[0])}"] = f"{type(error).__name__}: {error}"[:300]
        return {}
    return {"compiled": partial(each_of, compiled, parts)}


def with_exits(images: Tensor, *, tiny: bool) -> Exits:
    """ResNet-56 with three exits at each of which half of those who come leave, on the CPU."""
    net = build(ModelSpec(name="resnet14" if tiny else "resnet56")).eval()
    at = ("layer1.1", "layer2.0", "layer2.1") if tiny else EXITS
    widths = {"layer1": 16, "layer2": 32, "layer3": 64}
    heads = {name: gap_linear(widths[name.partition(".")[0]], 10) for name in at}
    cascade = Cascade.from_network(
        net, list(at), head=heads, example=images[:2], transform=NORMALIZE
    )
    chain, nodes = cascade.topology, {}
    standing = images
    for path in chain.paths()[:-1]:
        with torch.inference_mode():
            sure = cascade(standing)[:, path[-1]].softmax(dim=1).amax(dim=1)
        value = float(sure.quantile(0.5))
        standing = standing[sure < value]
        nodes[path] = Node(Linear.threshold(Feature("max_prob", path[-1]), value))
    candidate = Candidate(
        policy=Policy(chain, nodes), method="threshold", reference=chain.names[-1]
    )
    return Exits(
        net=net,
        cascade=cascade,
        candidate=candidate,
        cost_ratio=math.nan,
        accuracy_drop=math.nan,
        images=images,
    )


def _against_earlyon(
    images: Tensor,
    passes: Mapping[int, int],
    options: argparse.Namespace,
    left: Left,
    left_out: dict[str, str],
) -> dict[str, float]:
    if left() < LEAST_S:
        left_out["earlyon"] = "no time was left"
        return {}
    NORMALIZE.cpu()
    exits = with_exits(images[:256].cpu(), tiny=options.tiny)
    wrapped = earlyon_of(exits)  # it tries the network, on the CPU
    if wrapped is None:
        left_out["earlyon"] = "it is not installed"
        return {}
    ours = Adaptive(exits.cascade, exits.candidate).to(options.device)
    wrapped.to(options.device)
    found = {}
    for size, count in passes.items():
        parts = list(images[: min(count, 1024)].split(size))
        taken = side_by_side(
            {
                "ours": partial(answer_all, ours, parts),
                "theirs": partial(each_of, partial(run_earlyon, wrapped), parts),
            },
            options.rounds,
        )
        found[str(size)] = taken["theirs"] / taken["ours"]
    return found


def rows(found: Mapping[str, Any], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """The figures as rows of a table, a column for each batch size."""
    made: list[dict[str, Any]] = []
    for backend, by_size in found["over_ideal"].items():
        cells = {f"batch {size}": by_size[str(size)]["plain"] for size in sizes}
        made.append({"what": f"over_ideal, {backend}"} | cells)
        made.append({"what": f"waits, {backend}", "batch 128": found["waits"][backend]})
    for name in ("speedup", "speedup_compiled", "vs_earlyon"):
        cells = {f"batch {size}": found[name].get(str(size)) for size in sizes}
        made.append({"what": name} | cells)
    return made


def main() -> None:
    """Read the options, measure, report."""
    options = parser(__doc__ or "")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--batch-sizes", type=int, nargs="+", default=list(SIZES))
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--weights", type=Path, help="folder that gpu/run.sh networks has written")
    options.add_argument("--no-compile", dest="compile", action="store_false")
    options.add_argument("--tiny", action="store_true", help="small networks, few images")
    arguments = options.parse_args()
    report(arguments, measure(arguments) | {"go_on": GO_ON, "device": arguments.device})


if __name__ == "__main__":
    main()
