"""A cascade on Ray, on this machine: requests over HTTP, and a whole collection.

    python examples/on_ray.py

Needs the extra `ray`.
"""

import json
import tempfile
import urllib.request
from pathlib import Path

import torch

import offramp
import ray
from offramp.batch import classify
from offramp.models import build
from offramp.policy import Candidate, Feature, Linear, Node, Policy
from offramp.serve.ray import build_app
from ray import serve


def bundle_in(place: Path) -> Path:
    """Two small networks that stand for trained ones, one of which answers what is easy."""
    specs = {
        name: offramp.ModelSpec(name="small_cnn", arguments={"width": width, "depth": 2})
        for name, width in {"small": 2, "large": 8}.items()
    }
    nets = {name: build(spec) for name, spec in specs.items()}
    cascade = offramp.Cascade.from_models(nets, specs=specs)
    leave = Node(Linear.threshold(Feature("max_prob", 0), 0.2))
    policy = Policy(cascade.topology, {(0,): leave})
    candidate = Candidate(policy=policy, method="mine", reference="large")
    costs = offramp.Costs.simple("flops", [1.0, 9.0])
    offramp.save(offramp.Adaptive(cascade, candidate, costs=costs), place, input_shape=(1, 8, 8))
    return place


def main(bundle: Path) -> None:
    images = torch.rand(64, 1, 8, 8).numpy()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    data = ray.data.from_items([{"id": k, "x": image} for k, image in enumerate(images)])
    rows = classify(data, bundle, workers=1).take_all()
    print("Ray Data:", {row["id"]: row["stage"] for row in sorted(rows, key=lambda r: r["id"])[:3]})
    serve.start(http_options={"host": "127.0.0.1", "port": 8123})
    serve.run(build_app(bundle, stages={"large": {"num_replicas": 1}}))
    head = {"name": "input", "datatype": "FP32", "shape": list(images.shape)}
    body = json.dumps({"inputs": [{**head, "data": images.ravel().tolist()}]}).encode()
    asked = f"http://127.0.0.1:8123/v2/models/{bundle.name}/infer"
    with urllib.request.urlopen(urllib.request.Request(asked, body), timeout=60) as answer:
        said = {one["name"]: one["data"] for one in json.load(answer)["outputs"]}
    print("Ray Serve:", said["stage"][:3])
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(bundle_in(Path(folder) / "net"))
