"""Serving: a bundle behind HTTP, asked by several clients at a time.

    python examples/serving.py [FOLDER]

Needs the extra `serve`. The picture goes into the folder: how long answers took, by who gave them.
"""

import json
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt

import offramp
from offramp.data import Dataset, digits
from offramp.models import ModelSpec, build
from offramp.serve.run import Running
from offramp.stages import Normalize
from offramp.train import train_classifier

WIDTHS = {"small": 3, "large": 24}


def bundle_in(place: Path, data: Dataset) -> Path:
    """Two networks, trained, and the cheapest promise of two points."""
    specs = {n: ModelSpec(name="small_cnn", arguments={"width": w}) for n, w in WIDTHS.items()}
    networks = {name: build(spec) for name, spec in specs.items()}
    for net in networks.values():
        train_classifier(net, data.subset("train"), epochs=6, seed=0, transform=Normalize(1 / 16))
    cascade = offramp.Cascade.from_models(networks, transform=Normalize(1 / 16), specs=specs)
    trace = offramp.record(cascade, data.take(data.split != 0))
    chosen = offramp.fit(trace, "threshold").cheapest(max_drop=0.02)
    print(chosen.sentence)
    offramp.save(offramp.Adaptive(cascade, chosen, costs=trace.costs), place, input_shape=(1, 8, 8))
    return place


def main(folder: Path) -> None:
    sizes = {"train": 600, "fit": 450, "calibrate": 450, "test": 297}
    data = digits().split_into(sizes, seed=0, stratified=True)
    test = data.subset("test")
    with (
        tempfile.TemporaryDirectory() as place,
        Running({"digits": bundle_in(Path(place) / "digits", data)}) as server,
    ):

        def ask(k: int) -> tuple[float, dict]:
            body = json.dumps({"rows": test.inputs[k : k + 1].tolist()}).encode()
            head = {"Content-Type": "application/json"}
            start = time.perf_counter()
            with urllib.request.urlopen(
                urllib.request.Request(f"{server.url}/predict", body, head), timeout=30
            ) as answer:
                (said,) = json.load(answer)["answers"]
            return 1000 * (time.perf_counter() - start), said

        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(ask, range(len(test))))
    right = [said["label"] == int(y) for (_, said), y in zip(answers, test.labels, strict=True)]
    print(f"{sum(right)} of {len(test)} right")

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for name in WIDTHS:
        taken = [ms for ms, said in answers if said["stage"] == name]
        axes.hist(taken, bins=20, alpha=0.6, label=name)
    axes.set(xlabel="milliseconds, four clients", ylabel="answers")
    axes.legend(title="answered by")
    figure.savefig(folder / "serving.png", dpi=150)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    if not target.is_dir():
        sys.exit(f"FOLDER must be a folder that is there, got {target}. Make it, or leave it out.")
    main(target)
