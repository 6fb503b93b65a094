import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.outputs import StageOutput
from offramp._core.topology import Topology
from offramp.policy import Constant, Evidence, Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.runtime.inflight import InFlight, enter
from offramp.stages import Cascade
from offramp.testing import random_policy, random_topology

CLASSES = 3
COSTS = [1.0, 2.0, 4.0, 8.0]


class Net(nn.Module):
    """Row by row; refuses examples that are marked for it in the last column."""

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x):
        bad = [int(mark) for mark in x[:, -1].tolist() if int(mark) % 10 == self.k + 1]
        if bad:
            raise RuntimeError(f"cannot read {bad}")
        return torch.sin(x[:, :CLASSES] * (self.k + 2)) * 4


def cascade_of(topology):
    names = topology.names
    edges = [(names[j], names[k]) for j, k in topology.edges]
    cascade = Cascade.from_models({name: Net(k) for k, name in enumerate(names)}, edges=edges)
    for stage in cascade:
        stage.keeps_company = True
    return cascade


def model_of(seed, combine="last"):
    drawn = random_topology(4, seed=seed, share=0.8)
    cascade = cascade_of(Topology.of(drawn.names))
    policy = random_policy(drawn, seed=seed, classes=CLASSES, combine=combine)
    return Adaptive(cascade, policy, costs=Costs.simple("flops", COSTS))


