"""One verb makes a model faster, and changes neither answers nor what it is."""

import copy
import logging
import sys

import pytest
import torch

from offramp import Adaptive, Candidate, Cascade, Costs, ModelSpec, compile, load, save
from offramp._core.errors import InputError, UnknownNameError
from offramp.backends import Compiled
from offramp.models import build
from offramp.policy import Feature, Linear, Node, Policy

SPECS = {
    name: ModelSpec(name="small_cnn", arguments={"width": width, "depth": 2, "seed": width})
    for name, width in (("a", 2), ("b", 3), ("c", 4))
}
COSTS = Costs.simple("flops", [1.0, 4.0, 16.0])
QUICK = {"batch_sizes": [1, 4], "rounds": 1, "progress": False}


def images(n=9):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def made(stages=("a", "b"), reference="b"):
    cascade = Cascade.from_models({k: build(s) for k, s in SPECS.items()}, specs=SPECS)
    chain = cascade.topology.chain(stages)
    first = Adaptive.single(cascade, stages[0])(images(60)).log_probs.softmax(dim=1).amax(dim=1)
    rule = Linear.threshold(Feature("max_prob", chain.root), float(first.median()))
    policy = Policy(chain, {(chain.root,): Node(rule)})
    return Adaptive(
        cascade, Candidate(policy=policy, method="threshold", reference=reference), costs=COSTS
    )


def exits():
    spec = ModelSpec(name="small_cnn", arguments={"width": 4, "depth": 4})
    cascade = Cascade.from_network(build(spec), exits=2, example=images(1), spec=spec)
    nodes = {p: Node(Linear.threshold(Feature("max_prob", p[-1]), 0.2)) for p in [(0,), (0, 1)]}
    policy = Policy(cascade.topology, nodes)
    return Adaptive(cascade, Candidate(policy=policy, method="threshold", reference="last"))


def assert_alike(one, other):
    torch.testing.assert_close(one.log_probs, other.log_probs, rtol=1e-4, atol=1e-4)
    assert torch.equal(one.stage, other.stage)


def test_answers_choice_and_costs_stay_and_the_model_too():
    model = made()
    before = copy.deepcopy(model.state_dict())
    fast = compile(model, images(1), backend="folded", **QUICK)
    assert_alike(fast(images()), model(images()))
    assert_alike(fast.reference(images()), model.reference(images()))
    assert torch.equal(fast(images()).cost, model(images()).cost)
    assert (fast.choice, fast.costs) == (model.choice, model.costs)
    assert fast.program.times.sizes == (1, 4)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("reference", ["a", "b", "c"])
def test_only_what_the_policy_or_the_reference_runs_is_prepared(reference):
    model = made(("a", "b"), reference)
    fast = compile(model, images(1), backend="folded", **QUICK)
    assert [stage.name for stage in fast.cascade] == sorted({"a", "b", reference})
    assert_alike(fast(images()), model(images()))
    assert_alike(fast.reference(images()), model.reference(images()))


def test_a_policy_alone_will_do():
    model = made()
    fast = compile(Adaptive(model.cascade, model.policy), images(1), backend="folded", **QUICK)
    assert_alike(fast(images()), model(images()))


def test_a_compiled_model_is_saved_loaded_and_compiled_again(tmp_path):
    model = made()
    fast = compile(model, images(1), backend={"b": "onnxruntime"}, **QUICK)
    save(fast, tmp_path / "fast")
    again = load(tmp_path / "fast")
    assert [isinstance(stage.module, Compiled) for stage in again.cascade] == [False, True]
    assert_alike(again(images()), model(images()))
    once_more = compile(again, images(1), backend="folded", **QUICK)
    assert [isinstance(stage.module, Compiled) for stage in once_more.cascade] == [False, True]
    assert_alike(once_more(images()), model(images()))


def test_auto_measures_and_says_what_it_took(caplog):
    model = made()
    with caplog.at_level(logging.INFO, logger="offramp"):
        fast = compile(model, images(1), **QUICK)
    assert_alike(fast(images()), model(images()))
    assert "Stage 'a' runs in '" in caplog.text
    assert "Stage 'b' runs in '" in caplog.text


def test_exits_run_together_only_where_examples_show_who_leaves_where(caplog, monkeypatch):
    model = exits()
    with caplog.at_level(logging.INFO, logger="offramp"):
        apart = compile(model, images(1), backend="onnxruntime", **QUICK)
    assert "Exits stay apart: 1 examples" in caplog.text
    asked = []
    monkeypatch.setattr(
        sys.modules["offramp.tuning.compile"],
        "fuse_for",
        lambda held, policy, batch, **options: asked.append(options["backend"]) or apart.cascade,
    )
    together = compile(model, images(40), backend="onnxruntime", **QUICK)
    assert asked == ["onnxruntime"]
    for fast in (apart, together):
        assert_alike(fast(images()), model(images()))
        assert_alike(fast.reference(images()), model.reference(images()))


@pytest.mark.slow  # as the one above, with the measurement itself; make test-slow
def test_exits_that_run_together_answer_as_before():
    model = exits()
    fast = compile(model, images(40), backend="onnxruntime", **QUICK)
    assert_alike(fast(images()), model(images()))
    assert_alike(fast.reference(images()), model.reference(images()))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"backend": "onnxruntime-int8"}, InputError, "offramp.tuning.quantize"),
        ({"backend": "onnxruntme"}, UnknownNameError, "Did you mean 'onnxruntime'"),
        ({"backend": {"d": "folded"}}, UnknownNameError, "no stage 'd'"),
        ({"rounds": 0}, InputError, "rounds must be"),
        ({"batch_sizes": [0]}, InputError, "batch_sizes must be"),
    ],
)
def test_what_is_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        compile(made(), images(1), **(QUICK | {"backend": "folded"} | wrong))


def test_nothing_is_compiled_for_no_example():
    with pytest.raises(InputError, match="example must hold at least one example, got none"):
        compile(made(), images(0), **QUICK)
