"""A cascade on Ray: the application, the data sets, and what a simulation says of both.

ResNet-20 -> ResNet-56 on CIFAR images, a fifth of which goes on (`--tiny`: two small networks on
noise). Everything runs on this machine, so this shows what Ray costs and nothing of what it scales:
`scale` comes from the simulation.

`serve_vs_offramp_serve`: requests a second of the application over those of `offramp serve`.
`serve_vs_naive_ray`: over a composition of two deployments with `@serve.batch`, by hand; rounds
take turns. `serve_vs_naive_ray_cpu`: seconds that all of its processes compute for a request over
those of ours, which other work on the machine changes less.
`data_over_loop`: images a second of Ray Data with one process over `stream` in this process, the
start of processes not counted. `actor_over_pools`: the same over one pool of processes per stage.
`simulated_throughput_over_real`, `simulated_p99_over_real`: of the application under Poisson
arrivals at half of its throughput, all of it on the cores of this machine. What Ray and the front
compute for a request is measured with a cascade whose stages cost next to nothing (`front` among
the requests a second), and what a lone request waits beside that; `apart` is the same with each
stage in a deployment of its own. `simulated_cpu_over_real`: seconds that all processes compute for
a request, by the simulation and as measured.
"""

import argparse
import asyncio
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from harness import parser, report
from runtime import images_of, policy_of, pretrained, threshold
from serving_load import Server, closed_loop, free_port, open_loop, requests_json, requests_v2
from serving_peers import FULL, SEEN
from torch import Tensor

import offramp
from offramp.batch import classify
from offramp.batch.cluster import ray_data
from offramp.cli.simulate import shares_of
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Normalize
from offramp.tuning.meter import measure_times
from offramp.tuning.simulate import plan, simulate
from offramp.tuning.traffic import Traffic

PEER = (sys.executable, "-c", "import serving_peers; serving_peers.main()")
REPLICAS = (1, 10, 100, 1000)
NAME = "plain"


def made(arguments: argparse.Namespace, folder: Path) -> tuple[Path, Path, Tensor]:
    """A bundle, one whose stages cost next to nothing, and images that no policy has seen."""
    if arguments.tiny:
        cascade = of_small(2, 8)
        drawn = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (SEEN + 256, 3, 32, 32), dtype=torch.uint8, generator=drawn)
    else:
        cascade, images = pretrained(arguments.data), images_of(arguments.data)
    seen, others = images[:SEEN], images[SEEN:][: arguments.images]
    empty = saved(of_small(1, 1), seen, folder / "empty" / NAME)
    return saved(cascade, seen, folder / NAME), empty, others


def of_small(*widths: int) -> offramp.Cascade:
    """Networks on noise, as wide as these."""
    specs = {
        f"{k}": ModelSpec(
            name="small_cnn",
            arguments={"width": width, "depth": 2, "classes": 10, "in_channels": 3},
        )
        for k, width in enumerate(widths)
    }
    nets = {name: build(spec) for name, spec in specs.items()}
    return offramp.Cascade.from_models(nets, specs=specs, transform=Normalize(scale=1 / 255))


def saved(cascade: offramp.Cascade, images: Tensor, path: Path) -> Path:
    """A bundle in which a fifth of these images goes on."""
    costs = offramp.Costs.simple("flops", [1.0, 3.0])
    policy = policy_of(cascade, threshold(cascade, images))
    chosen = Candidate(policy=policy, method="threshold", reference=cascade.topology.names[1])
    path.parent.mkdir(exist_ok=True)
    offramp.save(Adaptive(cascade, chosen, costs=costs), path, input_shape=(3, 32, 32))
    return path


# ---- Ray Serve


def served(
    arguments: argparse.Namespace, bundle: Path, empty: Path, images: Tensor
) -> dict[str, Any]:
    """Requests a second, and seconds of computing for each; all take turns."""
    v2, own = requests_v2(images, NAME, "input"), requests_json(images)
    kinds = (
        ("serve", "serve", bundle, v2),
        ("front", "cluster", empty, v2),
        ("apart", "apart", empty, v2),
        ("cluster", "cluster", bundle, v2),
        ("ray", "ray", bundle, own),
    )
    each: dict[str, list[float]] = {}
    for what, kind, path, requests in kinds * arguments.rounds:
        port = free_port()
        command = [*PEER, kind, str(path), "--port", str(port), "--backend", "folded"]
        if kind == "serve":
            command = [sys.executable, "-m", "offramp", "serve", str(path)]
            command += ["--port", str(port), "--backend", "folded"]
        server = Server(what, command, port)
        try:
            server.start(None, bundle.parent / f"{what}.log")
            ready(port, requests)
            computed = server.cpu_seconds()
            took, answers = asyncio.run(
                closed_loop(port, requests, arguments.clients, seconds=arguments.seconds)
            )
            computed = server.cpu_seconds() - computed
            if wrong := [answer for answer in answers if answer.status != 200]:
                raise RuntimeError(f"{what}: {len(wrong)} failed: {wrong[0]}")
            told = {what: len(answers) / took, f"{what}_cpu": computed / len(answers)}
            print(f"{what}: {told[what]:.0f} requests a second", file=sys.stderr)
            _, alone = asyncio.run(closed_loop(port, requests, 1, count=20))
            told[f"{what}_alone"] = median(one.ended - one.arrived for one in alone)
            if what == "cluster":
                told |= paced(port, requests, arguments, told[what])
        finally:
            server.stop()
        for key, value in told.items():
            each.setdefault(key, []).append(value)
    return {key: median(values) for key, values in each.items()}


