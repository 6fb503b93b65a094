"""The application of Ray Serve answers as `offramp serve` does, also when replicas die."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from offramp.bundle import load
from support.served import (
    SECONDS,
    Client,
    geared_bundle,
    inputs_of,
    make_bundle,
    request_of,
    same,
)

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def serving(cluster, free_port):
    """Ray Serve on a free port, and what starts an application there."""
    from offramp.serve.ray import build_app
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": free_port})

    def start(bundle, **options):
        app = build_app(bundle, **options)
        serve.run(app, name="test", route_prefix="/")
        return Client(f"http://127.0.0.1:{free_port}", None)

    yield start
    serve.shutdown()


@pytest.mark.timeout(300)
def test_answers_doors_gears_and_a_replica_that_dies(cluster, serving, tmp_path):
    from ray import serve

    bundle = make_bundle(tmp_path / "net")
    ask = serving(bundle, stages={"large": {"num_replicas": 2}})
    deployed = serve.status().applications["test"].deployments
    assert set(deployed) == {"offramp", "large"}  # the small one runs where requests come
    model = load(bundle)
    for k in range(5):
        x = inputs_of(1 + 13 * k, seed=k)
        names = ["q"] if len(x) == 1 else [f"q/{j}" for j in range(len(x))]
        same(x, ask.infer(x, id="q"), model, names)
    assert ask("/v2/health/ready")[0] == 200
    assert ask("/v2/models/net")[2]["name"] == "net"
    assert ask("/v2/models/net/infer", {"inputs": []})[0] == 400
    assert b"offramp_" in ask("/metrics")[2]

    done, end = [], threading.Event()

    def keep_asking(seed):
        k = 0
        while not end.is_set():
            x = inputs_of(6, seed=100 * seed + k)
            outputs = ask.infer(x, id="q")
            done.append(same(x, outputs, model, [f"q/{j}" for j in range(6)]))
            k += 1

    with ThreadPoolExecutor(3) as pool:
        each = [pool.submit(keep_asking, seed) for seed in range(3)]
        try:
            while len(done) < 10 and not any(one.done() for one in each):
                end.wait(0.05)
            killed = kill_one(cluster, "large")
            before = len(done)
            while len(done) < before + 20 and not any(one.done() for one in each):
                end.wait(0.05)
        finally:
            end.set()
        for one in each:
            one.result(timeout=SECONDS)  # nobody was lost, nobody was told an error
    assert killed
    serve.delete("test")


def kill_one(ray, deployment):
    """Kill a replica of a deployment, as if its machine had gone."""
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if f"#{deployment}#" in actor["name"]:
            ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]))
            return True
    return False


@pytest.mark.timeout(300)
def test_a_gear_is_changed_while_it_runs(serving, tmp_path, free_port):
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    from ray import serve

    bundle = geared_bundle(tmp_path / "geared")
    ask, x = Client(f"http://127.0.0.1:{free_port}", None), inputs_of(8)

    def deploy(gear):
        told = {"name": "declared", "import_path": "offramp.serve.ray:app", "route_prefix": "/"}
        told |= {"args": {"bundle": str(bundle), "fuse": [["small", "large"]]}}
        told["deployments"] = [{"name": "offramp", "user_config": {"gear": gear}}]
        _get_global_client().deploy_apps(ServeDeploySchema(applications=[told]))

    def answers():
        if serve.status().applications["declared"].status != "RUNNING":
            return None
        _, _, said = ask("/v2/models/geared/infer", request_of(x))
        stages = next(one["data"] for one in said["outputs"] if one["name"] == "stage")
        return set(stages), said["id"].split("-")[0]  # the second tells which process it was

    deploy("fast")
    first = once(answers, {"small"})
    deploy("careful")
    assert once(answers, {"large"}) == first  # it went on running
    serve.delete("declared")


def once(answers, stages):
    """The process that answers, once stages do."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        found = answers()
        if found is not None and found[0] == stages:
            return found[1]
        time.sleep(0.2)
    raise AssertionError(f"{stages} have not answered; the last that was seen is {found}")
