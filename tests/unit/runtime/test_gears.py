"""Requests in several gears at once are answered as each gear's model answers by itself."""

import random
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import InputError, UnknownNameError
from offramp._core.topology import Topology
from offramp.policy import Candidate, Feature, Linear, Node, Policy
from offramp.policy.gears import Gear, Gears
from offramp.policy.promise import Guarantee, Limit
from offramp.runtime import Adaptive, Executor
from offramp.runtime.inflight import enter
from offramp.stages import Cascade

NAMES = ("a", "b", "c")
FIELDS = ("log_probs", "labels", "stage", "reason", "cost", "valid", "nonfinite")
SECONDS = 60


class Net(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x):
        return torch.sin(x * (self.k + 2)) * 4


def promised(drop):
    return Guarantee(
        limits=(Limit(risk="accuracy_drop", at_most=drop),),
        delta=0.1,
        p_value=0.01,
        tested=3,
        n=100,
        split="calibrate",
        fingerprint="0" * 64,
        class_weights=None,
        assumptions=("None.",),
    )


def threshold(names, value):
    drawn = Topology.of(NAMES).chain(names)
    nodes = {
        p: Node(Linear.threshold(Feature("max_prob", p[-1]), value)) for p in drawn.paths()[:-1]
    }
    return Candidate(policy=Policy(drawn, nodes), method="threshold", reference="c")


def gears():
    """The reference, one that passes by b, one through all, one that runs a alone."""
    reference = Candidate.single(Topology.of(NAMES), "c", reference="c")
    others = {
        "two": threshold(["a", "c"], 0.9),
        "three": threshold(["a", "b", "c"], 0.6),
        "one": Candidate.single(Topology.of(NAMES), "a", reference="c"),
    }
    held = [Gear(name="reference", candidate=reference, guarantee=None, sentence="", cost_ratio=1)]
    for k, (name, candidate) in enumerate(others.items(), start=1):
        held.append(
            Gear(
                name=name,
                candidate=candidate,
                guarantee=promised(k / 100),
                sentence="",
                cost_ratio=1 - k / 4,
            )
        )
    return Gears(delta=0.1, held=tuple(held))


def make():
    cascade = Cascade.from_models({name: Net(k) for k, name in enumerate(NAMES)})
    for stage in cascade:
        stage.keeps_company = True
    found = gears()
    costs = Costs.simple("flops", [1.0, 2.0, 4.0])
    return Adaptive(cascade, found["three"], costs=costs, gears=found)


def drawn(n, seed):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))


def same(a, b):
    return all(
        torch.equal(getattr(a, name).nan_to_num(9), getattr(b, name).nan_to_num(9))
        for name in FIELDS
    )


@settings(deadline=None, max_examples=40)
@given(
    schedule=st.lists(
        st.tuples(st.sampled_from(["put", "put", "run", "tick"]), st.integers(0, 2**16)),
        max_size=25,
    ),
    full=st.integers(1, 6),
    patience=st.sampled_from([None, 0.0, 2.0]),
)
def test_any_interleaving_of_gears_answers_as_each_by_itself(schedule, full, patience):
    model = make()
    models = {name: model.in_gear(name) for name in model.gears.names}
    batcher = model.batcher(batch_size=full, patience=patience, others=models.values())
    now, jobs, owners, answered = 0.0, [], {}, {}

    def collect():
        for done in batcher.finished():
            for row, number in enumerate(done.numbers.tolist()):
                assert number not in answered
                answered[number] = done.answer.take([row])

    for action, value in [*schedule, *[("flush", 0)] * 200]:
        draw = random.Random(value)
        if action == "put":
            gear = draw.choice(model.gears.names)
            x = torch.from_numpy(
                np.random.default_rng(value).normal(size=(draw.randrange(1, 5), 3))
            )
            x = x.float()
            x[torch.rand(x.shape, generator=torch.Generator().manual_seed(value)) < 0.05] = (
                torch.nan
            )
            flight = enter(models[gear].program, x, torch.arange(len(x)))
            numbers = batcher.put(flight, np.arange(len(x)), now, priority=draw.choice([0, 0, -1]))
            owners |= {int(n): (gear, x[k : k + 1], k) for k, n in enumerate(numbers)}
        elif action == "tick":
            now += draw.choice([0.5, 3.0])
        else:
            job = batcher.next_job(now, flush=action == "flush")
            jobs += [] if job is None else [job]
            if jobs and (action == "flush" or draw.random() < 0.7):
                done = jobs.pop(draw.randrange(len(jobs)))
                with torch.inference_mode():
                    batcher.tell(done, done.run(), now)
            collect()
    assert set(answered) == set(owners)
    for number, (gear, x, own) in owners.items():
        assert same(answered[number], models[gear](x, [own]))


