"""A cascade on Ray: the application, the data sets, and what a simulation says of both.

ResNet-20 -> ResNet-56 on CIFAR images, a fifth of which goes on (`--tiny`: two small networks on
noise). Everything runs on this machine, so this shows what Ray costs and nothing of what it scales:
`scale` comes from the simulation.

`serve_vs_offramp_serve`: requests a second of the application over those of `offramp serve`.
`serve_vs_naive_ray`: over a composition of two deployments with `@serve.batch`, by hand.
`data_over_loop`: images a second of Ray Data with one process over `stream` in this process, the
start of processes not counted. `actor_over_pools`: the same over one pool of processes per stage.
`simulated_throughput_over_real`, `simulated_p99_over_real`: of the application under Poisson
arrivals at half of its throughput.
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
from offramp.tuning.simulate import Traffic, plan, simulate

PEER = (sys.executable, "-c", "import serving_peers; serving_peers.main()")
REPLICAS = (1, 10, 100, 1000)
NAME = "plain"


def made(arguments: argparse.Namespace, folder: Path) -> tuple[Path, Tensor]:
    """A bundle, and images that its policy has not seen."""
    if arguments.tiny:
        settings = [{"width": width, "depth": 2, "classes": 10} for width in (2, 8)]
        names = ("small", "large")
        specs = {
            name: ModelSpec(name="small_cnn", arguments={**given, "in_channels": 3})
            for name, given in zip(names, settings, strict=True)
        }
        nets = {name: build(spec) for name, spec in specs.items()}
        cascade = offramp.Cascade.from_models(nets, specs=specs, transform=Normalize(scale=1 / 255))
        drawn = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (SEEN + 256, 3, 32, 32), dtype=torch.uint8, generator=drawn)
    else:
        cascade, images = pretrained(arguments.data), images_of(arguments.data)
    costs = offramp.Costs.simple("flops", [1.0, 3.0])
    policy = policy_of(cascade, threshold(cascade, images[:SEEN]))
    chosen = Candidate(policy=policy, method="threshold", reference=cascade.topology.names[1])
    path = folder / NAME
    offramp.save(Adaptive(cascade, chosen, costs=costs), path, input_shape=(3, 32, 32))
    return path, images[SEEN:][: arguments.images]


# ---- Ray Serve


def served(arguments: argparse.Namespace, bundle: Path, images: Tensor) -> dict[str, Any]:
    """Requests a second of all three, one after the other."""
    v2, own = requests_v2(images, NAME, "input"), requests_json(images)
    found: dict[str, Any] = {}
    for what, requests in (("serve", v2), ("cluster", v2), ("ray", own)):
        port = free_port()
        command = [*PEER, what, str(bundle), "--port", str(port), "--backend", "folded"]
        if what == "serve":
            command = [sys.executable, "-m", "offramp", "serve", str(bundle)]
            command += ["--port", str(port), "--backend", "folded"]
        server = Server(what, command, port)
        try:
            server.start(None, bundle.parent / f"{what}.log")
            ready(port, requests)
            rates = []
            for _ in range(arguments.rounds):
                took, answers = asyncio.run(
                    closed_loop(port, requests, arguments.clients, seconds=arguments.seconds)
                )
                if wrong := [answer for answer in answers if answer.status != 200]:
                    raise RuntimeError(f"{what}: {len(wrong)} failed: {wrong[0]}")
                rates.append(len(answers) / took)
            found[what] = median(rates)
            print(f"{what}: {found[what]:.0f} requests a second", file=sys.stderr)
            if what == "cluster":
                found |= paced(port, requests, arguments, found[what])
        finally:
            server.stop()
    return found


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
    _, alone = asyncio.run(closed_loop(port, requests, 1, count=20))
    rate = most / 2
    answers = asyncio.run(open_loop(port, requests, rate, 2 * arguments.seconds, seed=1))
    waits = sorted(answer.ended - answer.arrived for answer in answers if answer.status == 200)
    return {
        "rate": rate,
        "alone_seconds": median(answer.ended - answer.arrived for answer in alone),
        "p99_seconds": waits[min(len(waits) - 1, math.ceil(0.99 * len(waits)) - 1)],
    }


# ---- simulation


def simulated(bundle: Path, images: Tensor, real: dict[str, Any]) -> dict[str, Any]:
    """What the simulation says of the same, and of larger clusters."""
    model = offramp.load(bundle, backend="folded")
    times = measure_times(model.cascade, images[:FULL], batch_sizes=[1, 4, 16, FULL], rounds=3)
    first = model.stage_names[0]
    beside = max(real["alone_seconds"] - times.planned(0, 1), 0.0)
    given = {
        "topology": model.policy.topology,
        "times": times,
        "shares": shares_of(model, images[:256]),
        "overhead": beside,  # of one request alone: HTTP, the way through Ray, and back
    }
    one = dict.fromkeys(model.stage_names, 1)
    here = simulate(Traffic(rate=real["rate"], **given), one)
    load = max(Traffic(rate=1.0, **given).loads().values())
    scale = {}
    for replicas in REPLICAS:
        # Several small clusters are as one: arrivals in the simulation stay few.
        part = min(replicas, 10)
        traffic = Traffic(rate=0.7 * part / load, **given)
        found, needed = plan(traffic, p99=1.0)
        scale[str(replicas)] = {
            "examples_per_second": traffic.rate * replicas / part,
            "replicas": {name: n * replicas // part for name, n in needed.items()},
            "p99_seconds": found.p99,
        }
    return {
        "simulated_throughput_over_real": 1 / load / real["cluster"],
        "simulated_p99_over_real": here.p99 / real["p99_seconds"] if here.stable else None,
        "overhead_seconds": beside,
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
    torch.set_num_threads(1)
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
    with tempfile.TemporaryDirectory() as name:
        bundle, images = made(arguments, Path(name))
        result: dict[str, Any] = {}
        if "serve" not in arguments.skip:
            real = served(arguments, bundle, images)
            print(real, file=sys.stderr)
            result = {
                "requests_per_second": {what: real[what] for what in ("serve", "cluster", "ray")},
                "serve_vs_offramp_serve": real["cluster"] / real["serve"],
                "serve_vs_naive_ray": real["cluster"] / real["ray"],
                "p99_seconds": real["p99_seconds"],
                **simulated(bundle, images, real),
            }
        if "data" not in arguments.skip:
            result |= scored(arguments, bundle, images)
    report(arguments, result)


if __name__ == "__main__":
    main()
