import pytest
import torch
from torch import nn

from offramp.policy import Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade

BATCHES = 20


class Fails(nn.Module):
    """Works, but for some of its calls."""

    def __init__(self, *calls):
        super().__init__()
        self.calls, self.bad = 0, calls

    def forward(self, x):
        self.calls += 1
        if self.calls in self.bad:
            raise RuntimeError("loose cable")
        return x * 2.0


def model_of(first=(), second=()):
    cascade = Cascade.of_models({"a": Fails(*first), "b": Fails(*second)})
    for stage in cascade:
        stage.keeps_company = True
    nodes = {(0,): Node(Linear.threshold(Feature("max_prob", 0), 0.9))}
    return Adaptive(cascade, Policy(cascade.topology, nodes))


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 3, generator=generator) for _ in range(BATCHES)]


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


@pytest.mark.parametrize(("first", "second"), [((3,), ()), ((), (2,)), ((2, 5), (1, 3))])
def test_a_stage_that_fails_costs_only_who_was_in_it_if_somebody_is_told(first, second):
    lost = []
    model = model_of(first, second)
    told = lambda ids, error: lost.append((ids.tolist(), error))  # noqa: E731
    found, error = taken(model.stream(batches(), batch_size=8, on_error=told))
    assert error is None
    assert len(lost) == len(first) + len(second)
    assert all("loose cable" in str(why) for _, why in lost)
    missing = [name for ids, _ in lost for name in ids]
    assert sorted([*found, *missing]) == list(range(5 * BATCHES))


@pytest.mark.parametrize(("first", "second"), [((3,), ()), ((), (2,))])
def test_without_that_the_others_are_answered_before_the_error_comes(first, second):
    given = []

    def source():
        for batch in batches():
            given.append(len(batch))
            yield batch

    found, error = taken(model_of(first, second).stream(source(), batch_size=8))
    assert isinstance(error, RuntimeError)
    missing = set(range(sum(given))) - found
    assert 0 < len(missing) <= 8
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
    found, _ = taken(model_of(second=(1,)).stream(batches(), names, batch_size=8, on_error=told))
    assert len(lost) == 8
    assert found | set(lost) == {name for part in names for name in part}


def test_a_consumer_that_stops_early_stops_the_stream():
    stream = model_of().stream(batches())
    next(stream)
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