def ready(port: int, requests: list[bytes]) -> None:
    """Wait until the first is answered, and ask some more."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        _, answers = asyncio.run(closed_loop(port, requests, 1, count=1))
        if answers and answers[0].status == 200:
            asyncio.run(closed_loop(port, requests, 8, count=64))
            return
        time.sleep(0.5)
    raise RuntimeError("The server has answered nothing in four minutes.")


def paced(
    port: int, requests: list[bytes], arguments: argparse.Namespace, most: float
) -> dict[str, float]:
    """What the simulation is compared with: arrivals at half of the throughput."""
    rate = most / 2
    answers = asyncio.run(open_loop(port, requests, rate, 2 * arguments.seconds, seed=1))
    waits = sorted(answer.ended - answer.arrived for answer in answers if answer.status == 200)
    return {
        "rate": rate,
        "p50_seconds": median(waits),
        "p99_seconds": waits[min(len(waits) - 1, math.ceil(0.99 * len(waits)) - 1)],
    }


# ---- simulation


def simulated(bundle: Path, images: Tensor, real: dict[str, Any]) -> dict[str, Any]:
    """What the simulation says of the same, and of larger clusters."""
    model = offramp.load(bundle, backend="folded")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray gives its processes
    times = measure_times(model.cascade, images[:FULL], batch_sizes=[1, 4, 16, FULL], rounds=3)
    torch.set_num_threads(threads)
    first = model.stage_names[0]
    front = real["front_cpu"]  # of stages that cost nothing: HTTP, the scheduler, Ray
    beside = max(real["front_alone"] - front, 0.0)  # what a request waits with nobody before it
    hop = max(real["apart_alone"] - real["front_alone"], 0.0)
    shares = shares_of(model, images[:256])
    given = {"topology": model.policy.topology, "times": times, "shares": shares}
    ours = {**given, "front": front, "overhead": hop}
    load = max(Traffic(rate=1.0, **given).loads().values())
    scale = {}
    for replicas in REPLICAS:
        # Several small clusters are as one: arrivals in the simulation stay few.
        part = min(replicas, 10)
        fronts = math.ceil(part * front / load)
        traffic = Traffic(rate=0.7 * part / load, fronts=fronts, **ours)
        found, needed = plan(traffic, p99=1.0)
        scale[str(replicas)] = {
            "examples_per_second": traffic.rate * replicas / part,
            "replicas": {name: n * replicas // part for name, n in needed.items()},
            "fronts": fronts * replicas // part,
            "p99_seconds": found.p99,
        }
    cores = len(os.sched_getaffinity(0))
    shared = {**given, "front": front, "fronts": cores, "cores": cores}
    here = simulate(Traffic(rate=real["rate"], **shared), dict.fromkeys(model.stage_names, 1))
    of_one = Traffic(rate=1.0, **shared)
    most = min(1 / max(of_one.loads().values()), cores / of_one.work())
    p50, p99 = ((seconds + beside) if here.stable else None for seconds in (here.p50, here.p99))
    return {
        "simulated_throughput_over_real": most / real["cluster"],
        "simulated_cpu_over_real": of_one.work() / real["cluster_cpu"],
        "simulated_p50_over_real": None if p50 is None else p50 / real["p50_seconds"],
        "simulated_p99_over_real": None if p99 is None else p99 / real["p99_seconds"],
        "front_seconds": front,
        "beside_seconds": beside,
        "overhead_seconds": hop,
        "first": first,
        "scale": scale,
    }


# ---- Ray Data


class First:
    """The first of two pools: it answers, and hands on whoever does not leave."""

    def __init__(self, bundle: str) -> None:
        torch.set_num_threads(1)
        self.model = offramp.load(bundle)
        rule = self.model.policy.node((0,)).leave
        self.value = -float(rule.bias)

    @torch.inference_mode()
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        said, _ = self.model.program.stages[0].run(torch.from_numpy(np.array(batch["x"])))
        sure, labels = said.scores().softmax(dim=1).max(dim=1)
        done = (sure >= self.value).numpy()
        x = batch["x"].copy()
        x[done] = 0  # a row has to travel all the same, beside its answer
        return {"x": x, "label": labels.numpy(), "done": done}


class Second:
    """The second: it answers those who are left."""

    def __init__(self, bundle: str) -> None:
        torch.set_num_threads(1)
        self.model = offramp.load(bundle)

    @torch.inference_mode()
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        labels, rest = batch["label"].copy(), ~batch["done"]
        if rest.any():
            said, _ = self.model.program.stages[1].run(torch.from_numpy(batch["x"][rest]))
            labels[rest] = said.scores().argmax(dim=1).numpy()
        return {"label": labels}


def scored(arguments: argparse.Namespace, bundle: Path, images: Tensor) -> dict[str, Any]:
    """Images a second of a loop, of Ray Data, and of a pool for each stage."""
    model = offramp.load(bundle)
    n = arguments.rows
    many = images.repeat(math.ceil(2 * n / len(images)), 1, 1, 1)[: 2 * n]
    list(model.stream(many[:256].split(FULL)))
    began = time.perf_counter()
    list(model.stream(many[:n].split(FULL)))
    loop = n / (time.perf_counter() - began)
    ray = ray_data()
    sets = {
        size: ray.data.from_numpy(many[:size].numpy()).rename_columns({"data": "x"})
        for size in (n, 2 * n)
    }
    sets = {size: held.materialize() for size, held in sets.items()}
    pool = ray.data.ActorPoolStrategy(size=1)

    def whole(size: int) -> float:
        began = time.perf_counter()
        classify(sets[size], bundle, id=None, workers=1).materialize()
        return time.perf_counter() - began

    def pools(size: int) -> float:
        began = time.perf_counter()
        told: dict[str, Any] = {"compute": pool, "fn_constructor_kwargs": {"bundle": str(bundle)}}
        first = sets[size].map_batches(First, batch_size=FULL, num_cpus=1, **told)
        first.map_batches(Second, batch_size=FULL, num_cpus=1, **told).materialize()
        return time.perf_counter() - began

    def rate(run: Any) -> float:
        return n / max(run(2 * n) - run(n), 1e-6)  # without the start of processes

    print(f"loop: {loop:.0f} images a second", file=sys.stderr)
    one, each = rate(whole), rate(pools)
    ray.shutdown()
    return {
        "loop_images_per_second": loop,
        "data_images_per_second": one,
        "data_over_loop": one / loop,
        "actor_over_pools": one / each,
    }


def main() -> None:
    """Measure, and print."""
    options = parser(__doc__)
    options.add_argument("--data", type=Path, help="folder of the real weights and images")
    options.add_argument("--tiny", action="store_true", help="the smallest run of everything")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=6.0)
    options.add_argument("--clients", type=int, default=64)
    options.add_argument("--images", type=int, default=512)
    options.add_argument("--rows", type=int, default=8192)
    options.add_argument("--skip", nargs="*", default=[], choices=["serve", "data"])
    arguments = options.parse_args()
    if arguments.tiny:
        arguments.rounds, arguments.seconds, arguments.clients = 1, 1.0, 8
        arguments.images, arguments.rows = 128, 512
    elif arguments.data is None:
        options.error("--data is needed without --tiny")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    torch.set_num_threads(1)  # as every process of the cluster
    with tempfile.TemporaryDirectory() as name:
        bundle, empty, images = made(arguments, Path(name))
        result: dict[str, Any] = {}
        if "serve" not in arguments.skip:
            real = served(arguments, bundle, empty, images)
            print(real, file=sys.stderr)
            result = {
                "requests_per_second": {
                    what: real[what] for what in ("serve", "front", "apart", "cluster", "ray")
                },
                "serve_vs_offramp_serve": real["cluster"] / real["serve"],
                "serve_vs_naive_ray": real["cluster"] / real["ray"],
                "serve_vs_naive_ray_cpu": real["ray_cpu"] / real["cluster_cpu"],
                "cpu_seconds_per_request": {
                    what: real[f"{what}_cpu"]
                    for what in ("serve", "front", "apart", "cluster", "ray")
                },
                "p99_seconds": real["p99_seconds"],
                **simulated(bundle, images, real),
            }
        if "data" not in arguments.skip:
            result |= scored(arguments, bundle, images)
    report(arguments, result)


if __name__ == "__main__":
    main()
