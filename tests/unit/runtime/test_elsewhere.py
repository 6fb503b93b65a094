"""Stages that run elsewhere: the answers are those of the model, and who left is not sent back."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp.policy import Candidate
from offramp.runtime import Adaptive, Executor, RowsError
from offramp.runtime.elsewhere import Asked, packed, unpacked, visit_there
from offramp.stages import Cascade, Stage
from offramp.testing import random_policy

CLASSES, WIDTH = 4, 6


def early_exits():
    """A network of four exits, in a chain."""
    drawn = torch.Generator().manual_seed(0)
    stages, names = [], ["a", "b", "c", "d"]
    for k, name in enumerate(names):
        body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        head = nn.Linear(WIDTH, CLASSES)
        for weight in (*body.parameters(), *head.parameters()):
            weight.data = torch.randn(weight.shape, generator=drawn)
        stages.append(Stage(name, body, head=head, source=names[k - 1] if k else None))
    return Cascade(stages, edges="chain")


def models():
    """Networks of their own."""
    drawn = torch.Generator().manual_seed(1)
    nets = {name: nn.Linear(WIDTH, CLASSES) for name in ("a", "b", "c", "d")}
    for weight in (weight for net in nets.values() for weight in net.parameters()):
        weight.data = torch.randn(weight.shape, generator=drawn)
    return Cascade.from_models(nets)


class There:
    """Networks of another process: everything is packed on the way there and back."""

    def __init__(self, model, parts, room=2):
        self.model, self.parts = copy.deepcopy(model), [frozenset(part) for part in parts]
        self.lanes = {name: ("+".join(sorted(part)), room) for part in self.parts for name in part}
        self.sent, self.came = [], []

    @torch.inference_mode()
    def __call__(self, gear, asked):
        assert gear is None
        names = self.model.stage_names
        self.sent.append(asked)
        part = next(part for part in self.parts if names[asked.path[-1]] in part)
        inside = frozenset(names.index(name) for name in part)
        found = visit_there(self.model.program, unpacked(packed(asked)), inside)
        self.came.append(found)
        return unpacked(packed(found))


def model_of(cascade, seed, combine, topology=None):
    policy = random_policy(
        topology or cascade.topology, seed=seed, classes=CLASSES, combine=combine
    )
    last = cascade.topology.names[policy.topology.active[-1]]
    candidate = Candidate(policy=policy, method="random", reference=last)
    return Adaptive(cascade, candidate, costs=Costs.simple("flops", [1.0, 2.0, 3.0, 4.0]))


PARTS = [["abcd"], ["a", "b", "c", "d"], ["ab", "cd"], ["a", "bcd"], ["abc", "d"]]
SOME = [["d"], ["bc"], ["a", "c"], ["cd"], []]  # what is in none of them runs in this process


@pytest.mark.parametrize("combine", ["last", "mean", "log_linear"])
@pytest.mark.parametrize("parts", PARTS + SOME, ids="|".join)
@pytest.mark.parametrize("make", [early_exits, models])
def test_answers_are_those_of_the_model(make, parts, combine):
    x = torch.randn(90, WIDTH, generator=torch.Generator().manual_seed(2))
    x[7] = float("nan")
    for seed in range(2):
        model = model_of(make(), seed, combine)
        ids = list(range(len(x)))
        wanted = model(x, ids)
        there = There(model, parts)
        with Executor(model, batch_size=16, patience=0.001, elsewhere=there) as executor:
            asked = [executor.future(x[k : k + 9], ids[k : k + 9]) for k in range(0, 90, 9)]
            found = [future.result(timeout=30) for future in asked]
        assert torch.cat([one.labels for one in found]).tolist() == wanted.labels.tolist()
        assert torch.cat([one.stage for one in found]).tolist() == wanted.stage.tolist()
        assert torch.cat([one.cost for one in found]).tolist() == wanted.cost.tolist()
        assert [reason for one in found for reason in one.reasons] == wanted.reasons
        said = torch.cat([one.log_probs for one in found])
        torch.testing.assert_close(said, wanted.log_probs, equal_nan=True)
        away = {model.stage_names.index(name) for part in parts for name in part}
        assert {asked.path[-1] for asked in there.sent} <= away


def test_who_left_is_not_sent_back_and_who_stays_leaves_nothing_out():
    model = model_of(early_exits(), 1, "last")
    there = There(model, ["a", "b", "c", "d"])
    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(2))
    with Executor(model, patience=0.001, elsewhere=there) as executor:
        answer = executor.future(x).result(timeout=30)
    left_first = int((answer.stage == 0).sum())
    assert 0 < left_first < 64
    first = there.came[0]
    going = 64 - left_first
    assert [len(held.batch) for held in first.carries.values()] == [going]
    assert [len(batch) for batch in there.sent[1].carries.values()] == [going]


def test_a_slice_is_packed_without_the_request_that_it_is_of():
    request = torch.randn(10_000, WIDTH)
    odd = {
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.randn(3).bfloat16(),
        "alone": torch.tensor(True),
        "none": torch.zeros(0, 4),
    }
    asked = Asked(path=(0,), ids=torch.arange(8), carries={"": request[:8], **odd}, outputs=())
    sent = packed(asked)
    assert len(sent) < 2000 < request.nbytes
    back = unpacked(sent)
    assert back.path == (0,)
    for name, value in {"": request[:8], **odd}.items():
        assert back.carries[name].dtype == value.dtype
        assert torch.equal(back.carries[name], value)
        back.carries[name].zero_()  # a stage may write there


def test_budgets_hold_within_a_part():
    model = model_of(early_exits(), 1, "last")
    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(2))
    with Executor(model, patience=0.001) as executor:
        wanted = executor.future(x, budget=4.0).result(timeout=30)
    with Executor(model, patience=0.001, elsewhere=There(model, ["abcd"])) as executor:
        found = executor.future(x, budget=4.0).result(timeout=30)
    assert "budget" in wanted.reasons
    assert found.reasons == wanted.reasons
    assert found.labels.tolist() == wanted.labels.tolist()


def test_a_row_that_a_stage_cannot_run_costs_itself_alone():
    class Picky(nn.Module):
        def forward(self, x):
            if (x > 99).any():
                raise ValueError("too large")
            return x[:, :CLASSES]

    model = Adaptive.single(Cascade.from_models({"a": Picky()}), "a")
    x = torch.zeros(8, WIDTH)
    x[3] = 100
    with (
        Executor(model, elsewhere=There(model, ["a"])) as executor,
        pytest.raises(RowsError) as told,
    ):
        executor.future(x).result(timeout=30)
    assert list(told.value.errors) == [3]


def test_machines_that_decide_differently_are_found():
    model = model_of(models(), 0, "last")
    other = model_of(models(), 3, "last")
    there = There(other, ["a", "b", "c", "d"])
    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(2))
    with (
        Executor(model, elsewhere=there) as executor,
        pytest.raises((RowsError, InputError)) as told,
    ):
        executor.future(x).result(timeout=30)
    assert "decide alike" in str(told.value)


def test_no_more_batches_are_sent_than_there_is_room_for():
    model = model_of(models(), 0, "last")
    running, most = [], []

    class Counting(There):
        def __call__(self, gear, asked):
            running.append(1)
            most.append(len(running))
            try:
                return super().__call__(gear, asked)
            finally:
                running.pop()

    there = Counting(model, ["abcd"], room=1)
    x = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(2))
    with Executor(model, batch_size=8, elsewhere=there) as executor:
        asked = [executor.future(row[None]) for row in x]
        for future in asked:
            future.result(timeout=30)
    assert max(most) == 1
    assert len(there.sent) < 200  # those who waited went together


def test_a_path_that_skips_a_stage():
    cascade = early_exits()
    topology = Topology.of(["a", "b", "c", "d"], sources=[-1, 0, 1, 2]).chain(["a", "c", "d"])
    assert np.array_equal(topology.active, [0, 2, 3])
    x = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(4))
    for seed in range(2):
        model = model_of(cascade, seed, "last", topology)
        wanted = model(x)
        for parts in PARTS:
            with Executor(model, patience=0.001, elsewhere=There(model, parts)) as executor:
                found = executor.future(x).result(timeout=30)
            assert found.labels.tolist() == wanted.labels.tolist()
            assert found.stage.tolist() == wanted.stage.tolist()


def test_some_of_what_was_visited_is_what_some_would_have_visited():
    model = model_of(early_exits(), 1, "last")
    x = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(2))
    rows = torch.tensor([1, 4, 5, 17, 30, 39])

    def visited(ids):
        asked = Asked(path=(0,), ids=ids, carries={"": x[ids]}, outputs=(None,) * 4)
        return visit_there(model.program, asked, {0, 1})

    with torch.inference_mode():
        whole, some = visited(torch.arange(40)).take(rows), visited(rows)
    for (k, one), (j, other) in zip(whole.each(0), some.each(0), strict=True):
        assert k == j
        torch.testing.assert_close(one.said.logits, other.said.logits)
        n = torch.arange(len(one.said))
        for child, way in other.ways.items():
            assert one.ways[child].tolist() == (n if way is None else way).tolist()
        for group, held in other.carries.items():
            everyone = torch.arange(len(held.batch)) if held.rows is None else held.rows
            assert one.carries[group].rows.tolist() == everyone.tolist()
            torch.testing.assert_close(one.carries[group].batch, held.batch)
