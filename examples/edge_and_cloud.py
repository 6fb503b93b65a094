"""A small network on a device, a large one in a cloud: plan, split, ask, and lose the cloud.

    python examples/edge_and_cloud.py

Needs the extras `onnx` and `serve`; the device itself only numpy and onnxruntime.
"""

import tempfile
from pathlib import Path

import torch

import offramp
from offramp._core.costs import Costs
from offramp._core.link import Link
from offramp.edge import Client, Settings, split
from offramp.models import build
from offramp.serve.run import Running
from offramp.serve.settings import Settings as ServerSettings
from offramp.trace.testing import make_trace
from offramp.tuning import plan_edge, sizes_of


def main(place: Path) -> None:
    arguments = {"width": 2, "depth": 2, "classes": 4}
    specs = dict.fromkeys(
        ["stage0", "stage1"], offramp.ModelSpec(name="small_cnn", arguments=arguments)
    )
    nets = {name: build(spec) for name, spec in specs.items()}  # stand for trained ones
    cascade = offramp.Cascade.from_models(nets, specs=specs)
    trace = make_trace(n=3000, stages=2, seed=0)  # stands for record(cascade, data)
    trace = trace.split_into({"fit": 0.5, "calibrate": 0.5}, seed=0)
    images = torch.rand(32, 1, 8, 8)
    plan = plan_edge(
        trace,
        cascade,
        {
            "device": Costs.simple("seconds", [0.004, 0.4]),
            "cloud": Costs.simple("seconds", [0.001, 0.02]),
        },
        Link.parse("20 Mbit/s, 50 ms"),
        sizes=sizes_of(cascade, images),
        max_drop=0.05,
    )
    print(plan.sentence)
    model = offramp.Adaptive(cascade, plan.choice, costs=plan.costs)
    offline = vars(plan.offline)
    made = split(model, place / "split", send=plan.send, example=images, offline=offline)
    with Running({"cloud": made.path / "cloud"}, ServerSettings(port=0)) as server:
        client = Client(made.path / "device", Settings(url=server.url, timeout=10.0))
        print("with the cloud:", client(images.numpy()).where)
    told = client(images.numpy())  # the server has gone
    print("without:", told.where, f"{told.offline.sum()} would have gone on")
    print(f"right in at least {client.offline['at_least']:.3f} of the cases then")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
