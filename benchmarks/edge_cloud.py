"""A cascade split between a device and a cloud, against the better of the two alone, over links.

Pretrained CIFAR ResNet-20 -> ResNet-56 (weights that we did not train) on test images after lossy
JPEG, sent as JPEG. The device is this machine with every stage `--slower` times as slow (a stated
throttle: measured seconds times that number), the cloud is this machine, one core, both in ONNX
Runtime. For each link the plan is made on `fit` and `calibrate` and judged on `test`: its mean time
over that of ResNet-56 alone, on the device or in the cloud, whichever is faster. Where no cut is
faster the plan says to use that one alone, which counts as 1.

One link is run as well: a real client with the throttle, a server, and a TCP proxy between them
with the latency and bandwidth of the link; pixels are sent there, 3,072 bytes. Then the proxy
refuses everybody. All three share this process and its cores, so its seconds are an upper limit.
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
from offramp.evaluation import evaluate
from offramp.models import ModelSpec, build
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
MIDDLE = (20.0, 50.0)
SPLITS = {"fit": 1 / 3, "calibrate": 1 / 3, "test": 1 / 3}


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


def slower(costs: Costs, times: float) -> Costs:
    """The same stages on a device."""
    return replace(
        costs,
        segment=tuple(times * s for s in costs.segment),
        head=tuple(times * s for s in costs.head),
    )


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
    return {
        "real_seconds": float(np.mean(seconds)),
        "real_goes_on": went / len(images),
        "answered_in_outage": answered / len(images),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    cascade, images, trace = load(options.data)
    batch = torch.from_numpy(images[:1])
    fast = with_backend(cascade, "onnxruntime", example=batch, threads=1)
    here = measure_seconds(fast, batch, batch_sizes=[1], rounds=options.rounds)[1]
    size = jpeg_bytes(images[:256])
    places = {"device": slower(here, options.slower), "cloud": here}
    found, plans = {}, {}
    for rate in options.rates:
        for round_trip in options.round_trips:
            link = Link(bandwidth=rate * 1e6 / 8, round_trip=round_trip / 1e3)
            plans[rate, round_trip] = plan = plan_edge(
                trace, cascade, places, link,
                sizes={"": size}, sends=["raw"], max_drop=options.max_drop, reference="resnet56",
            )  # fmt: skip
            found[_called(rate, round_trip)] = judged(plan, trace)
    middle = MIDDLE if MIDDLE in plans else next(iter(plans))
    used = found[_called(*middle)]
    taken = [at for at in (middle, *plans) if plans[at].choice.cascade]  # the middle first
    split_ones = [one for one in found.values() if one["bytes"] == one["bytes"]]
    return {
        "seconds_here": dict(zip(NETWORKS, here.segment, strict=True)),
        "slower": options.slower,
        "jpeg_bytes": size,
        "worst_over_best_static": max(one["over_best_static"] for one in found.values()),
        "middle_over_best_static": used["over_best_static"],
        "bytes_over_cloud": max((one["bytes"] / size for one in split_ones), default=0.0),
        "cuts_taken": len(split_ones),
        "accuracy_promised_drop": options.max_drop,
        "accuracy_reached_drop": max(one["accuracy_drop"] for one in found.values()),
        "energy": None,  # no meter on this machine
        "links": {name: _finite(one) for name, one in found.items()},
        **_really(cascade, plans, taken, images[: options.images], options.slower),
    }


def _called(rate: float, round_trip: float) -> str:
    return f"{rate:g} Mbit/s, {round_trip:g} ms"


def _really(
    cascade: offramp.Cascade,
    plans: Mapping[tuple[float, float], EdgePlan],
    taken: list[tuple[float, float]],
    images: np.ndarray,
    times: float,
) -> dict[str, Any]:
    """One link where there is something to send."""
    if not taken:
        names = ("real_link", "real_seconds", "real_goes_on", "answered_in_outage")
        return dict.fromkeys(names)
    rate, round_trip = taken[0]
    link = Link(bandwidth=rate * 1e6 / 8, round_trip=round_trip / 1e3)
    return {
        "real_link": _called(rate, round_trip),
        **really(cascade, plans[taken[0]], images, link, times),
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
