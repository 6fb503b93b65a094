"""Gears under load, in a simulated world: one engine, a made-up clock, a batcher, a controller."""

import numpy as np
import pytest
import torch
from torch import nn

from offramp._core.topology import Topology
from offramp.policy import Candidate, Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.runtime.inflight import enter
from offramp.serve.gears import Controller
from offramp.stages import Cascade

SECONDS = {0: 0.01, 1: 0.08}  # that a batch of each stage takes, however large
FULL = 4


class Confidence(nn.Module):
    def forward(self, x):
        return torch.stack([x[:, 0], torch.zeros(len(x)), torch.zeros(len(x))], dim=1)


def model_at(threshold):
    cascade = Cascade.from_models({"small": Confidence(), "large": Confidence()})
    for stage in cascade:
        stage.keeps_company = True
    if threshold is None:
        return Adaptive(cascade, Candidate.single(cascade.topology, "large", reference="large"))
    node = Node(Linear.threshold(Feature("max_prob", 0), threshold))
    return Adaptive(cascade, Policy(Topology.of(["small", "large"]), {(0,): node}))


def world(controller, models, rates, seed=0):
    """Waiting times by the second of arrival, and the gears that were used.

    Args:
        controller: Or None, to stay in the first gear.
        models: By gear.
        rates: Examples that come in each second.
        seed: Of the arrivals.
    """
    rng = np.random.default_rng(seed)
    comes = np.concatenate([k + np.sort(rng.random(rate)) for k, rate in enumerate(rates)])
    first = next(iter(models.values()))
    batcher = first.batcher(batch_size=FULL, patience=0.05, others=models.values())
    now, sent, came, waited, used = 0.0, 0, {}, {}, []
    asked, looked = next(iter(models)), 0.0
    while len(waited) < len(comes):
        while sent < len(comes) and comes[sent] <= now:
            x = torch.from_numpy(rng.random((1, 1)) * 4).float()
            flight = enter(models[asked].program, x, torch.tensor([sent]))
            (number,) = batcher.put(flight, np.array([sent]), float(comes[sent]))
            came[int(number)] = comes[sent]
            used.append(asked)
            sent += 1
        if controller is not None and now >= looked:
            looked = now + 0.1
            since = batcher.oldest(0)
            asked = controller.observe(0.0 if since is None else max(0.0, now - since), now)
        job = batcher.next_job(now)
        if job is not None:
            now += SECONDS[job.stage]
            batcher.tell(job, job.run(), now)
        else:
            wake = batcher.wake_at(now)
            following = comes[sent] if sent < len(comes) else np.inf
            now = max(now + 1e-3, min(following, np.inf if wake is None else wake))
        for done in batcher.finished():
            waited |= {int(number): now - came[int(number)] for number in done.numbers}
    seconds = np.array([int(came[k]) for k in sorted(came)])
    return seconds, np.array([waited[k] for k in sorted(came)]), used


@pytest.fixture(scope="module")
def models():
    return {"reference": model_at(None), "drop-1": model_at(0.8), "drop-5": model_at(0.4)}


@torch.inference_mode()
def test_a_cheaper_gear_keeps_waits_short_and_is_left_when_the_load_is_gone(models):
    rates = [10] * 4 + [90] * 10 + [10] * 12  # the reference alone can do 50
    controller = Controller(list(models), target=0.2, down_after=0.3, up_after=3)
    second, with_gears, used = world(controller, models, rates)
    _, without, _ = world(None, models, rates)
    late = (second >= 7) & (second < 14)
    assert np.mean(without[late] < 1) < 0.1
    assert np.mean(with_gears[late] < 1) > 0.9
    assert set(used) <= set(models)
    by_second = [used[k] for k in np.flatnonzero(np.diff(second, append=99))]
    assert set(by_second[:4]) == {"reference"}
    assert by_second[12] != "reference"
    assert by_second[-1] == "reference"


@torch.inference_mode()
@pytest.mark.parametrize("seed", range(3))
def test_no_gear_outside_the_certified_set_is_ever_used(models, seed):
    certified = ["reference", "drop-1"]
    controller = Controller(certified, target=0.1, down_after=0.2, up_after=1)
    rates = np.random.default_rng(seed).choice([2, 30, 120], size=6).tolist()
    _, _, used = world(controller, models, rates, seed)
    assert set(used) <= set(certified)
