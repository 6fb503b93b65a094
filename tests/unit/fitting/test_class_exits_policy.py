"""The rule that tests one class, and class exits as policies on traces."""

import json

import numpy as np
import pytest
import torch

from offramp._core.costs import Costs
from offramp._core.errors import InputError, UnknownNameError
from offramp._core.schema import from_json, to_json
from offramp._core.topology import Topology
from offramp.evaluation import replay
from offramp.fitting.class_exits.data import Branch, ClassExit
from offramp.fitting.class_exits.figures import system_figures
from offramp.fitting.class_exits.policy import class_data, class_policy, fit_class_specific
from offramp.fitting.class_exits.time import Timing
from offramp.policy import ClassThreshold, Policy
from offramp.policy.features import Distribution
from offramp.policy.rules import AnyRule, class_log_odds
from offramp.trace import Trace, make_trace


def distribution(logits):
    return Distribution(torch.as_tensor(logits, dtype=torch.float32).log_softmax(dim=1))


def test_log_odds_are_those_of_the_probability():
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * 3
    p = logits.double().softmax(dim=1)[:, 2]
    found = class_log_odds(distribution(logits), 2)
    first = logits.argmax(dim=1) == 2
    torch.testing.assert_close(found[first].double(), p[first].logit(), rtol=1e-4, atol=1e-4)
    assert (found[~first] == -torch.inf).all()


def test_log_odds_tell_apart_what_rounds_to_one():
    sure, surer = 30.0, 60.0
    logits = torch.tensor([[sure, 0.0, 0.0], [surer, 0.0, 0.0]])
    assert logits.softmax(dim=1)[:, 0].tolist() == [1.0, 1.0]
    odds = class_log_odds(distribution(logits), 0)
    assert odds[1] > odds[0]
    assert odds.isfinite().all()


def test_a_binary_head_s_logits_give_its_log_odds_back():
    z = torch.linspace(-1.5, 40, 50)[:, None]
    rest = torch.nn.functional.logsigmoid(-z) - np.log(9)
    own = torch.nn.functional.logsigmoid(z)
    logits = torch.cat([rest.expand(-1, 4), own, rest.expand(-1, 5)], dim=1)
    torch.testing.assert_close(
        class_log_odds(distribution(logits), 4), z[:, 0], rtol=1e-5, atol=1e-5
    )


def test_what_another_class_leads_does_not_leave_however_low_the_threshold():
    trace = early_exit_trace(3)
    policy = class_policy(trace.topology, [("one", ClassThreshold(0, 1, -5.0))], "last")
    left = replay(trace, policy).last == 0
    assert np.array_equal(left, trace.output(0).top(1)[:, 0].numpy() == 1)


def test_a_nan_never_leaves():
    found = class_log_odds(distribution([[float("nan"), 0.0, 0.0]]), 0)
    assert not bool(found >= -1e9)


def test_the_rule_survives_json_bit_by_bit():
    rule = ClassThreshold(3, 7, 2.9444389)
    again = from_json(AnyRule, json.loads(json.dumps(to_json(rule), allow_nan=False)))
    assert isinstance(again, ClassThreshold)
    assert to_json(again) == to_json(rule)
    assert torch.equal(again.log_odds, rule.log_odds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, -1, 1.0), "target must be the index of a class, got -1"),
        ((0, 1, float("inf")), "log_odds must be finite, got inf"),
    ],
)
def test_a_rule_outside_its_domain_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        ClassThreshold(*arguments)


def test_a_class_that_the_stage_does_not_have_is_refused():
    with pytest.raises(InputError, match=r"target must be in \[0, 3\), got 3"):
        class_log_odds(distribution([[0.0, 1.0, 2.0]]), 3)