def rows_of(n, seed, bad):
    """Examples of two lengths, some not finite, some marked for the stage that cannot read them."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(n, CLASSES + 1 + seed % 2))).float()
    x[torch.from_numpy(rng.random(n) < 0.1), 0] = torch.nan
    x[:, -1] = 0
    if bad:
        hit = torch.from_numpy(rng.random(n) < 0.15)
        marks = torch.from_numpy(10 * (seed * 50 + np.arange(n)) + rng.integers(1, 5, n)).float()
        x[:, -1] = torch.where(hit, marks, x[:, -1])
    return x


class World:
    """Drives a batcher by a schedule, and keeps the books."""

    def __init__(self, model, full, patience, faults=None):
        self.model, self.now = model, 100.0
        self.batcher = model.batcher(batch_size=full, patience=patience)
        if faults is not None:
            faults(self.batcher)
        self.rows, self.terms, self.names = {}, {}, {}
        self.running, self.cancelled, self.finished = [], set(), {}

    def put(self, n, seed, *, bad=True, deadline=None, budget=None, priority=0):
        x = rows_of(n, seed, bad)
        names = np.arange(len(self.rows), len(self.rows) + n) + 1000
        with torch.inference_mode():
            flight = enter(self.model.program, x, torch.from_numpy(names))
            late = None if deadline is None else self.now + deadline
            terms = {"deadline": late, "budget": budget, "priority": priority}
            numbers = self.batcher.put(flight, names, self.now, **terms)
        for row, number in enumerate(numbers.tolist()):
            assert number not in self.rows
            self.rows[number], self.terms[number] = x[row : row + 1], terms
            self.names[number] = names[row]
        return numbers

    def begin(self, *, flush=False):
        job = self.batcher.next_job(self.now, flush=flush)
        if job is not None:
            self.running.append(job)
        self.collect()
        return job

    def end(self, at):
        job = self.running.pop(at % len(self.running))
        with torch.inference_mode():
            outcome = job.run()
            self.batcher.tell(job, outcome, self.now)
        self.collect()

    def cancel(self, numbers):
        before = len(self.batcher)
        open_ = {n for n in numbers if n not in self.finished and n not in self.cancelled}
        assert self.batcher.cancel(numbers) == len(open_) == before - len(self.batcher)
        self.cancelled |= open_

    def collect(self):
        for done in self.batcher.finished():
            assert (done.answer is None) != (done.error is None)
            for row, number in enumerate(done.numbers.tolist()):
                assert number in self.rows
                assert number not in self.finished, "finished once"
                assert number not in self.cancelled, "not after it was cancelled"
                assert done.ids[row] == self.names[number]
                self.finished[number] = (done.answer, row, done.error)

    def drain(self):
        while len(self.batcher):
            if self.begin(flush=True) is None and self.running:
                self.end(0)
        while self.running:  # of whom all are cancelled
            self.end(0)

    def check(self):
        assert len(self.batcher) == 0
        assert set(self.finished) | self.cancelled == set(self.rows)
        for number, (answer, row, error) in self.finished.items():
            self.check_one(number, answer, row, error)

    def check_one(self, number, answer, row, error):
        x, terms, own = self.rows[number], self.terms[number], [int(self.names[number])]
        mark = int(x[0, -1])
        clean = x.clone()
        clean[0, -1] = 0
        wanted = self.model(clean, own)
        path = wanted.paths[int(wanted.path[0])]
        if error is not None:
            # The first batch of all is told from a batch of the wrong kind, which adds words.
            assert str(error).endswith(f"cannot read [{mark}]"), "its own error"
            assert mark % 10 - 1 in path
            return
        went = answer.paths[int(answer.path[row])]
        assert mark == 0 or mark % 10 - 1 not in went
        reason = answer.reasons[row]
        if reason in ("deadline", "budget"):
            assert terms[reason] is not None
            assert path[: len(went)] == went
            assert len(went) < len(path)
            if not self.model(clean, own).nonfinite[0]:
                assert torch.equal(answer.log_probs[row], self.said(clean, went, own))
        else:
            assert went == path
            assert reason == wanted.reasons[0]
            assert answer.valid[row] == wanted.valid[0]
            assert answer.nonfinite[row] == wanted.nonfinite[0]
            assert answer.labels[row] == wanted.labels[0]
            assert torch.equal(
                answer.log_probs[row].nan_to_num(9), wanted.log_probs[0].nan_to_num(9)
            )
        assert answer.cost[row] <= (terms["budget"] or np.inf)

    def said(self, x, path, own):
        """The answer by the stages of a path, one stage at a time."""
        said = [None] * 4
        for k in path:
            said[k] = StageOutput(classes=CLASSES, logits=Net(k)(x))
        policy = self.model.policy
        return policy.answer(Evidence(policy, path, said, torch.tensor(own)))[0]


def play(schedule, *, seed, combine, full, patience, faults=None):
    """One random schedule from beginning to end."""
    model = model_of(seed, combine)
    least = COSTS[model.policy.topology.root]
    world = World(model, full, patience, faults)
    for action, value in schedule:
        draw = random.Random(value)
        if action == "put":
            world.put(
                draw.randrange(6),
                value,
                deadline=draw.choice([None, None, 0.0, 1.0, 5.0]),
                budget=draw.choice([None, None, least, least + 3, 15.0]),
                priority=draw.choice([0, 0, 2]),
            )
        elif action == "begin":
            world.begin()
        elif action == "end" and world.running:
            world.end(value)
        elif action == "cancel" and world.rows:
            world.cancel(draw.sample(sorted(world.rows), min(2, len(world.rows))))
        elif action == "tick":
            world.now += draw.choice([0.0, 0.5, 3.0])
        wake = world.batcher.wake_at(world.now)
        assert wake is None or wake >= world.now
    world.drain()
    world.check()


ACTIONS = ["put", "begin", "begin", "end", "end", "tick", "cancel"]


@settings(deadline=None, max_examples=60)
@given(
    schedule=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 2**16)), max_size=30),
    seed=st.integers(0, 2**16),
    combine=st.sampled_from(["last", "mean"]),
    full=st.integers(1, 7),
    patience=st.sampled_from([None, 0.0, 2.5]),
)
def test_everybody_is_finished_once_in_any_schedule(schedule, seed, combine, full, patience):
    play(schedule, seed=seed, combine=combine, full=full, patience=patience)


def gives_up_all(batcher):
    """One bad example spoils the batch."""
    right = batcher.failed
    batcher.failed = lambda job, error, now, whole=False: right(job, error, now, whole=True)


def forgets_who_was_cancelled(batcher):
    """Whoever is in a job when he is cancelled is answered all the same."""
    names = dict[int, object]()
    pop = batcher._tickets.pop

    class Keeps(dict):
        def pop(self, number, *default):
            names[number] = self[number] if number in self else names.get(number)
            found = super().pop(number, *default)
            return names[number] if found is None else found

        def __contains__(self, number):
            return super().__contains__(number) or number in names

        def __getitem__(self, number):
            return super().__getitem__(number) if number in self.keys() else names[number]

    del pop
    batcher._tickets = Keeps()


def forgets_the_budget(batcher):
    batcher._part_of = batcher._part
    batcher._part = lambda path, flight, reason, stays: (
        flight if reason == "budget" else batcher._part_of(path, flight, reason, stays)
    )


def answers_twice(batcher):
    right = batcher.finished

    def finished():
        found = right()
        return found + found[:1]

    batcher.finished = finished


def loses_the_rest(batcher):
    """Those for whom there was no room in a batch are forgotten."""
    right = batcher.next_job

    def next_job(now, flush=False):
        job = right(now, flush=flush)
        for key in [key for key, pool in batcher._pools.items() if job and pool.path == job.path]:
            del batcher._pools[key]
        return job

    batcher.next_job = next_job


FAULTS = [
    gives_up_all,
    forgets_who_was_cancelled,
    forgets_the_budget,
    answers_twice,
    loses_the_rest,
]


def caught(faults):
    for seed in range(60):
        draw = random.Random(seed)
        schedule = [
            ("put", 3 * seed),
            *((draw.choice(ACTIONS), draw.randrange(999)) for _ in range(25)),
        ]
        try:
            play(schedule, seed=seed, combine="last", full=3, patience=None, faults=faults)
        except (AssertionError, KeyError, TimeoutError):
            return True
    return False


@pytest.mark.parametrize("faults", FAULTS)
def test_a_twin_with_a_fault_is_caught(faults, monkeypatch):
    ticks = itertools.count()
    drain = World.drain

    def impatient(self):  # who loses somebody would wait for ever
        begin = self.begin

        def counted(**arguments):
            if next(ticks) > 5000:
                raise TimeoutError
            return begin(**arguments)

        self.begin = counted
        drain(self)

    monkeypatch.setattr(World, "drain", impatient)
    assert caught(faults)


# ---- one thing at a time


def thresholds(names, value):
    topology = Topology.of(names, edges="chain")
    nodes = {
        p: Node(Linear.threshold(Feature("max_prob", p[-1]), value)) for p in topology.paths()[:-1]
    }
    return Policy(topology, nodes)


def chain_world(*, full=8, patience=None, value=2.0, stages=3):
    names = ["a", "b", "c", "d"][:stages]
    policy = thresholds(names, value)
    model = Adaptive(
        cascade_of(policy.topology), policy, costs=Costs.simple("flops", COSTS[:stages])
    )
    return World(model, full, patience)


def run_all(world):
    jobs = []
    while (job := world.begin()) is not None:
        jobs.append((job.stage, sorted(job.flight.numbers.tolist())))
        world.end(0)
    return jobs


def test_survivors_of_several_requests_go_on_together():
    world = chain_world(full=4)
    for _ in range(2):
        world.put(2, 0, bad=False)
        assert world.begin().stage == 0
        world.end(0)
    assert run_all(world) == [(1, [0, 1, 2, 3]), (2, [0, 1, 2, 3])]
    world.check()


def test_the_first_stage_joins_requests_that_wait_for_it_up_to_a_full_batch():
    world = chain_world(full=5)
    for n in (2, 3, 4, 9):
        world.put(n, 0, bad=False)
    sizes = []
    while (job := world.batcher.next_job(world.now)) is not None:
        sizes.append(len(job))
    assert sizes == [5, 4, 9]  # and takes one that is larger as it comes


def test_the_oldest_deadline_goes_first_and_priority_before_it():
    world = chain_world(full=2, stages=2)
    terms = [{}, {"deadline": 9.0}, {"deadline": 3.0}, {"priority": 1}]
    for term in terms:
        world.put(1, 0, bad=False, **term)
        if "deadline" in term:
            world.batcher._pace.saw(1, 1, 0.1)
    while world.batcher._pools and world.begin(flush=True).stage == 0:
        pass
    assert world.running[0].flight.numbers.tolist() == [3, 2]


def test_with_a_deadline_one_waits_no_longer_than_it_allows():
    world = chain_world(full=100, stages=2)
    world.put(1, 0, bad=False)
    assert run_all(world) == [(0, [0])]
    assert world.batcher.wake_at(world.now) is None
    world.batcher._pace.saw(1, 2, 2.0)
    world.put(1, 0, bad=False, deadline=10.0)
    assert run_all(world) == [(0, [1])]
    assert world.batcher.wake_at(world.now) == 106.0
    world.now = 105.9
    assert world.begin() is None
    world.now = 106.0
    assert run_all(world) == [(1, [0, 1])]
    world.check()


def test_patience_says_when_to_wake():
    world = chain_world(full=100, patience=2.0, stages=2)
    world.put(1, 0, bad=False)
    assert world.batcher.wake_at(world.now) == world.now
    assert run_all(world) == [(0, [0])]
    assert world.batcher.wake_at(world.now) == 102.0
    world.now = 103.0
    assert world.batcher.wake_at(world.now) == 103.0
    assert run_all(world) == [(1, [0])]


def test_a_deadline_or_a_budget_that_allows_nothing_more_is_answered_by_what_there_is():
    world = chain_world(full=100)
    late = world.put(2, 0, bad=False, deadline=1.0).tolist()
    poor = world.put(2, 2, bad=False, budget=3.0).tolist()
    assert world.begin() is not None
    world.now += 5.0
    while world.running:
        world.end(0)
    while world.begin(flush=True):
        world.end(0)
    for number in late:
        answer, row, _ = world.finished[number]
        assert (answer.reasons[row], int(answer.stage[row])) == ("deadline", 0)
    for number in poor:
        answer, row, _ = world.finished[number]
        assert (answer.reasons[row], int(answer.stage[row])) == ("budget", 1)
        assert float(answer.cost[row]) == 3.0
    world.check()


def test_the_first_stage_runs_however_late_it_is():
    world = chain_world()
    world.put(2, 0, bad=False, deadline=-50.0)
    world.drain()
    assert Counter(answer.reasons[row] for answer, row, _ in world.finished.values()) == {
        "deadline": 2
    }
    world.check()


@pytest.mark.parametrize("stage", [0, 1])
def test_one_bad_example_among_many_costs_itself_only(stage):
    world = chain_world(full=64, stages=2)
    x = rows_of(16, 0, bad=False)
    world.put(16, 0, bad=False)
    (waiting,) = next(iter(world.batcher._pools.values())).waiting
    waiting.flight.raw[11, -1] = world.rows[11][0, -1] = 110 + stage + 1
    world.drain()
    assert [number for number, (*_, error) in world.finished.items() if error] == [11]
    assert len(world.finished) == len(x)
    world.check()


def test_nobody_is_blamed_for_whom_was_cancelled_meanwhile():
    world = chain_world(stages=2)
    numbers = world.put(2, 0, bad=False).tolist()
    (waiting,) = next(iter(world.batcher._pools.values())).waiting
    waiting.flight.raw[1, -1] = 11  # nobody can read it
    world.begin()
    world.cancel(numbers[1:])
    world.end(0)
    world.drain()
    assert world.finished[0][2] is None
    world.check()


def test_texts_of_two_lengths_wait_apart():
    world = chain_world(full=2, stages=2)
    for seed in (0, 1, 2):  # the second is longer
        world.put(1, seed, bad=False)
    jobs = run_all(world)
    assert [job for job in jobs if job[0] == 1] == [(1, [0, 2])]
    world.drain()
    world.check()


def test_a_stage_that_always_fails_costs_everybody_an_error_of_his_own():
    world = chain_world(stages=2)
    stage = world.model.program.stages[1].module
    stage.forward = None  # cannot be called
    world.put(5, 0, bad=False)
    world.drain()
    assert all(isinstance(error, TypeError) for *_, error in world.finished.values())
    assert len(world.finished) == 5


def test_what_is_cancelled_is_not_waited_for():
    world = chain_world(full=2, stages=2)
    first = world.put(1, 0, bad=False)
    run_all(world)
    world.cancel(first.tolist())
    world.put(1, 0, bad=False)
    assert run_all(world) == [(0, [1])]
    world.drain()
    world.check()


def test_senseless_calls_are_refused():
    world = chain_world()
    with pytest.raises(InputError, match=r"at least what the first stage costs, 1, got 0\.5"):
        world.put(1, 0, budget=0.5)
    with pytest.raises(InputError, match="patience must be finite and at least 0, got -1"):
        world.model.batcher(patience=-1.0)
    free = Adaptive.single(cascade_of(Topology.of(["a"])), "a")
    flight = InFlight(free.program, torch.zeros(1, 4), torch.arange(1))
    with pytest.raises(InputError, match="no costs are known"):
        free.batcher().put(flight, np.arange(1), 0.0, budget=5.0)
    world.put(1, 0, bad=False)
    job = world.begin()
    world.end(0)
    with pytest.raises(InputError, match="job must be one that runs"):
        world.batcher.failed(job, RuntimeError("again"), world.now)


def test_nobody_decides_twice_and_never_is_no_stage():
    policy = Policy(Topology.of(["a", "b"]), {(0,): Node(Constant(False))})
    model = Adaptive(cascade_of(policy.topology), policy, costs=Costs.simple("flops", COSTS[:2]))
    world = World(model, 4, None)
    world.put(0, 0)
    assert world.begin() is None
    world.put(3, 0, bad=False)
    world.drain()
    world.check()
