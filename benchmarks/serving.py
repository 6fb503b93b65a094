"""The server against what people serve such cascades with, on one core, load from another core.

Pretrained CIFAR ResNet-20 -> ResNet-56; a threshold lets about a fifth of the test images go on.
Server and load generator are pinned to a core each; every server runs the same bundle in the same
backend with one thread. Servers that are not measured are stopped (SIGSTOP) meanwhile, and take
turns in rounds; figures are ratios of medians.

    vs_litserve      throughput of closed-loop clients, one image each, over LitServe that runs the
                     same `Adaptive` in its own dynamic batches
    vs_static        over LitServe serving the reference alone; `static_aim` is 0.8 / cost ratio
    vs_ray           over two Ray Serve deployments with `@serve.batch`, where Ray is installed
    over_replay      over what the offline `stream` gives on that core
    survivor_fill    mean fill of second-stage batches meanwhile, over the size that is full by the
                     server's own measurement; survivor_batch is their mean size
    p99_ms, p99_over_p50   at 0.7 of capacity under Poisson arrivals, from the time of arrival
    deadline_met     share of accepted requests that were answered in time at 2x overload
    lost             requests that nothing was said to, or a failure
    goodput_gears    answers in time with gears over without, at 2x overload
    accuracy_gears   accuracy with gears at 2x overload, minus the reference's on those images
    overhead_us      cost of a request beyond the stages, one client, one image
    memory_growth_mib   of the server's resident memory over `--requests` requests
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch
from harness import parser, report
from runtime import images_of, policy_of, pretrained, threshold
from serving_load import (
    Answer,
    Server,
    closed_loop,
    environment,
    free_port,
    only,
    open_loop,
    requests_json,
    requests_v2,
)
from serving_peers import SEEN
from torch import Tensor

import offramp
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.trace import from_npz

MACS = {"resnet20": 40.55e6, "resnet56": 125.49e6}
REFERENCE = "resnet56"
DROPS = (0.005, 0.01, 0.02, 0.15)  # the last is ResNet-20 alone
DEADLINE_MS = 250
PEER = (sys.executable, "-c", "import serving_peers; serving_peers.main()")


# ---- bundles


def save_bundles(data: Path, folder: Path) -> dict[str, Any]:
    """`plain`: a fifth goes on. `gears`: several candidates, certified together."""
    images = images_of(data)
    cascade, shape = pretrained(data), images.shape[1:]
    costs = offramp.Costs.simple("flops", [2 * macs for macs in MACS.values()])
    policy = policy_of(cascade, threshold(cascade, images[:SEEN]))
    chosen = Candidate(policy=policy, method="threshold", reference=REFERENCE)
    offramp.save(Adaptive(cascade, chosen, costs=costs), folder / "plain", input_shape=shape)
    trace = from_npz(
        data / "resnet_logits" / "test_jpeg_1000_5500.npz",
        logits={name: f"logits_{name}" for name in MACS},
        labels="labels",
        costs=costs,
    )
    trace = trace.take(torch.arange(SEEN)).split_into(
        {"fit": SEEN // 3, "calibrate": SEEN - SEEN // 3}, seed=0
    )
    frontier = offramp.fit(trace, "threshold", reference=REFERENCE, progress=False)
    gears = frontier.gears(DROPS)
    usual = gears[gears.names[1]]
    model = Adaptive(cascade, usual, gears=gears, costs=costs)
    offramp.save(model, folder / "gears", input_shape=shape)
    return {
        "gears": {gear.name: gear.cost_ratio for gear in gears},
        "gears_left_out": list(gears.left_out),
        "gear": usual.name,
    }


# ---- the figures


def throughput(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> float:
    """Answered requests per second."""
    took, answers = asyncio.run(closed_loop(port, requests, clients, seconds=seconds))
    check_all_answered(answers)
    return len(answers) / took


def check_all_answered(answers: Sequence[Answer]) -> None:
    """Raise an error if somebody was not answered."""
    wrong = [answer for answer in answers if answer.status != 200]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(answers)} failed: {wrong[0]}")


def label_in(answer: Answer) -> int:
    """The class that our server has answered."""
    outputs = json.loads(answer.body)["outputs"]
    return int(next(each for each in outputs if each["name"] == "label")["data"][0])


def metric(port: int, name: str, **labels: str) -> float:
    """Sum of one series of /metrics over all labels that are not given."""
    from prometheus_client.parser import text_string_to_metric_families

    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        text = page.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def filled(port: int) -> tuple[float, float, float]:
    """Of the batches of the second stage so far: fills and sizes, summed up, and their number."""
    names = ("batch_fill_ratio_sum", "batch_size_sum", "batch_size_count")
    ratio, size, count = (metric(port, f"offramp_stage_{n}", stage=REFERENCE) for n in names)
    return ratio, size, count


def on_core(core: int, *options: str, given: bytes | None = None) -> dict[str, float]:
    """What a program of serving_peers prints that runs on one core."""
    done = subprocess.run(
        ["taskset", "-c", str(core), *PEER, *options],
        input=given,
        env=environment(),
        check=True,
        capture_output=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def overload(
    server: Server, requests: Sequence[bytes], rate: float, seconds: float, seed: int
) -> dict[str, Any]:
    """What becomes of Poisson arrivals at a rate that is too high."""
    answers = asyncio.run(open_loop(server.port, requests, rate, seconds, seed))
    good = [answer for answer in answers if answer.status == 200]
    met = [a for a in good if (a.ended - a.arrived) * 1000 <= DEADLINE_MS]
    return {
        "sent": len(answers),
        "accepted": sum(answer.status in (200, 408) for answer in answers),
        "met": len(met),
        "refused": sum(answer.status in (429, 503) for answer in answers),
        "lost": sum(answer.status not in (200, 408, 429, 503) for answer in answers),
        "good": good,
    }


def main() -> None:
    """Run it."""
    options = parser(__doc__)
    options.add_argument("--data", type=Path, required=True, help="folder of the CIFAR-10 data")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=4.0, help="of each round")
    options.add_argument("--clients", type=int, default=64)
    options.add_argument("--images", type=int, default=1024)
    options.add_argument("--requests", type=int, default=50_000, help="for the memory")
    options.add_argument("--backend", default="folded")
    options.add_argument("--peers", nargs="*", default=["litserve", "static", "ray"])
    arguments = options.parse_args()
    report(arguments, measure(arguments))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    cores = sorted(os.sched_getaffinity(0))
    server_core, own_core = cores[0], cores[-1]
    os.sched_setaffinity(0, {own_core})
    torch.set_num_threads(1)
    images = images_of(arguments.data)[SEEN:][: arguments.images]
    backend = arguments.backend
    result: dict[str, Any] = {"pinned_apart": server_core != own_core, "backend": backend}
    skipped = [
        name
        for name in arguments.peers
        if find_spec({"static": "litserve"}.get(name, name)) is None
    ]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        work = Path(name)
        result |= save_bundles(arguments.data, work)
        plain = work / "plain"

        def begin(name: str, command: Sequence[str], port: int) -> Server:
            server = Server(name, command, port)
            stack.callback(server.stop)
            server.start(server_core, work / f"{name}.log")
            return server

        def ours(bundle: str, *more: str) -> Server:
            port = free_port()
            command = [sys.executable, "-m", "offramp", "serve", str(work / bundle)]
            command += ["--port", str(port), "--backend", backend, *more]
            return begin(f"{bundle}{len(more)}", command, port)

        server = ours("plain")
        requests = requests_v2(images, "plain", input_name(server.port, "plain"))
        servers = [server]
        asks = {server.name: requests}
        for peer in arguments.peers:
            if peer not in skipped:
                port = free_port()
                command = [*PEER, peer, str(plain), "--port", str(port)]
                servers.append(begin(peer, [*command, "--backend", backend], port))
                asks[peer] = requests_json(images)
        rates: dict[str, list[float]] = {each.name: [] for each in servers}
        replays = []
        offline = ("offline", str(plain), "--data", str(arguments.data), "--backend", backend)
        for each in servers:
            with only(each, servers):
                throughput(each.port, asks[each.name], arguments.clients, arguments.seconds / 2)
        before = filled(server.port)
        for _ in range(arguments.rounds):
            for each in servers:
                with only(each, servers):
                    rates[each.name].append(
                        throughput(each.port, asks[each.name], arguments.clients, arguments.seconds)
                    )
            with only(Server("nobody", (), 0), servers):
                found = on_core(server_core, *offline)
                replays.append(found["images_per_second"])
        ratio, size, count = (b - a for a, b in zip(before, filled(server.port), strict=True))
        capacity = median(rates[server.name])
        share = MACS["resnet20"] / MACS[REFERENCE] + 0.2
        result |= {
            "capacity": capacity,
            "offline": median(replays),
            "over_replay": capacity / median(replays),
            "static_aim": 0.8 / share,
            "survivor_fill": ratio / max(count, 1),
            "survivor_batch": size / max(count, 1),
            **{
                f"vs_{name}": capacity / median(rates[name])
                for name in arguments.peers
                if name not in skipped
            },
            "skipped": skipped,
        }
        for each in servers[1:]:
            each.stop()
        result |= latencies(server, requests, capacity, arguments)
        result |= overhead(server, requests, plain, images, backend, server_core)
        result |= deadlines(server, images, capacity, arguments)
        result |= with_gears(ours, server, images, arguments)
        result |= memory(server, requests, arguments)
    return result


def input_name(port: int, model: str) -> str:
    """What the model calls its input."""
    with urlopen(f"http://127.0.0.1:{port}/v2/models/{model}", timeout=10) as page:
        return str(json.load(page)["inputs"][0]["name"])


def latencies(
    server: Server, requests: Sequence[bytes], capacity: float, arguments: argparse.Namespace
) -> dict[str, float]:
    """At 0.7 of capacity."""
    found = []
    for seed in range(arguments.rounds):
        answers = asyncio.run(
            open_loop(server.port, requests, 0.7 * capacity, arguments.seconds, seed)
        )
        check_all_answered(answers)
        times = [1000 * (answer.ended - answer.arrived) for answer in answers]
        found.append(np.percentile(times, [50, 99]))
    p50, p99 = np.median(found, axis=0)
    return {"p50_ms": float(p50), "p99_ms": float(p99), "p99_over_p50": float(p99 / p50)}


def overhead(
    server: Server,
    requests: Sequence[bytes],
    bundle: Path,
    images: Tensor,
    backend: str,
    core: int,
) -> dict[str, float]:
    """One client, one image: what a request takes beyond the model in a process of its own."""
    count = min(len(images), 300)
    alone = on_core(
        *(core, "single", str(bundle), "--backend", backend, "--images", str(count)),
        given=images[:count].numpy().tobytes(),
    )
    model_us = alone["median_us"]
    _, answers = asyncio.run(closed_loop(server.port, requests[:count], 1, count=3 * count))
    whole = median(1e6 * (answer.ended - answer.arrived) for answer in answers)
    return {"request_us": whole, "model_us": model_us, "overhead_us": whole - model_us}


def deadlines(
    server: Server, images: Tensor, capacity: float, arguments: argparse.Namespace
) -> dict[str, Any]:
    """At twice the capacity, each request with a deadline."""
    name = input_name(server.port, "plain")
    late = requests_v2(images, "plain", name, timeout=DEADLINE_MS * 1000)
    found = [
        overload(server, late, 2 * capacity, arguments.seconds, seed)
        for seed in range(arguments.rounds)
    ]
    accepted = sum(each["accepted"] for each in found)
    return {
        "deadline_met": sum(each["met"] for each in found) / max(accepted, 1),
        "deadline_accepted": accepted / sum(each["sent"] for each in found),
        "lost": sum(each["lost"] for each in found),
    }


def with_gears(
    ours: Any,
    plain: Server,
    images: Tensor,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """At twice the capacity of the bundle without, with gears and without, in turn."""
    fixed, free = ours("gears", "--gears", "off"), ours("gears")
    servers = [plain, fixed, free]
    good: dict[str, list[int]] = {fixed.name: [], free.name: []}
    answers: list[Answer] = []
    name = input_name(free.port, "gears")
    late = requests_v2(images, "gears", name, timeout=DEADLINE_MS * 1000)
    patient = requests_v2(images, "gears", name)
    with only(fixed, servers):
        own = throughput(fixed.port, patient, arguments.clients, arguments.seconds)
    for seed in range(arguments.rounds):
        for each in (fixed, free):
            with only(each, servers):
                found = overload(each, late, 2 * own, arguments.seconds, seed)
                good[each.name].append(found["met"])
                if each is free:
                    answers += found["good"]
    for each in (fixed, free):
        each.stop()
    labels = np.load(arguments.data / "test_jpeg_1000_5500.npz")["labels"][SEEN:]
    logits = np.load(arguments.data / "resnet_logits" / "test_jpeg_1000_5500.npz")
    best = logits[f"logits_{REFERENCE}"][SEEN:].argmax(axis=1)
    right = [label_in(answer) == labels[answer.index] for answer in answers]
    of_reference = [best[answer.index] == labels[answer.index] for answer in answers]
    return {
        "goodput_gears": median(good[free.name]) / max(median(good[fixed.name]), 1),
        "accuracy_gears": float(np.mean(right) - np.mean(of_reference)),
    }


def memory(
    server: Server, requests: Sequence[bytes], arguments: argparse.Namespace
) -> dict[str, float]:
    """Growth over many requests, after the first tenth of them."""
    count = arguments.requests
    asyncio.run(closed_loop(server.port, requests, arguments.clients, count=count // 10))
    before = server.resident_mib()
    asyncio.run(closed_loop(server.port, requests, arguments.clients, count=count))
    return {"memory_growth_mib": server.resident_mib() - before}


if __name__ == "__main__":
    main()
