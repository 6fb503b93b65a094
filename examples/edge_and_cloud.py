"""A small network on a device, a large one in a cloud: plan, split, ask, and lose the cloud.

    python examples/edge_and_cloud.py [FOLDER]

Needs the extras `onnx` and `serve`; the device itself only numpy and onnxruntime. The picture goes
into the folder: where answers come from with the cloud, and without.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt

import offramp
from offramp._core.costs import Costs
from offramp._core.link import Link
from offramp.data import digits
from offramp.edge import Client, Settings, split
from offramp.models import build
from offramp.serve.run import Running
from offramp.serve.settings import Settings as ServerSettings
from offramp.stages import Normalize
from offramp.train import train_classifier
from offramp.tuning import plan_edge, sizes_of

WIDTHS = {"small": 3, "large": 24}


def main(folder: Path, place: Path) -> None:
    shares = {"train": 600, "fit": 450, "calibrate": 450, "test": 297}
    data = digits().split_into(shares, seed=0, stratified=True)
    specs = {
        n: offramp.ModelSpec(name="small_cnn", arguments={"width": w}) for n, w in WIDTHS.items()
    }
    nets = {name: build(spec) for name, spec in specs.items()}
    for net in nets.values():
        train_classifier(net, data.subset("train"), epochs=6, seed=0, transform=Normalize(1 / 16))
    cascade = offramp.Cascade.from_models(nets, transform=Normalize(1 / 16), specs=specs)
    trace = offramp.record(cascade, data.take(data.split != 0))
    images = data.subset("test").inputs
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
        both = client(images.numpy())
        print("with the cloud:", Counter(both.where))
    told = client(images.numpy())  # the server has gone
    print("without:", Counter(told.where), f"{told.offline.sum()} would have gone on")
    print(f"right in at least {client.offline['at_least']:.3f} of the cases then")

    figure, axes = plt.subplots(figsize=(5, 2), layout="constrained")
    for row, found in (("with the cloud", both), ("without", told)):
        here = sum(where == "device" for where in found.where)
        axes.barh([row] * 2, [here, len(images) - here], left=[0, here], color=["C0", "C1"])
    axes.set(xlabel="answers of the device (blue) and of the cloud (orange)")
    figure.savefig(folder / "edge_and_cloud.png", dpi=150)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    if not target.is_dir():
        sys.exit(f"FOLDER must be a folder that is there, got {target}. Make it, or leave it out.")
    with tempfile.TemporaryDirectory() as place:
        main(target, Path(place))
