"""Cascades of services: who goes on where one fails, what is paid, and who waits for whom."""

import asyncio
import random
import time

import pytest
import torch
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import InputError, ServiceError
from offramp.adapters import Limits, from_openai
from offramp.evaluation.replay import replay
from offramp.policy import Candidate, Constant, Feature, Linear, Node, Policy
from offramp.recording import record
from offramp.runtime import Adaptive, Executor
from offramp.stages import Cascade, Stage
from support.openai_server import StandIn

LABELS = ("good", "bad")
DEAD = (500, {}, b"{}")
FEES = {"input": 0.0, "output": 0.0, "request": 1.0}  # an answer costs 1


class Sure(nn.Module):
    """A local function: texts that begin with "sure" are good, of others it does not know."""

    reads_rows = True

    def forward(self, rows):
        sure = torch.tensor([row.startswith("sure") for row in rows])
        return torch.zeros(len(rows), dtype=torch.int64), torch.where(sure, 0.99, 0.55)


def service(server, **others):
    given = {"limits": Limits(attempts=1), "prices": FEES, **others}
    asked = {"labels": LABELS, "prompt": "{row}", "key_env": None, "model": "m"}
    return from_openai(server.url, **asked, **given)


def local(module=None):
    return Stage("local", module or Sure(), outputs="confidence", class_names=LABELS)


def model_of(stages, *, edges="full", costs=None):
    """Who is sure stays; the others go to the next stage."""
    cascade = Cascade.from_models(stages, edges=edges, class_names=LABELS)
    topology = cascade.topology
    nodes = {
        path: Node(
            Linear.threshold(Feature("max_prob", path[-1]), 0.8),
            [Constant(True)] * (len(topology.children(path[-1])) - 1),
        )
        for path in topology.paths()
        if topology.children(path[-1])
    }
    candidate = Candidate(policy=Policy(topology, nodes), method="mine", reference=list(stages)[-1])
    return Adaptive(cascade, candidate, costs=costs)


def both_ways(model, rows):
    """The answer of a batch, and that of each example by itself through an executor."""
    whole = model(rows)

    async def ask():
        with Executor(model) as executor:
            return await asyncio.gather(*(executor.submit([row]) for row in rows))

    single = asyncio.run(asyncio.wait_for(ask(), 60))
    return whole, single


def agree(whole, single):
    for name in ("stage", "labels", "valid", "reason", "nonfinite"):
        assert getattr(whole, name).tolist() == [getattr(a, name).item() for a in single], name


ROWS = ["sure", "a good one", "rain", "good good"]


def test_the_price_is_that_of_the_answers():
    with StandIn(idempotent=False) as server:
        paid = service(server, limits=Limits(cache=0))
        model = model_of({"local": local(), "paid": paid})
        whole, single = both_ways(model, ROWS)
        paid.module.close()
    agree(whole, single)
    assert whole.cost.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert [a.cost.item() for a in single] == whole.cost.tolist()
    assert whole.labels.tolist() == [0, 0, 1, 0]
    assert sum(server.charges.values()) == 6


def test_the_costs_say_what_services_do_not_tell():
    with StandIn() as server:
        paid = service(server)
        costs = Costs.simple("usd", [0.25, 7.0])
        answer = model_of({"local": local(), "paid": paid}, costs=costs)(ROWS)
        in_seconds = Costs.simple("seconds", [0.25, 7.0])
        other = model_of({"local": local(), "paid": paid}, costs=in_seconds)(ROWS)
        paid.module.close()
    assert answer.cost.tolist() == [0.25, 1.25, 1.25, 1.25]
    assert other.cost.tolist() == [0.25, 7.25, 7.25, 7.25]


@pytest.mark.parametrize(
    ("on_error", "stages", "reasons", "valid"),
    [
        ("next", [0, 2, 2, 2], ["policy", "policy", "policy", "policy"], True),
        ("reference", [0, 3, 3, 3], ["policy", "last", "last", "last"], True),
        ("refuse", [0, 1, 1, 1], ["policy", "failed", "failed", "failed"], False),
    ],
)
def test_who_answers_where_a_service_has_failed_is_declared(on_error, stages, reasons, valid):
    with StandIn(fixed=DEAD) as dead, StandIn() as server:
        dead = service(dead, on_error=on_error)
        rest = {name: service(server) for name in ("next", "last")}
        model = model_of({"local": local(), "dead": dead, **rest})
        whole, single = both_ways(model, ROWS)
        for stage in (dead, *rest.values()):
            stage.module.close()
    agree(whole, single)
    assert whole.stage.tolist() == stages
    assert whole.reasons == reasons
    assert whole.valid.tolist() == [True] + [valid] * 3
    assert whole.nonfinite.tolist() == [0, 1, 1, 1]
    assert (whole.labels[1:] == -1).all() == (not valid)


def test_where_the_last_stage_fails_an_earlier_one_answers_and_it_is_said():
    with StandIn(fixed=DEAD) as server:
        dead = service(server)
        whole, single = both_ways(model_of({"local": local(), "dead": dead}), ROWS)
        dead.module.close()
    agree(whole, single)
    assert whole.reasons == ["policy", "failed", "failed", "failed"]
    assert whole.labels.tolist() == [0, 0, 0, 0]


def test_a_spending_cap_stops_escalation_and_not_service():
    with StandIn() as server:
        paid = service(server, daily_cap=1.0, limits=Limits(concurrency=1, cache=0))
        last = service(server, limits=Limits(cache=0))
        model = model_of({"local": local(), "paid": paid, "last": last})
        answer = model(ROWS)
        again = model(ROWS)
        for stage in (paid, last):
            stage.module.close()
    assert answer.reasons == ["policy", "policy", "spending", "spending"]
    assert answer.valid.all()
    assert again.reasons == ["policy", "spending", "spending", "spending"]
    assert sum(server.charges.values()) == 1
    assert answer.cost.tolist() == [0.0, 1.0, 0.0, 0.0]


