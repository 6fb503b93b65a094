import numpy as np
import pytest
import torch
from torch import nn

from offramp._core.costs import Costs
from offramp._core.topology import Topology
from offramp.policy import Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.runtime.inflight import enter
from offramp.runtime.pace import Pace
from offramp.stages import Cascade


class Confidence(nn.Module):
    def forward(self, x):
        return torch.stack([x[:, 0], torch.zeros(len(x))], dim=1)


@pytest.fixture(scope="module")
def model():
    cascade = Cascade.from_models({"small": Confidence(), "large": Confidence()})
    for stage in cascade:
        stage.keeps_company = True
    node = Node(Linear.threshold(Feature("max_prob", 0), 0.9))
    policy = Policy(Topology.of(["small", "large"]), {(0,): node})
    return Adaptive(cascade, policy, costs=Costs.simple("flops", [1.0, 2.0]))


def batcher_of(model, full=8):
    made = model.batcher(batch_size=full, patience=0.0)
    for size in (1, 2, 4, 8):
        made._pace.saw(0, size, 1.0 + size)
        made._pace.saw(1, size, 2.0 + 10 * size)
    return made


def put(batcher, model, n, now, *, goes_on=True, **terms):
    x = torch.full((n, 1), 0.0 if goes_on else 9.0)
    return batcher.put(enter(model.program, x, torch.arange(n)), np.arange(n), now, **terms)


@torch.inference_mode()
def step(batcher, now):
    job = batcher.next_job(now)
    batcher.tell(job, job.run(), now)
    return job


def test_a_size_that_has_not_run_is_guessed_from_those_that_have():
    pace = Pace({0: 8}, {})
    assert pace.seconds(0, 3) is None
    pace.saw(0, 4, 2.0)
    assert [pace.seconds(0, size) for size in (1, 4, 12)] == [2.0, 2.0, 6.0]
    pace.saw(0, 4, 6.0)
    assert pace.seconds(0, 4) == 3.0  # a quarter of the way


def test_what_is_ahead_counts_later_stages_by_who_goes_on(model):
    pace, program = Pace({0: 8, 1: 8}, {0: 8.0, 1: 80.0}), model.program
    assert pace.ahead(program, 1, {0, 1}) == 10.0
    assert pace.ahead(program, 0, {0, 1}) == 1.0 + 0.5 * 10.0  # nobody knows yet
    pace.went(program, 0, 1, 19)
    pace.went(program, 0, -1, 79)
    assert pace.ahead(program, 0, {0, 1}) == pytest.approx(1.0 + 0.2 * 10.0)
    assert pace.ahead(program, 0, {0}) == 1.0
    for _ in range(100):  # the past is forgotten
        pace.went(program, 0, 1, 10)
    assert pace.ahead(program, 0, {0, 1}) > 1.0 + 0.9 * 10.0


@torch.inference_mode()
def test_the_backlog_is_of_jobs_that_run_and_of_all_who_wait(model):
    batcher = batcher_of(model)
    assert batcher.backlog(0.0) == 0.0
    own = batcher.backlog(0.0, more=(model.program, 1))
    put(batcher, model, 8, 0.0, goes_on=False)
    assert batcher.backlog(0.0) == pytest.approx(8 * own)
    put(batcher, model, 2, 0.0, goes_on=False, priority=-3)
    assert batcher.backlog(0.0, priority=0) == pytest.approx(8 * own)
    job = batcher.next_job(0.0)
    before, later = (batcher.backlog(now, priority=0) for now in (0.0, 4.0))
    assert before - later == pytest.approx(4.0)
    assert batcher.backlog(99.0, priority=0) == pytest.approx(before - 9.0)  # late, but it runs
    batcher.driven_by(2, [0, 1])
    assert batcher.backlog(0.0, priority=0) == pytest.approx(before / 2)
    batcher.tell(job, job.run(), 9.0)
    assert batcher.backlog(9.0, priority=0) == 0.0


def test_full_batches_go_first_and_then_who_came_first(model):
    batcher = batcher_of(model)
    put(batcher, model, 5, 0.0)
    step(batcher, 0.0)
    put(batcher, model, 8, 1.0)
    assert (step(batcher, 1.0).stage, len(batcher)) == (0, 13)  # the first are five only
    put(batcher, model, 2, 1.5)
    assert [(job.stage, len(job)) for job in (step(batcher, 2.0), step(batcher, 2.0))] == [
        (1, 8),
        (1, 5),
    ]
    assert step(batcher, 2.0).stage == 0


def test_a_batch_is_made_smaller_where_its_most_urgent_would_be_late(model):
    batcher = batcher_of(model)
    put(batcher, model, 8, 0.0, deadline=35.0)
    job = step(batcher, 0.0)
    assert (job.stage, len(job)) == (0, 8)
    job = batcher.next_job(1.0)
    assert (job.stage, len(job)) == (1, 2)  # four take 42 seconds, or more


@torch.inference_mode()
def test_who_could_not_be_in_time_after_a_job_is_answered_before_it_ends(model):
    batcher = batcher_of(model)
    put(batcher, model, 2, 0.0, deadline=40.0)
    step(batcher, 0.0)
    put(batcher, model, 8, 1.0, priority=1)
    job = batcher.next_job(1.0)
    assert (job.stage, len(job)) == (0, 8)
    assert not batcher.finished()  # there is time after it
    batcher.tell(job, job.run(), 10.0)
    assert batcher.next_job(10.0).stage == 1
    (done,) = batcher.finished()
    assert done.numbers.tolist() == [0, 1]
    assert done.answer.reasons == ["deadline", "deadline"]


@torch.inference_mode()
def test_while_another_thread_is_free_nobody_is_given_up_for_a_job(model):
    batcher = batcher_of(model)
    batcher.driven_by(2, [0, 1])
    put(batcher, model, 2, 0.0, deadline=60.0)
    step(batcher, 0.0)
    put(batcher, model, 8, 1.0, priority=1)
    step(batcher, 1.0)
    assert len(batcher.next_job(10.0)) == 8
    assert not batcher.finished()
    assert batcher.next_job(10.0).stage == 1
