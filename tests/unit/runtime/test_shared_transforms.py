"""Stages with equal transforms share one result within a batch, and nobody's answer changes."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from offramp import Adaptive, Cascade, record
from offramp._core.batch import RowList, concat, split_rows, take_rows
from offramp._core.carry import RawInput
from offramp._core.schema import stored
from offramp.policy import Feature, Linear, Node, Policy
from offramp.runtime.times import StageTimes
from offramp.stages import Normalize, given_costs
from offramp.stages.stage import shared_transforms

IMAGES = torch.randint(0, 256, (12, 3, 6, 6), generator=torch.Generator().manual_seed(0))


@stored("counted", brief=True)
class Counted(nn.Module):
    """Counts how many examples it has seen; `by` is what tells two of them apart."""

    seen: ClassVar[list[int]] = []

    def __init__(self, by: float = 2.0) -> None:
        super().__init__()
        self.by = by

    def forward(self, x):
        Counted.seen.append(len(x))
        return x.float() / self.by


@pytest.fixture(autouse=True)
def nobody_was_seen():
    Counted.seen.clear()


def net(seed, writes=False):
    module = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)).eval()
    weights = torch.randn(3, 108, generator=torch.Generator().manual_seed(seed))
    module[1].weight.data, module[1].bias.data = weights / 400, torch.zeros(3)
    return Writes(module) if writes else module


class Writes(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        found = self.inner(x)
        x.zero_()
        return found


def cascade_of(transforms, writes=False):
    models = {name: net(k, writes) for k, name in enumerate("abc")}
    return Cascade.from_models(models, transform=dict(zip("abc", transforms, strict=True)))


def model_of(cascade, **arguments):
    nodes = {
        path: Node(Linear.threshold(Feature("max_prob", path[-1]), 0.7))
        for path in [(0,), (0, 1), (0, 2)]
    }
    topology = cascade.topology.chain(["a", "b", "c"])
    return Adaptive(cascade, Policy(topology, {p: nodes[p] for p in [(0,), (0, 1)]}), **arguments)


def plain(cascade):
    """The same without equal transforms: each is the module of nobody's registry."""

    class Mine(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    models = {stage.name: stage.module for stage in cascade}
    return Cascade.from_models(models, transform={s.name: Mine(s.transform) for s in cascade})


def test_equal_means_by_description():
    alike = cascade_of([Normalize(0.5), Normalize(0.5), Normalize(0.25)])
    assert len(shared_transforms(alike)) == 1
    assert not shared_transforms(cascade_of([Normalize(0.5), Normalize(0.1), nn.Identity()]))
    mine = nn.Identity()
    assert not shared_transforms(cascade_of([mine, mine, mine]))  # no file could hold it
    one = Normalize(0.5)
    one.half()
    assert not shared_transforms(cascade_of([one, Normalize(0.5), None]))
    alike.stage("b").transform = Normalize(0.1)
    assert not shared_transforms(alike)


def test_a_transform_runs_once_for_all_who_read_with_it():
    cascade = cascade_of([Counted(), Counted(), Counted(3.0)])
    cascade(IMAGES)
    assert Counted.seen == [12, 12]
    model = model_of(cascade)
    model(IMAGES)  # the first batch is looked at more closely
    Counted.seen.clear()
    stages = model(IMAGES).stage
    assert set(stages.tolist()) == {0, 1, 2}
    assert Counted.seen == [12, int((stages == 2).sum())]


def test_recording_runs_it_once_for_a_batch():
    cascade = cascade_of([Counted(), Counted(), Counted()])
    labels = [0, 1, 2] * 4
    costs = given_costs(cascade, "calls", dict.fromkeys("abc", 1.0))
    record(cascade, [(IMAGES, labels)], costs=costs, progress=False)
    Counted.seen.clear()
    record(cascade, [(IMAGES, labels)] * 1, costs=costs, progress=False)
    assert Counted.seen == [12]


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("n", [1, 12])
def test_answers_are_those_of_stages_that_share_nothing(n, writes):
    cascade = cascade_of([Normalize(1 / 99), Normalize(1 / 99), Normalize(0.02)], writes)
    model, apart = model_of(cascade), model_of(plain(cascade))
    for _ in range(3):
        found, wanted = model(IMAGES[:n]), apart(IMAGES[:n])
        assert torch.equal(found.log_probs, wanted.log_probs)
        assert torch.equal(found.stage, wanted.stage)
    assert torch.equal(cascade(IMAGES), plain(cascade)(IMAGES))
    streamed = {}
    for ids, answer in model.stream(IMAGES.split(5), batch_size=3):
        streamed |= dict(zip(ids.tolist(), answer.log_probs, strict=True))
    wanted = torch.stack([apart(IMAGES[k : k + 1]).log_probs[0] for k in range(12)])
    found = torch.stack([streamed[k] for k in range(12)])
    assert torch.allclose(found, wanted, atol=1e-6)


def test_a_batch_that_is_taken_in_parts_is_transformed_whole():
    cascade = cascade_of([Counted(), Counted(), Counted()])
    row = (1.0, 100.0)  # large batches take long, so they are taken in parts
    times = StageTimes(
        stages=("a", "b", "c"),
        sizes=(1, 12),
        segment=(row,) * 3,
        head=((0.0, 0.0),) * 3,
        carry=((0.0, 0.0),) * 3,
        raw=(0.0, 0.0),
        where="a test",
    )
    model = model_of(cascade, times=times)
    wanted = model_of(cascade)(IMAGES)
    model(IMAGES)
    Counted.seen.clear()
    found = model(IMAGES)
    assert Counted.seen == [12]
    assert torch.allclose(found.log_probs, wanted.log_probs, atol=1e-6)


def test_a_transform_that_writes_into_the_raw_input_does_not_spoil_it():
    @stored("eats")
    class Eats(nn.Module):
        def forward(self, x):
            found = x.float() / 99
            x.zero_()
            return found

    cascade = cascade_of([Eats(), Eats(), Normalize(1 / 99)])
    before = IMAGES.clone()
    wanted = model_of(cascade_of([Normalize(1 / 99)] * 3))(IMAGES)
    model = model_of(cascade)
    for _ in range(3):
        assert torch.allclose(model(IMAGES).log_probs, wanted.log_probs, atol=1e-6)
    assert torch.equal(IMAGES, before)


def test_the_same_batch_with_other_content_is_another_batch():
    cascade = cascade_of([Normalize(0.01)] * 3)
    model, held = model_of(cascade), IMAGES.clone()
    model(held)
    held.zero_()
    assert torch.equal(model(held).log_probs, model(torch.zeros_like(held)).log_probs)


def test_what_was_made_goes_with_the_examples_and_is_joined_where_it_can_be():
    def made(rows):
        width = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])

    raws = [RawInput(RowList(rows), frozenset("k")) for rows in ([[1], [2, 3]], [[4, 5]], [[6]])]
    for raw in raws:
        raw.of("k", made)
    one = take_rows(raws[0], torch.tensor([0]))
    assert one.rows == [[1]]
    assert one.of("k", None).tolist() == [[1, 0]]  # as long as its batch was
    both = concat(raws[:2])
    assert both.of("k", None).tolist() == [[1, 0], [2, 3], [4, 5]]
    all_three = concat(raws)  # padded to two lengths, so it is made again
    assert all_three.of("k", made).tolist() == [[1, 0], [2, 3], [4, 5], [6, 0]]
    parts = split_rows(RawInput(RowList([[1], [2, 3]]), frozenset("k")), (1, 1))
    assert parts[0].of("k", made).tolist() == [[1, 0]]