def test_the_reference_must_be_within_reach():
    with StandIn() as server:
        stages = {"a": service(server, on_error="reference"), "b": service(server)}
        with pytest.raises(InputError, match="no way from there"):
            model_of({**stages, "last": service(server)}, edges="chain")


def test_a_budget_holds_over_all_stages_of_a_request():
    with StandIn() as server:
        first = service(server, limits=Limits(cache=0))
        last = service(server, prices={**FEES, "request": 2.0}, limits=Limits(cache=0))
        server.say = lambda text: ("good", 0.6)
        costs = Costs.simple("usd", [0.5, 2.0])  # the first is dearer than was thought
        model = model_of({"first": first, "last": last}, costs=costs)

        async def ask(budget):
            with Executor(model) as executor:
                return await executor.submit(["x"], budget=budget)

        enough, short = asyncio.run(ask(3.0)), asyncio.run(ask(2.9))
        for stage in (first, last):
            stage.module.close()
    assert (enough.reasons, enough.cost.item()) == (["last"], 3.0)
    assert (short.reasons, short.cost.item()) == (["budget"], 1.0)


def test_computing_does_not_wait_for_services():
    with StandIn(latency=0.5) as server:
        paid = service(server)
        model = model_of({"local": local(), "paid": paid})

        async def ask():
            with Executor(model, workers=1) as executor:
                slow = [asyncio.ensure_future(executor.submit([f"rain {k}"])) for k in range(4)]
                await asyncio.sleep(0.1)
                begun = time.monotonic()
                await executor.submit(["sure"])
                quick = time.monotonic() - begun
                await asyncio.gather(*slow)
                return quick

        quick = asyncio.run(ask())
        paid.module.close()
    assert quick < 0.3
    assert server.most_running == 4


def test_what_nobody_waits_for_is_not_paid():
    with StandIn(latency=0.1) as server:
        paid = service(server, limits=Limits(concurrency=1))
        model = model_of({"local": local(), "paid": paid})
        with Executor(model) as executor:
            futures = [executor.future([f"rain {k}"]) for k in range(20)]
            time.sleep(0.15)
            for future in futures:
                future.cancel()
        paid.module.close()
    assert sum(server.charges.values()) < 6


def test_a_wrong_key_is_an_error_of_every_request():
    with StandIn(key="k") as server:
        paid = service(server)
        model = model_of({"local": local(), "paid": paid})
        with pytest.raises(ServiceError, match="does not accept"):
            model(ROWS)
        with Executor(model) as executor, pytest.raises(ServiceError, match="does not accept"):
            executor.future(["rain"]).result()
        paid.module.close()


def test_live_answers_are_those_of_replay():
    rows = [f"{size} {k}" for k, size in enumerate(["sure", "large"] * 30)]
    truth = torch.arange(60) % 2

    def say(text):
        draw = random.Random(text).random()
        return LABELS[int(draw < 0.5)], 0.5 + draw / 2

    with StandIn(say=say, prices={"input": 1.0, "output": 2.0}) as server:
        prices = {"input": 1.0, "output": 2.0}
        paid, last = (service(server, prices=prices, limits=Limits(cache=0)) for _ in range(2))
        model = model_of({"local": local(), "paid": paid, "last": last})
        costs = Costs.simple("usd", [1e-6, 0.0, 0.0])
        trace = record(model.cascade, [(rows, truth)], costs=costs, progress=False)
        live = model_of(dict(zip(trace.stages, model.cascade, strict=True)), costs=trace.costs)(
            rows
        )
        for stage in (paid, last):
            stage.module.close()
    said = replay(trace, model.candidate.policy)
    assert live.stage.tolist() == said.last.tolist()
    assert live.labels.tolist() == said.labels[:, 0].tolist()
    assert live.cost.tolist() == pytest.approx(said.cost.tolist())
    assert len(set(live.stage.tolist())) == 3


def test_a_service_is_waited_for_until_the_deadline():
    with StandIn(latency=3.0) as server:
        paid = service(server, limits=Limits(timeout=60.0))
        model = model_of({"local": local(), "paid": paid})

        async def ask(**others):
            with Executor(model) as executor:
                return await executor.submit(["rain"], **others)

        begun = time.monotonic()
        answer = asyncio.run(ask(deadline=0.3))
        seconds = time.monotonic() - begun
        paid.module.close()
    assert seconds < 2.5
    assert (answer.labels.item(), answer.reasons) == (0, ["failed"])  # what the local stage says
    assert paid.module.counts["failed: no answer before the deadline"] == 1
    assert paid.module.spent == 1.0  # it was sent, and may have been charged


def test_a_caller_with_more_time_does_not_share_the_call_of_one_with_less():
    with StandIn(latency=0.15, idempotent=True) as server:
        paid = service(server, limits=Limits())
        model = model_of({"local": local(), "paid": paid})

        async def ask():
            with Executor(model) as executor:
                less = executor.submit(["rain"], deadline=0.05)
                more = executor.submit(["rain"], deadline=60.0)
                return await asyncio.gather(less, more)

        less, more = asyncio.run(ask())
        paid.module.close()
    assert less.reasons[0] in ("failed", "deadline")
    assert (less.labels.item(), more.labels.item(), more.reasons) == (0, 1, ["last"])
