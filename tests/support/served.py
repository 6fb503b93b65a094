"""Servers in this process, on a free port of this machine, and what they serve."""

import http.client
import json
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import torch

from offramp._core.costs import Costs
from offramp.bundle import save
from offramp.models import ModelSpec, build
from offramp.policy import Candidate, Feature, Linear, Node, Policy
from offramp.policy.gears import Gear, Gears
from offramp.policy.promise import Guarantee, Limit
from offramp.runtime import Adaptive
from offramp.serve.run import Running
from offramp.serve.settings import Settings
from offramp.stages import Cascade

SECONDS = 30  # no test may hang
SHAPE = (1, 8, 8)
NAMES = ("cat", "dog", "ox")


def cascade_of(transform=None, channels=1):
    """Two small networks of three classes."""
    nets, specs = {}, {}
    for k, (name, width) in enumerate({"small": 2, "large": 4}.items()):
        arguments = {"width": width, "depth": 2, "classes": 3, "in_channels": channels}
        nets[name] = build(ModelSpec(name="small_cnn", arguments={**arguments, "seed": 3 + k}))
        specs[name] = ModelSpec(name="small_cnn", arguments=arguments)
    return Cascade.from_models(nets, specs=specs, transform=transform, class_names=NAMES)


def model_of(cascade, threshold=0.45):
    """Some examples leave after the first stage, some go on."""
    node = Node(Linear.threshold(Feature("max_prob", 0), threshold))
    policy = Policy(cascade.topology, {(0,): node})
    candidate = Candidate(policy=policy, method="mine", reference="large")
    return Adaptive(cascade, candidate, costs=Costs.simple("flops", [1.0, 4.0]))


def make_bundle(path, *, overwrite=False, **others):
    """A bundle of these two."""
    save(model_of(cascade_of()), path, overwrite=overwrite, input_shape=SHAPE, **others)
    return path


def geared(cascade, gears, start, costs):
    """A model in a gear; of each gear its candidate, and the largest risks that it promises."""
    held = []
    for name, (candidate, limits) in gears.items():
        promise = Guarantee(
            limits=tuple(Limit(risk=risk, at_most=at_most) for risk, at_most in limits.items()),
            **{"delta": 0.1, "p_value": 0.01, "tested": 1, "n": 100, "split": "calibrate"},
            **{"fingerprint": "0" * 64, "class_weights": None, "assumptions": ("None.",)},
        )
        told = {"name": name, "candidate": candidate, "sentence": "", "cost_ratio": 0.5}
        held.append(Gear(guarantee=promise if limits else None, **told))
    found = Gears(delta=0.1, held=tuple(held))
    return Adaptive(cascade, found[start], costs=costs, gears=found)


def geared_bundle(path):
    """A bundle of two gears, one of whose promises is false: it is the small network alone."""
    plain = model_of(cascade_of())
    small, large = (
        Candidate.single(plain.cascade.topology, name, reference="large")
        for name in ("small", "large")
    )
    gears = {
        "reference": (large, {}),
        "careful": (large, {"accuracy_drop": 0.5}),
        "fast": (small, {"disagreement": 0.01, "accuracy_drop": 0.5}),
    }
    save(geared(plain.cascade, gears, "fast", plain.costs), path, input_shape=SHAPE)
    return path


def inputs_of(n, seed=0):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 3


def request_of(x, **others):
    """A request in JSON."""
    entry = {"name": "input", "datatype": "FP32", "shape": list(x.shape)}
    return {**others, "inputs": [{**entry, "data": x.flatten().tolist()}]}


class Client:
    """Asks a server; a connection for each request."""

    def __init__(self, url, app):
        self.url, self.app = url, app
        self.address = (urlsplit(url).hostname, urlsplit(url).port)

    @property
    def serving(self):
        return self.app.state.serving

    def waiting(self, model="net"):
        """Examples that a model has accepted and not answered."""
        return self.serving.repository.get(model).admission.examples

    def __call__(self, path, body=None, method=None, headers=None):
        """Status, headers, and JSON or bytes."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection = http.client.HTTPConnection(*self.address, timeout=SECONDS)
        try:
            way = method or ("GET" if body is None else "POST")
            connection.request(way, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.getheader("content-type") == "application/json":
            content = json.loads(content)
        return answer.status, dict(answer.getheaders()), content

    def infer(self, x, model="net", **others):
        """The outputs of a good answer, by name."""
        status, _, said = self(f"/v2/models/{model}/infer", request_of(x, **others))
        assert status == 200, said
        return {one["name"]: one["data"] for one in said["outputs"]}


def answers_until(ask, end):
    """What four are told who ask again and again; `end` is called once they are being answered."""
    found, begun = [], threading.Barrier(5)

    def asking():
        begun.wait(SECONDS)
        for _ in range(20):
            try:
                found.append(ask())
            except ConnectionError:  # nobody listens any more
                return

    threads = [threading.Thread(target=asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait(SECONDS)
    until(lambda: len(found) >= 4)
    end()
    for thread in threads:
        thread.join(SECONDS)
    return found


def until(condition, seconds=SECONDS):
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


@contextmanager
def running(sources, **settings):
    """A server that runs while within."""
    with Running(sources, Settings(port=0, **settings)) as server:
        yield Client(server.url, server.app)


def same(x, outputs, model, names):
    """Whether outputs are what the model answers to the same rows."""
    answer = model(x, names)
    torch.testing.assert_close(
        torch.tensor(outputs["probabilities"]).reshape(len(x), -1), answer.log_probs.exp()
    )
    assert outputs["label"] == answer.labels.tolist()
    assert outputs["stage"] == [answer.stage_names[k] for k in answer.stage.tolist()]
    assert outputs["reason"] == answer.reasons
    assert outputs["cost"] == answer.cost.tolist()
    return True
