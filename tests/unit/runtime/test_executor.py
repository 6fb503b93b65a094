import asyncio
import threading
import time

import pytest
import torch
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import InputError, UnsupportedError
from offramp._core.topology import Topology
from offramp.policy import Constant, Feature, Linear, Node, Policy
from offramp.runtime import Adaptive, Executor, RowsError
from offramp.stages import Cascade

SECONDS = 60  # no test may hang


class Net(nn.Module):
    """Row by row; cannot read numbers above 50, and may be told to wait."""

    reentrant = True

    def __init__(self, k):
        super().__init__()
        self.k, self.gate, self.sizes = k, None, []
        self.inside, self.most, self._lock = 0, 0, threading.Lock()

    def forward(self, x):
        with self._lock:
            self.sizes.append(len(x))
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            if self.gate is not None:
                assert self.gate.wait(SECONDS)
            if bool((x > 50).any()):
                raise RuntimeError("too bright")
            return torch.sin(x * (self.k + 2)) * 4
        finally:
            with self._lock:
                self.inside -= 1


def make(value=0.6, **arguments):
    topology = Topology.of(["a", "b"])
    cascade = Cascade.from_models({"a": Net(0), "b": Net(1)})
    for stage in cascade:
        stage.keeps_company = True
        stage.run(torch.zeros(1, 3))  # the first batch is copied and compared
        stage.module.sizes.clear()
    node = Node(Linear.threshold(Feature("max_prob", 0), value))
    model = Adaptive(
        cascade, Policy(topology, {(0,): node}), costs=Costs.simple("flops", [1.0, 2.0])
    )
    return model, [stage.module for stage in cascade]


def run(coroutine):
    async def bounded():
        return await asyncio.wait_for(coroutine, SECONDS)

    return asyncio.run(bounded())


def same(a, b):
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("log_probs", "labels", "stage", "path", "reason", "cost", "valid")
    )


def requests(count):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1 + k % 4, 3, generator=generator) for k in range(count)]


def test_requests_at_the_same_time_are_answered_as_by_themselves():
    model, _ = make()
    each = requests(40)

    async def ask():
        with Executor(model, workers=3, batch_size=8) as executor:
            return await asyncio.gather(*map(executor.submit, each))

    answers = run(ask())
    assert all(same(answer, model(x)) for x, answer in zip(each, answers, strict=True))


def test_many_threads_may_ask():
    model, _ = make()
    each, found = requests(24), {}
    with Executor(model, batch_size=8) as executor:

        def ask(start):
            for k in range(start, 24, 4):
                found[k] = executor.future(each[k]).result(SECONDS)

        threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
    assert sorted(found) == list(range(24))
    assert all(same(answer, model(each[k])) for k, answer in found.items())


def test_one_bad_example_costs_nobody_else():
    model, _ = make()
    each = requests(10)
    each[3] = torch.full((1, 3), 99.0)
    each[6][1] = 99.0

    async def ask():
        with Executor(model, batch_size=16) as executor:
            asked = map(executor.submit, each)
            return await asyncio.gather(*asked, return_exceptions=True)

    answers = run(ask())
    assert type(answers[3]) is RuntimeError
    mixed = answers[6]
    assert isinstance(mixed, RowsError)
    assert list(mixed.errors) == [1]
    assert "row 1: RuntimeError: too bright" in str(mixed)
    assert mixed.answer.valid.tolist() == [True, False, True]
    assert mixed.answer.reasons[1] == "error"
    assert mixed.answer.labels[1] == -1
    whole = model(each[6][::2])
    assert torch.equal(mixed.answer.log_probs[::2], whole.log_probs)
    for k in set(range(10)) - {3, 6}:
        assert same(answers[k], model(each[k]))


def test_closing_answers_everybody_who_was_accepted():
    model, nets = make(value=2.0)
    nets[0].gate = threading.Event()
    executor = Executor(model, patience=1000.0)
    futures = [executor.future(x) for x in requests(6)]
    nets[0].gate.set()
    executor.close()
    assert all(future.done() for future in futures)
    assert sum(len(future.result(0)) for future in futures) == sum(map(len, requests(6)))
    with pytest.raises(UnsupportedError, match="closed"):
        executor.future(torch.zeros(1, 3))
    executor.close()  # again


def test_closing_without_answering_tells_everybody():
    model, nets = make()
    nets[0].gate = threading.Event()
    executor = Executor(model, workers=1)
    futures = [executor.future(x) for x in requests(6)]
    opener = threading.Timer(0.2, nets[0].gate.set)
    opener.start()
    executor.close(answer=False)
    for future in futures:
        assert isinstance(future.exception(0), UnsupportedError)