def test_requests_of_many_threads_name_their_gear():
    model = make()
    each = [
        torch.randn(1 + k % 3, 3, generator=torch.Generator().manual_seed(k)) for k in range(60)
    ]
    wanted = [(*model.gears.names, None)[k % 5] for k in range(60)]
    found = [None] * 60
    with Executor(model, workers=2, batch_size=4) as executor:
        assert executor.gears == model.gears.names

        def ask(begin):
            futures = [(k, executor.future(each[k], gear=wanted[k])) for k in range(begin, 60, 3)]
            for k, future in futures:
                found[k] = future.result(SECONDS)

        threads = [threading.Thread(target=ask, args=(begin,)) for begin in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        assert executor.unfinished == 0
        assert executor.delay() == executor.age() == 0
        assert executor.waiting() == {"a": 0, "b": 0, "c": 0}
    for k, answer in enumerate(found):
        alone = model if wanted[k] is None else model.in_gear(wanted[k])
        assert same(answer, alone(each[k]))


def test_gears_that_are_not_there_are_refused():
    model = make()
    with Executor(model) as executor, pytest.raises(UnknownNameError, match="'two'"):
        executor.future(torch.zeros(1, 3), gear="tow")
    plain = Adaptive(model.cascade, model.choice)
    with Executor(plain) as executor, pytest.raises(InputError, match="has no gears"):
        executor.future(torch.zeros(1, 3), gear="two")
    with Executor(plain, gears={"reference": plain.reference}) as executor:
        answer = executor.future(torch.zeros(2, 3), gear="reference").result(SECONDS)
        assert answer.stage.tolist() == [2, 2]
    foreign = Adaptive.single(Cascade.from_models({"z": Net(0)}), "z")
    with pytest.raises(InputError, match="gear 'other'"):
        Executor(plain, gears={"other": foreign})


def test_an_observer_is_told_of_every_batch_and_cannot_stop_the_stages():
    model, told = make(), []

    def observe(ran):
        told.append(ran)
        raise RuntimeError("the observer is broken")

    with Executor(model, batch_size=8, observer=observe) as executor:
        executor.future(torch.randn(8, 3), gear="one").result(SECONDS)
        executor.future(torch.randn(3, 3), gear="reference").result(SECONDS)
    assert [(ran.stage, ran.examples, ran.full, ran.failed) for ran in told] == [
        ("a", 8, 8, False),
        ("c", 3, 8, False),
    ]
    assert all(ran.seconds >= 0 for ran in told)


def test_who_waits_and_for_how_long():
    model = make()
    batcher = model.batcher(batch_size=4, patience=None)
    with torch.inference_mode():
        for since, priority, gear in ((1.0, -9, "one"), (2.0, 0, "three"), (3.0, 0, "reference")):
            flight = enter(model.in_gear(gear).program, torch.zeros(2, 3), torch.arange(2))
            batcher.put(flight, np.arange(2), since, priority=priority)
    assert batcher.waiting() == {0: 4, 2: 2}
    assert batcher.oldest(0) == 2.0
    assert batcher.oldest(-9) == 1.0
    assert batcher.oldest(1) is None
    job = batcher.next_job(4.0)
    assert (job.stage, len(job)) == (0, 2)
    assert batcher.oldest(0) == 3.0
    assert batcher.begun(0) == 2.0, "they are at a stage and not finished"
    assert batcher.begun(-9) == 1.0
