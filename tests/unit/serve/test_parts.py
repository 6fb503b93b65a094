"""Which stages share a deployment."""

import itertools

import pytest
from torch import nn

from offramp._core.errors import InputError, UnknownNameError
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.serve.inputs import Inputs
from offramp.serve.parts import FRONT, parts_of
from offramp.serve.ray import _options, _replicas
from offramp.stages import Cascade, HeldStages, Stage
from offramp.testing import random_policy
from support.served import SHAPE, cascade_of, model_of


def exits(widths):
    """A network of exits, and how many numbers it carries from each to the next."""
    stages, before = [], 64
    for k, width in enumerate(widths):
        body = nn.Sequential(nn.Flatten(), nn.Linear(before, width))
        source = f"e{k - 1}" if k else None
        stages.append(Stage(f"e{k}", body, head=nn.Linear(width, 3), source=source))
        before = width
    cascade = Cascade(stages, edges="chain")
    policy = random_policy(cascade.topology, seed=0, classes=3)
    held = HeldStages(
        topology=cascade.topology,
        stages={stage.name: stage for stage in cascade},
        input_shape=SHAPE,
    )
    chosen = Candidate(policy=policy, method="mine", reference=cascade.topology.names[-1])
    return Adaptive(held, chosen)


def split(model, fuse, apart=(), seconds=1.0):
    """The parts where each segment takes so long for each of eight examples; those in the front."""
    ticks = itertools.count()
    clock = lambda: 8 * seconds * next(ticks)  # noqa: E731  (asked before and after each)
    front, parts = parts_of(model, Inputs(model, 10**6), fuse, apart, clock)
    return parts if not front else (front, parts)


def test_models_of_their_own_have_deployments_of_their_own():
    assert split(model_of(cascade_of()), "auto") == (("small",), ("large",))


def test_stages_between_which_much_is_carried_stay_together():
    model = exits([8, 200, 8, 8])  # the raw input has 64 numbers
    assert split(model, "auto") == (("e0",), ("e1", "e2"), ("e3",))
    assert split(model, "none") == (("e0",), ("e1",), ("e2",), ("e3",))
    assert split(model, [["e0", "e3"]]) == (("e0", "e3"), ("e1",), ("e2",))


def test_what_takes_less_time_than_a_request_runs_in_the_front():
    model = exits([8, 200, 8, 8])
    all_of_them = ("e0", "e1", "e2", "e3")
    assert split(model, "auto", seconds=0.0001) == (all_of_them, ())
    assert split(model, "auto", seconds=0.002) == (("e0", "e3"), (("e1", "e2"),))
    assert split(model, "auto", apart=["e2"], seconds=0.0001) == (("e0", "e3"), (("e1", "e2"),))
    assert split(model, "none", seconds=0.0001) == (("e0",), ("e1",), ("e2",), ("e3",))
    assert split(model, [[FRONT, "e3"]]) == (("e3",), (("e0",), ("e1",), ("e2",)))


@pytest.mark.parametrize("fuse", ["some", [["e0"], ["e0"]], [["e0", "nobody"]]])
def test_what_fuse_must_not_be(fuse):
    with pytest.raises(InputError, match="fuse must"):
        split(exits([8, 8]), fuse)


def test_options_belong_to_a_part():
    parts = (("a", "b"), ("c",))
    assert _options((), parts, {"b": {"num_replicas": 3}}) == [{"num_replicas": 3}, {}]
    assert _replicas({"num_replicas": 3}) == 3
    assert _replicas({"autoscaling_config": {"max_replicas": 5}}) == 5
    with pytest.raises(InputError, match="share a deployment"):
        _options((), parts, {"a": {}, "b": {}})
    with pytest.raises(UnknownNameError, match="num_replicas"):
        _options((), parts, {"a": {"replicas": 3}})
    with pytest.raises(UnknownNameError, match="stage 'd'"):
        _options((), parts, {"d": {}})
    with pytest.raises(InputError, match="no options of 'd'"):
        _options(("d",), parts, {"d": {}})