def test_who_is_cancelled_is_let_go_and_the_others_are_not():
    model, nets = make(value=2.0)
    nets[0].gate = threading.Event()

    async def ask():
        with Executor(model, workers=1, patience=1000.0, batch_size=2) as executor:
            tasks = [asyncio.create_task(executor.submit(torch.zeros(1, 3))) for _ in range(3)]
            await asyncio.sleep(0.05)
            tasks[1].cancel()
            await asyncio.sleep(0.05)
            nets[0].gate.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

    answers = run(ask())
    assert isinstance(answers[1], asyncio.CancelledError)
    assert same(answers[0], model(torch.zeros(1, 3)))
    assert same(answers[2], model(torch.zeros(1, 3)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_stage_that_runs_one_batch_at_a_time_is_never_asked_for_two(reentrant):
    model, nets = make(value=2.0)
    for net in nets:
        net.reentrant = reentrant
    nets[0].gate = threading.Event()
    with Executor(model, workers=4, batch_size=1, patience=0.0) as executor:
        futures = [executor.future(torch.zeros(1, 3)) for _ in range(8)]
        until = time.monotonic() + (SECONDS if reentrant else 0.3)
        while nets[0].inside < 2 and time.monotonic() < until:
            time.sleep(0.01)
        nets[0].gate.set()
        assert all(len(future.result(SECONDS)) == 1 for future in futures)
    assert (nets[0].most > 1) == reentrant
    if not reentrant:
        assert nets[1].most == 1


def test_deadlines_and_budgets_reach_the_batcher():
    model, nets = make(value=2.0)

    async def ask():
        with Executor(model) as executor:
            x = torch.zeros(2, 3)
            late = executor.submit(x, deadline=-1.0)
            poor = executor.submit(x, budget=1.5)
            rich = executor.submit(x, ["cat", "dog"], budget=3.0, deadline=1000.0, priority=1)
            return await asyncio.gather(late, poor, rich)

    late, poor, rich = run(ask())
    assert late.reasons == ["deadline"] * 2
    assert poor.reasons == ["budget"] * 2
    assert rich.reasons == ["last"] * 2
    assert sum(nets[1].sizes) == 2


def test_senseless_requests_are_refused_and_the_executor_goes_on():
    model, _ = make()
    with Executor(model) as executor:
        for rows, ids, message in (
            (torch.zeros(0, 3), None, "at least one example"),
            (torch.zeros(2, 3), [1], "ids one entry for each"),
            (None, None, "batch"),
        ):
            with pytest.raises(InputError, match=message):
                executor.future(rows, ids)
        with pytest.raises(InputError, match="first stage costs"):
            executor.future(torch.zeros(1, 3), budget=0.5)
        assert len(executor.future(torch.zeros(2, 3)).result(SECONDS)) == 2
    with pytest.raises(InputError, match="workers must be an integer of at least 1"):
        Executor(model, workers=0)


def test_a_fault_of_our_own_leaves_nobody_waiting(monkeypatch):
    model, _ = make()
    executor = Executor(model)
    monkeypatch.setattr(executor._batcher, "tell", lambda *_: 1 / 0)
    future = executor.future(torch.zeros(1, 3))
    assert isinstance(future.exception(SECONDS), ZeroDivisionError)
    executor.close()


def test_an_answer_that_cannot_be_put_together_leaves_nobody_waiting(monkeypatch):
    model, _ = make()
    monkeypatch.setattr("offramp.runtime.request.Request._outcome", lambda *_: 1 / 0)
    with Executor(model) as executor:
        future = executor.future(torch.zeros(2, 3))
        assert isinstance(future.exception(SECONDS), ZeroDivisionError)


def test_a_policy_that_never_leaves_needs_no_threshold():
    policy = Policy(Topology.of(["a", "b"]), {(0,): Node(Constant(False))})
    model = Adaptive(Cascade.from_models({"a": Net(0), "b": Net(1)}), policy)
    with Executor(model) as executor:
        assert executor.future(torch.zeros(3, 3)).result(SECONDS).stage.tolist() == [1, 1, 1]


def test_all_answers_of_a_batch_come_to_a_loop_in_one_step():
    model, (a, _) = make(value=0.0)  # everybody leaves at once
    a.gate = threading.Event()

    async def ask():
        loop, steps = asyncio.get_running_loop(), []
        real = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *step: steps.append(step)
        with Executor(model, workers=1) as executor:
            waiting = [asyncio.ensure_future(executor.submit(torch.zeros(1, 3)))]
            while not a.sizes:
                await asyncio.sleep(0.001)
            waiting += [
                asyncio.ensure_future(executor.submit(torch.full((1, 3), k / 9), [f"x{k}"]))
                for k in range(8)
            ]
            await asyncio.sleep(0)
            a.gate.set()
            while len(steps) < 2:
                await asyncio.sleep(0.001)
            for step in steps:
                real(*step)
            found = await asyncio.gather(*waiting)
            assert executor.lag >= 0
        return steps, found

    steps, found = run(ask())
    assert (len(steps), a.sizes) == (2, [1, 8])
    alone, _ = make(value=0.0)
    for k, answer in enumerate(found[1:]):
        assert same(answer, alone(torch.full((1, 3), k / 9), [f"x{k}"]))


def test_a_loop_that_is_closed_keeps_nobody_else_waiting():
    model, (a, _) = make()
    a.gate = threading.Event()
    executor, waiting = Executor(model, workers=1), []

    async def leave():
        waiting.append(asyncio.ensure_future(executor.submit(torch.zeros(1, 3))))
        while not a.sizes:
            await asyncio.sleep(0.001)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    other = executor.future(torch.zeros(1, 3))
    waiting[0]._log_destroy_pending = False
    loop.close()
    a.gate.set()
    assert len(other.result(SECONDS)) == 1
    executor.close()