def early_exit_trace(seed, *, n=300, classes=4):
    """Two exits that share the work of the network, as recorded."""
    made = make_trace(n, stages=3, classes=classes, seed=seed, accuracies=[0.7, 0.8, 0.92])
    topology = Topology.of(["one", "two", "last"], sources=[-1, 0, 1], edges="chain")
    costs = Costs(unit="flops", segment=(2, 3, 5), head=(0.5, 0.25, 0), decision=(0, 0, 0))
    return Trace(
        topology=topology, labels=made.labels, classes=classes, logits=made.logits, costs=costs
    )


@pytest.mark.parametrize("seed", range(4))
def test_replay_gives_the_figures_that_the_choice_was_made_by(seed):
    trace = early_exit_trace(seed)
    columns = [(0, 1), (1, 2)]
    data = class_data(trace, columns, "last")
    exits = [
        ClassExit(
            column=k,
            branch=Branch(
                point=name,
                keep_previous=False,
                target=target,
                timing=Timing(baseline=10.0, reached=reached, branch=extra, unit="flops"),
            ),
            log_odds=odds,
        )
        for k, (name, target, reached, extra, odds) in enumerate(
            [("one", 1, 2.0, 0.5, 1.5), ("two", 2, 5.0, 0.25, 0.75)]
        )
    ]
    rules = [("one", ClassThreshold(0, 1, 1.5)), ("two", ClassThreshold(1, 2, 0.75))]
    policy = class_policy(trace.topology, rules, "last")
    done, system = replay(trace, policy), system_figures(data, exits)
    assert done.wrong.mean() == pytest.approx(1 - system.accuracy)
    for k in range(4):
        own = trace.labels.numpy() == k
        assert done.cost[own].mean() == pytest.approx(system.times[k])
        assert (~done.wrong[own]).mean() == pytest.approx(system.recalls[k])
    assert len(np.unique(done.path)) == 3
    again = from_json(Policy, to_json(policy))
    assert np.array_equal(replay(trace, again).path, done.path)


def test_settings_keep_their_tolerance_on_fit():
    trace = early_exit_trace(9, n=800)
    candidates = fit_class_specific(trace, reference="last", tolerances=[0.0, 0.01, 0.03])
    assert len(candidates) > 3
    f_wrong = trace.wrong(2)
    for candidate in candidates:
        done = replay(trace, candidate.policy)
        tolerance, target = candidate.parameters["tolerance"], candidate.parameters["target"]
        for k in range(4):
            own = trace.labels.numpy() == k
            assert done.wrong[own].mean() <= f_wrong[own].mean() + tolerance + 1e-9
        own = trace.labels.numpy() == target
        assert done.cost[own].mean() < 10.0
        assert 0.5 <= candidate.parameters["threshold"] <= 1.0


def test_classes_are_named_and_near_names_suggested():
    made = early_exit_trace(1)
    trace = Trace(
        topology=made.topology,
        labels=made.labels,
        classes=4,
        logits=made.logits,
        costs=made.costs,
        class_names=("cat", "dog", "ship", "truck"),
    )
    candidates = fit_class_specific(trace, reference="last", targets=["dog"], tolerances=[0.05])
    assert [s.parameters["target"] for s in candidates] == [1]
    with pytest.raises(UnknownNameError, match=r"no class 'shp'\. Did you mean 'ship'"):
        fit_class_specific(trace, reference="last", targets=["shp"])
    with pytest.raises(UnknownNameError, match=r"no stage 'lst'\. Did you mean 'last'"):
        fit_class_specific(trace, reference="lst")
    with pytest.raises(InputError, match="top must be 1, got 5"):
        fit_class_specific(trace, reference="last", top=5)


def test_a_named_class_without_examples_is_refused_and_else_left_out():
    made = early_exit_trace(2)
    kept = made.labels != 3
    trace = made.take(kept)
    with pytest.raises(InputError, match="'3' has no examples"):
        fit_class_specific(trace, reference="last", targets=[3])
    assert {s.parameters["target"] for s in fit_class_specific(trace, reference="last")} <= {
        0,
        1,
        2,
    }
