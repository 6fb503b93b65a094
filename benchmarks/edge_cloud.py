"""A cascade split between a device and a cloud, against the better of the two alone, over links.

Pretrained CIFAR ResNet-20 -> ResNet-56 (weights that we did not train) on test images after lossy
JPEG, sent as JPEG. The device is this machine with every stage `--slower` times as slow (a stated
throttle: measured seconds times that number), the cloud is this machine, one core, both in ONNX
Runtime. For each link the plan is made on `fit` and `calibrate` and judged on `test`: its mean time
over that of ResNet-56 alone, on the device or in the cloud, whichever is faster. Where no cut is
faster the plan says to use that one alone, which counts as 1. What a call takes in client and
server is measured over loopback and paid by everybody who goes to the cloud. Half of the images
certify: a threshold is found on few, a promise of 2 points needs many. `middle_uncertified` is the
same link where nothing is promised, so the difference is the price of the promise.

Two links are run as well: a real client with the throttle, a server, and a TCP proxy between them
with the latency and bandwidth of the link; pixels are sent there, 3,072 bytes. `planned_over_real`
is the mean time that the plan expects of the ways that these images really took, over what they
took; the proxy, the client and the server share this process and its cores. Then the proxy refuses
everybody.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import parser, report
from PIL import Image

import offramp
from offramp._core.costs import Costs
from offramp._core.link import Link
from offramp.backends import with_backend
from offramp.edge import Client, Settings, split
from offramp.evaluation import evaluate, fit
from offramp.models import ModelSpec, build
from offramp.serve.handling import measure_handling
from offramp.serve.run import Running
from offramp.serve.settings import Settings as ServerSettings
from offramp.stages import Normalize, measure_seconds
from offramp.trace import Trace
from offramp.tuning import EdgePlan, plan_edge

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.faulty import proxied

NETWORKS = ("resnet20", "resnet56")
NORMALIZE = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
QUALITY = 90  # of the JPEG files that are sent
MIDDLE, NEAR = (20.0, 50.0), (5.0, 10.0)
SPLITS = {"fit": 1 / 6, "calibrate": 1 / 2, "test": 1 / 3}


def load(data: Path) -> tuple[offramp.Cascade, np.ndarray, Trace]:
    """The two networks, images `(n, 3, 32, 32)`, uint8, and the trace of their logits on them."""
    specs = {name: ModelSpec(name=name) for name in NETWORKS}
    weights = {n: str(data / "resnet_weights" / f"{n}_state.npz") for n in NETWORKS}
    nets = {n: build(replace(specs[n], weights=weights[n])).eval() for n in NETWORKS}
    cascade = offramp.Cascade.from_models(
        nets,
        specs=specs,
        transform=Normalize(**NORMALIZE),  # type: ignore[arg-type]
    )
    with np.load(data / "test_jpeg_1000_5500.npz", allow_pickle=False) as held:
        images, labels = held["images"], held["labels"]
    with np.load(data / "resnet_logits" / "test_jpeg_1000_5500.npz", allow_pickle=False) as held:
        logits = np.stack([held[f"logits_{name}"] for name in NETWORKS], axis=1)
    trace = Trace(
        topology=cascade.topology,
        labels=torch.from_numpy(labels.astype(np.int64)),
        classes=10,
        costs=Costs.simple("seconds", [1.0, 4.0]),
        logits=torch.from_numpy(logits.astype(np.float32)),
    )
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return cascade, images, trace.split_into(SPLITS, seed=0)  # type: ignore[arg-type]


def jpeg_bytes(images: np.ndarray) -> float:
    """Mean size of an image as it is sent."""
    sizes = []
    for pixels in images:
        file = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=QUALITY)
        sizes.append(len(file.getvalue()))
    return float(np.mean(sizes))


def judged(plan: EdgePlan, trace: Trace) -> dict[str, float]:
    """One link: time over the better of the two alone, on images that nothing was chosen on."""
    found = evaluate(trace.subset("test").with_costs(plan.costs), plan.choice.candidate)
    best = min(plan.alone.values())
    ratio = found.cost / best if plan.worth else 1.0
    return {
        "over_best_static": ratio,
        "seconds": min(found.cost, best) if plan.worth else best,
        "device_alone": plan.alone["device"],
        "cloud_alone": plan.alone["cloud"],
        "bytes": plan.bytes if plan.worth else float("nan"),
        "goes_on": found.visit_share[1],
        "accuracy_drop": found.accuracy_drop,
        "offline_at_least": plan.offline.at_least,
    }


def uncertified(plan: EdgePlan, trace: Trace, max_drop: float) -> float:
    """As `over_best_static`, of the point that nobody has certified."""
    frontier = fit(trace.with_costs(plan.costs), "threshold", reference="resnet56", progress=False)
    choice = frontier.cheapest(max_drop=max_drop, delta=None)
    found = evaluate(trace.subset("test").with_costs(plan.costs), choice.candidate)
    return min(found.cost / min(plan.alone.values()), 1.0)


@contextmanager
def throttled(client: Client, times: float) -> Iterator[None]:
    """Within, the stages of a client take so many times as long."""
    run = client.device.run

    def slowly(inputs: Any) -> Any:
        began = time.perf_counter()
        walked = run(inputs)
        time.sleep((times - 1) * (time.perf_counter() - began))
        return walked

    client.device.run = slowly  # type: ignore[method-assign]
    try:
        yield
    finally:
        client.device.run = run  # type: ignore[method-assign]


def really(
    cascade: offramp.Cascade, plan: EdgePlan, images: np.ndarray, link: Link, times: float
) -> dict[str, float]:
    """Mean seconds of a real client over a real link, and how many are answered in an outage."""
    model = offramp.Adaptive(cascade, plan.choice, costs=plan.costs)
    with tempfile.TemporaryDirectory() as place:
        made = split(
            model,
            Path(place) / "split",
            device=["resnet20"],
            send="raw",
            example=torch.from_numpy(images[:1]),
        )
        with Running({"cloud": made.path / "cloud"}, ServerSettings(port=0)) as server:
            faults = {"latency": link.round_trip / 2, "bandwidth": link.bandwidth}
            with proxied(server.url, **faults) as proxy:
                settings = Settings(url=proxy.url, timeout=5.0)
                client = Client(made.path / "device", settings, threads=1)
                client(images[:4])  # connections and sessions are warm
                went, seconds = 0, []
                with throttled(client, times):
                    for image in images:
                        began = time.perf_counter()
                        told = client(image[None])
                        seconds.append(time.perf_counter() - began)
                        went += told.where[0] == "cloud"
                proxy.faults.outage = True
                proxy.cut_off()
                lost = [client(image[None]) for image in images]
                client.close()
    answered = sum(int(told.label[0] >= 0) for told in lost)
    here, away = plan.costs.each
    share = went / len(images)
    planned = here + share * (link.cost(float(made.bytes or 0)) + away)
    return {
        "seconds": float(np.mean(seconds)),
        "planned_seconds": planned,
        "planned_over_real": planned / float(np.mean(seconds)),
        "goes_on": share,
        "answered_in_outage": answered / len(images),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    cascade, images, trace = load(options.data)
    batch = torch.from_numpy(images[:1])
    fast = with_backend(cascade, "onnxruntime", example=batch, threads=1)
    here = measure_seconds(fast, batch, batch_sizes=[1], rounds=options.rounds)[1]
    size = jpeg_bytes(images[:256])
    call = measure_handling(fast, "resnet56", batch, here, rounds=options.rounds)
    places = {"device": here.slower(options.slower), "cloud": here}
    found, plans = {}, {}
    for rate in options.rates:
        for round_trip in options.round_trips:
            link = link_of(rate, round_trip, call)
            plans[rate, round_trip] = plan = plan_edge(
                trace, cascade, places, link,
                sizes={"": size}, sends=["raw"], max_drop=options.max_drop, reference="resnet56",
            )  # fmt: skip
            found[_called(rate, round_trip)] = judged(plan, trace)
    middle = MIDDLE if MIDDLE in plans else next(iter(plans))
    used = found[_called(*middle)]
    wanted = dict.fromkeys([middle, NEAR, *plans])  # the middle first
    taken = [at for at in wanted if at in plans and plans[at].choice.cascade][:2]
    split_ones = [one for one in found.values() if one["bytes"] == one["bytes"]]
    return {
        "seconds_here": dict(zip(NETWORKS, here.segment, strict=True)),
        "slower": options.slower,
        "call_seconds": call,
        "jpeg_bytes": size,
        "worst_over_best_static": max(one["over_best_static"] for one in found.values()),
        "middle_over_best_static": used["over_best_static"],
        "middle_uncertified": uncertified(plans[middle], trace, options.max_drop),
        "bytes_over_cloud": max((one["bytes"] / size for one in split_ones), default=0.0),
        "cuts_taken": len(split_ones),
        "accuracy_promised_drop": options.max_drop,
        "accuracy_reached_drop": max(one["accuracy_drop"] for one in found.values()),
        "energy": None,  # no meter on this machine
        "links": {name: _finite(one) for name, one in found.items()},
        **_really(fast, plans, taken, images[: options.images], call, options.slower),
    }


def link_of(rate: float, round_trip: float, call: float) -> Link:
    """A link of so many Mbit/s and ms, with what a call takes beside it in seconds."""
    return Link(bandwidth=rate * 1e6 / 8, round_trip=round_trip / 1e3, handling=call)


def _called(rate: float, round_trip: float) -> str:
    return f"{rate:g} Mbit/s, {round_trip:g} ms"


def _really(
    cascade: offramp.Cascade,
    plans: Mapping[tuple[float, float], EdgePlan],
    taken: list[tuple[float, float]],
    images: np.ndarray,
    call: float,
    times: float,
) -> dict[str, Any]:
    """Links where there is something to send; the first stands in the keys that were there."""
    each = {
        _called(*at): really(cascade, plans[at], images, link_of(*at, call), times) for at in taken
    }
    first = next(iter(each), None)
    one: Mapping[str, float | None] = each.get(str(first), {})
    return {
        "real_link": first,
        "real_seconds": one.get("seconds"),
        "real_goes_on": one.get("goes_on"),
        "planned_over_real": one.get("planned_over_real"),
        "answered_in_outage": one.get("answered_in_outage"),
        "real_links": each,
    }


def _finite(one: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if value == value else None for name, value in one.items()}


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--data", type=Path, required=True, help="the folder cifar10 of the data")
    made.add_argument("--slower", type=float, default=4.0, help="of the device, against this core")
    made.add_argument("--rates", type=float, nargs="+", default=[1, 5, 20, 100], help="Mbit/s")
    made.add_argument("--round-trips", type=float, nargs="+", default=[10, 50, 200], help="ms")
    made.add_argument("--max-drop", type=float, default=0.02)
    made.add_argument("--rounds", type=int, default=15)
    made.add_argument("--images", type=int, default=200, help="that really go over the link")
    options = made.parse_args()
    report(options, measure(options))


if __name__ == "__main__":
    main()
