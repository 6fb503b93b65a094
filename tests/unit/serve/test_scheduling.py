"""The scheduler and the admission of a server in a simulated world: one engine, a made-up clock.

Stages take what ResNet-20 and ResNet-56 took on one core: a little for each batch, most for each
example. A fifth of the examples goes on.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from offramp._core.topology import Topology
from offramp.policy import Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.runtime.inflight import enter
from offramp.serve.admission import Admission
from offramp.serve.errors import RequestError
from offramp.stages import Cascade

FULL = 16
SECONDS = {0: (0.003, 0.0023), 1: (0.006, 0.0074)}  # of a batch, and of each example in it
SHARE = 0.2
IDEAL = 1 / sum(s * (b / FULL + e) for (b, e), s in zip(SECONDS.values(), (1, SHARE), strict=True))
WITHIN = 0.25


class Confidence(nn.Module):
    def forward(self, x):
        return torch.stack([x[:, 0], torch.zeros(len(x)), torch.zeros(len(x))], dim=1)


@pytest.fixture(scope="module")
def model():
    cascade = Cascade.from_models({"small": Confidence(), "large": Confidence()})
    for stage in cascade:
        stage.keeps_company = True
    node = Node(Linear.threshold(Feature("max_prob", 0), 0.5))
    return Adaptive(cascade, Policy(Topology.of(["small", "large"]), {(0,): node}))


class World:
    """One engine; examples that come at given times, or clients that come again once answered."""

    def __init__(self, model, seed=0):
        self.model, self.rng = model, np.random.default_rng(seed)
        self.batcher = model.batcher(batch_size=FULL, patience=0.002)
        for stage, (batch, each) in SECONDS.items():  # as a server has learned while it was loaded
            for size in (1, FULL):
                self.batcher._pace.saw(stage, size, batch + each * size)
        self.admission = Admission(4096, 1, self.backlog)
        self.now, self.came, self.held = 0.0, {}, {}
        self.waited, self.reasons, self.sizes, self.refused = [], [], {0: [], 1: []}, 0

    def backlog(self, more):
        return self.batcher.backlog(self.now, 0, (self.model.program, more))

    def come(self, at, within):
        held = self.admission.of(1, within)
        try:
            held.__enter__()
        except RequestError:
            self.refused += 1
            return
        x = torch.tensor([[0.0 if self.rng.random() < SHARE else 5.0]])
        flight = enter(self.model.program, x, torch.tensor([0]))
        end = None if within is None else at + self.admission.left(within)
        (number,) = self.batcher.put(flight, np.array([0]), self.now, deadline=end).tolist()
        self.came[number], self.held[number] = at, held

    @torch.inference_mode()
    def run(self, seconds, *, arrivals=(), clients=0, within=None):
        due = list(arrivals) or [0.0] * clients
        while self.now < seconds:
            while due and due[0] <= self.now:
                self.come(due.pop(0), within)
            job = self.batcher.next_job(self.now)
            if job is not None:
                self.sizes[job.stage].append(len(job))
                each, more = SECONDS[job.stage]
                ends = self.now + (each + more * len(job)) * self.rng.lognormal(0, 0.15)
                while due and due[0] <= ends:  # those are looked at while it runs
                    self.now = max(self.now, due[0])
                    self.come(due.pop(0), within)
                self.now = ends
                self.batcher.tell(job, job.run(), self.now)
            else:
                wake = self.batcher.wake_at(self.now)
                after = min(due[0] if due else math.inf, math.inf if wake is None else wake)
                self.now = max(self.now + 1e-4, min(after, seconds))
            for done in self.batcher.finished():
                for row, number in enumerate(done.numbers.tolist()):
                    self.held.pop(number).__exit__(None, None, None)
                    self.waited.append(self.now - self.came.pop(number))
                    self.reasons.append(done.answer.reasons[row])
                    if clients:
                        due.append(self.now + 0.001)
        return self

    def fill(self, stage):
        return np.mean(self.sizes[stage]) / FULL


def poisson(rate, seconds, seed=1):
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    return np.cumsum(gaps).tolist()


def test_many_clients_keep_batches_of_every_stage_full(model):
    world = World(model).run(4, clients=64)
    assert world.fill(1) > 0.95
    assert world.fill(0) > 0.9
    assert len(world.waited) / 4 > 0.95 * IDEAL
    assert np.quantile(world.waited, 0.99) < 3 * np.median(world.waited)  # nobody is passed by


def test_below_capacity_nobody_waits_long(model):
    world = World(model).run(4, arrivals=poisson(0.7 * IDEAL, 4), within=WITHIN)
    assert world.refused < 0.02 * len(world.waited)
    assert np.quantile(world.waited, 0.99) < 0.2
    assert np.median(world.waited) < 0.05


@pytest.mark.parametrize("times", [1.0, 2.0, 4.0])
def test_who_is_taken_in_is_answered_in_time_under_overload(model, times):
    seconds = 4
    world = World(model).run(seconds, arrivals=poisson(times * IDEAL, seconds), within=WITHIN)
    waited, cut = np.array(world.waited), np.array(world.reasons) == "deadline"
    assert np.mean(waited <= WITHIN) >= 0.998
    assert np.mean(cut) < 0.12
    assert len(waited) / seconds > 0.75 * IDEAL
    assert world.refused > 0


def test_the_time_that_is_left_is_shorter_by_the_way_there_and_back():
    late = [0.0]
    admission = Admission(4, 4, lambda more: 0.2 * more, lambda: late[0])
    assert admission.left(1.0) == pytest.approx(0.9)
    late[0] = 0.1
    assert admission.left(1.0) == pytest.approx(0.7)
    late[0] = 9.0
    assert admission.left(1.0) == 0.5  # never more than half


def test_who_comes_first_is_taken_in_and_others_by_half_of_the_time():
    admission = Admission(4, 4, lambda more: 0.2 * (more + admission.examples))
    with admission.of(1, within=0.01):
        with admission.of(1, within=0.81), pytest.raises(RequestError) as error:
            admission.of(1, within=1.19).__enter__()
        assert error.value.status == 429
        assert error.value.headers == {"Retry-After": "1"}
    assert admission.examples == 0
