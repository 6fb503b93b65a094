import pytest
import torch
from torch import nn

from offramp.policy import Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade

BATCHES = 20


class Fails(nn.Module):
    """Cannot run on some examples, known by their number in the last column; or on some calls."""

    def __init__(self, *bad, calls=()):
        super().__init__()
        self.bad, self.calls, self.count = bad, calls, 0

    def forward(self, x):
        self.count += 1
        if self.count in self.calls or any(int(number) in self.bad for number in x[:, 3]):
            raise RuntimeError("loose cable")
        return x[:, :3] * 2.0


def model_of(first=(), second=(), calls=()):
    nets = {"a": Fails(*first, calls=calls), "b": Fails(*second, calls=calls)}
    cascade = Cascade.from_models(nets)
    for stage in cascade:
        stage.keeps_company = True
    nodes = {(0,): Node(Linear.threshold(Feature("max_prob", 0), 0.9))}
    return Adaptive(cascade, Policy(cascade.topology, nodes))


def batches():
    generator = torch.Generator().manual_seed(0)
    each = [torch.randn(5, 3, generator=generator) for _ in range(BATCHES)]
    numbers = torch.arange(5.0 * BATCHES).reshape(BATCHES, 5, 1)
    return [torch.cat([x, own], dim=1) for x, own in zip(each, numbers, strict=True)]


#: Some who are not sure after the first stage.
STAY = [3, 14, 15, 62]


def test_some_go_on_to_the_second_stage():
    stage = model_of()(torch.cat(batches())).stage
    assert all(stage[number] == 1 for number in STAY)
    assert (stage == 0).sum() > 0


def taken(stream):
    """Ids that were answered before the stream ended, and what ended it."""
    found, error = [], None
    try:
        for ids, answer in stream:
            assert len(ids) == len(answer)
            found += ids.tolist()
    except Exception as raised:  # noqa: BLE001
        error = raised
    assert len(found) == len(set(found))
    return set(found), error


@pytest.mark.parametrize(
    ("first", "second"), [((13,), ()), ((), (3,)), ((2, 3, 11, 99), (14, 15, 62))]
)
def test_an_example_that_fails_costs_only_itself_if_somebody_is_told(first, second):
    lost = []
    model = model_of(first, second)
    told = lambda ids, error: lost.append((ids.tolist(), error))  # noqa: E731
    found, error = taken(model.stream(batches(), batch_size=8, on_error=told))
    assert error is None
    assert len(lost) == len(first) + len(second)
    assert all("loose cable" in str(why) for _, why in lost)
    missing = [name for ids, _ in lost for name in ids]
    assert set(missing) == {*first, *second}
    assert sorted([*found, *missing]) == list(range(5 * BATCHES))


def test_a_bad_example_in_the_very_first_batch_costs_only_itself():
    model, lost = model_of(first=(2,)), []
    for stage in model.program.stages.values():
        stage.keeps_company = False  # so that it is looked at more closely
    told = lambda ids, error: lost.extend(ids.tolist())  # noqa: E731
    found, error = taken(model.stream(batches(), batch_size=8, on_error=told))
    assert (lost, error) == ([2], None)
    assert found == set(range(5 * BATCHES)) - {2}
    assert all(stage.keeps_company for stage in model.program.stages.values())


def test_a_call_that_fails_once_costs_nobody():
    model = model_of(calls=(2, 5, 6))
    found, error = taken(model.stream(batches(), batch_size=8))
    assert error is None
    assert found == set(range(5 * BATCHES))


@pytest.mark.parametrize(("first", "second"), [((13,), ()), ((), (3,))])
def test_without_that_the_others_are_answered_before_the_error_comes(first, second):
    given = []

    def source():
        for batch in batches():
            given.append(len(batch))
            yield batch

    found, error = taken(model_of(first, second).stream(source(), batch_size=8))
    assert isinstance(error, RuntimeError)
    missing = set(range(sum(given))) - found
    assert missing == {*first, *second}
    assert f"{len(missing)} examples of the stream" in error.__notes__[0]
    assert all(repr(name) in error.__notes__[0] for name in missing)


def test_a_source_that_fails_loses_nobody_whom_it_has_given():
    def source():
        yield from batches()[:8]
        raise OSError("the camera is gone")

    for on_error in (None, lambda *_: None):
        found, error = taken(model_of().stream(source(), on_error=on_error))
        assert found == set(range(40))
        assert isinstance(error, OSError)


def test_a_batch_of_another_kind_costs_itself_only():
    lost = []
    mixed = batches()
    mixed[4] = torch.zeros(5)  # no classes
    told = lambda ids, error: lost.append((ids.tolist(), str(error)))  # noqa: E731
    found, error = taken(model_of().stream(mixed, on_error=told))
    assert error is None
    ((ids, why),) = lost
    assert ids == [20, 21, 22, 23, 24]
    assert "(n)" in why or "shape" in why
    assert found == set(range(5 * BATCHES)) - set(ids)


def test_names_of_examples_are_what_is_reported():
    lost = []
    names = [[f"file {k}-{row}" for row in range(5)] for k in range(BATCHES)]
    told = lambda ids, error: lost.extend(ids.tolist())  # noqa: E731
    model = model_of(second=STAY)
    found, _ = taken(model.stream(batches(), names, batch_size=8, on_error=told))
    assert sorted(lost) == sorted(names[number // 5][number % 5] for number in STAY)
    assert found | set(lost) == {name for part in names for name in part}


def test_a_consumer_that_stops_early_stops_the_stream():
    stream = model_of().stream(batches())
    next(stream)
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
