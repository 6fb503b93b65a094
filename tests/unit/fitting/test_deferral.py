"""The deferral policy: what its networks predict, crosswise, and the rules made of them."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import FileFormatError, InputError
from offramp._core.keys import example_keys
from offramp._core.schema import from_json, to_json
from offramp._core.topology import Topology
from offramp.evaluation import evaluate, fit, replay
from offramp.fitting import loss_networks
from offramp.fitting.deferral import fit_deferral
from offramp.fitting.learned import fit_learned
from offramp.fitting.loss_networks import LossNetwork, dealt, fit_loss_networks
from offramp.policy import Deferral, Feature, Linear
from offramp.policy.of_labels import distribution_of
from offramp.policy.rules import AnyRule
from offramp.policy.stopping import fixed_order_linear_reference
from offramp.testing.slow import replay_slow
from offramp.trace import Trace, make_trace
from reference.walk import route_reference

FEATURES = (Feature("max_prob", 0), Feature("entropy", 0), Feature("predicts_1", 0))


class Seen:
    """The outputs of the first of two stages."""

    def __init__(self, trace):
        self.ids = example_keys(trace.ids)
        outputs = [trace.output(k) for k in range(len(trace.topology))]
        self.found = [distribution_of(one, torch.ones(())) for one in outputs]

    def distribution(self, stage):
        return self.found[stage]


def network(seed=0, width=4, stages=2):
    rng = np.random.default_rng(seed)
    d = len(FEATURES)
    return LossNetwork(
        FEATURES,
        (rng.normal(size=(width, d)), rng.normal(size=width)),
        (rng.normal(size=(stages, width + d)), rng.normal(size=stages)),
        4,
    )


def columns(trace, features):
    seen = Seen(trace)
    return np.stack([f.of(seen.distribution).numpy() for f in features], axis=1)


def score_reference(rule, at):
    """As `Deferral.score`, example by example, with indicators of classes in place of tables."""
    x = torch.stack([f.of(at.distribution) for f in rule.features], dim=1)
    found = torch.empty(len(x))
    for i, row in enumerate(x):
        sums = fixed_order_linear_reference(row[None], rule.sums_weight, rule.sums_bias)[0]
        for stage in rule.named:
            for label, each in enumerate(getattr(rule, f"named{stage}")):
                if at.distribution(stage).label[i] == label:
                    sums = sums + each
        inner = fixed_order_linear_reference(
            sums[:-1].clamp(min=0)[None], rule.last_weight, rule.last_bias
        )
        found[i] = inner[0, 0] + sums[-1]
    return found


def test_the_rule_is_one_hidden_layer_and_the_features_number_by_number():
    trace = make_trace(30, stages=2, classes=4, seed=0)
    rule = network().rule([*network().predicted], [1.0, -2.0], 0.3)
    assert rule.named == (0,)
    wanted = score_reference(rule, Seen(trace))
    assert torch.equal(rule.score(Seen(trace)), wanted)
    again = from_json(AnyRule, json.loads(json.dumps(to_json(rule))))
    assert torch.equal(again.score(Seen(trace)), wanted)


def test_more_classes_than_it_was_fitted_on_are_refused():
    rule = network().rule([*network().predicted], [1.0, -2.0], 0.3)
    with pytest.raises(InputError, match="fitted on 4 classes, but stage 0 gives 6"):
        rule.score(Seen(make_trace(30, stages=2, classes=6, seed=0)))


@pytest.mark.parametrize("extra", [(), (Feature("margin", 0), Feature("max_prob", 0))])
def test_a_sum_of_predictions_and_features_becomes_one_network(extra):
    trace = make_trace(50, stages=2, classes=4, seed=1)
    one = network(3)
    named, weights = [*one.predicted, *extra], [0.7, -1.1, 2.0, 0.4][: 2 + len(extra)]
    rule = one.rule(named, weights, -0.2)
    assert isinstance(rule, Deferral)
    odds = one.log_odds(columns(trace, FEATURES))
    assert np.abs(odds).max() < 8  # none was cut
    wanted = odds @ weights[:2] - 0.2
    if extra:
        wanted += columns(trace, extra) @ weights[2:]
    np.testing.assert_allclose(rule.score(Seen(trace)).numpy(), wanted, atol=1e-5)


def test_a_sum_without_predictions_stays_linear():
    one = network()
    rule = one.rule([Feature("margin", 0), one.predicted[0]], [1.0, 0.0], -0.5)
    assert isinstance(rule, Linear)
    assert rule.features == (Feature("margin", 0),)


def test_what_is_predicted_for_an_example_comes_from_others_alone():
    """Losses are noise: whoever has seen them predicts them, whoever has not cannot."""
    rng = np.random.default_rng(0)
    x = np.eye(120, dtype=np.float32)[:, :119]  # each example can be told by its number
    losses = rng.integers(0, 2, size=(120, 1)).astype(float)
    names = [Feature(f"predicts_{k}", 0) for k in range(119)]
    folds = dealt(120, 3, seed=0)
    mean, odds = fit_loss_networks(names, x, losses, folds, classes=120, width=8, seed=0)
    seen = mean.log_odds(x)
    right = losses[:, 0] == 1
    assert seen[right].mean() - seen[~right].mean() > 1.0
    assert abs(odds[right].mean() - odds[~right].mean()) < 0.2


def test_the_network_of_a_policy_is_the_mean_of_the_folds(monkeypatch):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(90, 3)).astype(np.float32)
    losses = (x[:, :2] > 0.3).astype(float)
    folds, trained, made = dealt(90, 3, seed=1), loss_networks._trained, []

    def recorded(*arguments):
        made.append(trained(*arguments))
        return made[-1]

    monkeypatch.setattr(loss_networks, "_trained", recorded)
    mean, odds = fit_loss_networks(list(FEATURES), x, losses, folds, classes=2, width=4, seed=5)
    wanted = np.mean([one.log_odds(x) for one in made], axis=0)
    np.testing.assert_allclose(mean.log_odds(x), wanted, atol=1e-9)
    for fold, one in enumerate(made):
        left = folds == fold
        np.testing.assert_array_equal(odds[left], one.log_odds(x[left]))
    assert ((odds > 0) == (losses > 0)).mean() > 0.85


def wrong_pairs(n=1500):
    """The first stage errs where it says an even class with a high or an odd one with a low number.

    No weighted sum of its confidence and its class tells that.
    """
    rng = np.random.default_rng(0)
    labels, sure = torch.arange(n) % 4, torch.from_numpy(rng.uniform(0.4, 0.9, n))
    errs = (sure > 0.65) == (labels % 2 == 0)
    first = torch.where(errs, (labels + 2) % 4, labels)  # even stays even
    return Trace(
        topology=Topology.of(["small", "large"]),
        classes=4,
        labels=labels,
        ranked=torch.stack([first, labels], dim=1)[:, :, None],
        confidence=torch.stack([sure, torch.full((n,), 0.9)], dim=1).float(),
        costs=Costs.simple("usd", [1.0, 4.0]),
    )


def test_it_finds_what_no_weighted_sum_tells():
    trace = wrong_pairs()
    part, test = trace.take(torch.arange(1000)), trace.take(torch.arange(1000, 1500))
    options = {"reference": "large", "cost_weights": [0.2], "combines": ["last"]}
    (linear,) = fit_learned(part, **options, class_features=True)[:1]
    (deferral,) = fit_deferral(part, **options)[:1]

    def objective(candidate):
        found = evaluate(test, candidate, bootstrap=0)
        return 1 - found.accuracy + 0.2 * found.cost_ratio

    assert objective(deferral) < 0.8 * objective(linear)


def test_replay_is_the_slow_walk():
    trace = make_trace(300, stages=3, classes=4, seed=3)
    found = fit_deferral(trace, reference="stage2", cost_weights=[0.05, 0.3], width=4)
    rules = [r for c in found for node in c.policy.nodes.values() for r in node.rules]
    assert any(isinstance(rule, Deferral) for rule in rules)
    some = trace.take(torch.arange(40))
    for candidate in found[::4]:
        fast, slow = replay(some, candidate.policy), replay_slow(some, candidate.policy)
        np.testing.assert_array_equal(fast.last, slow.last)
        twin = route_reference(candidate.policy, some.logits, example_keys(some.ids))
        np.testing.assert_array_equal(fast.labels[:, 0], twin.log_probs.argmax(dim=1))


def test_it_stands_on_one_frontier_with_the_learned_policy():
    trace = make_trace(900, stages=2, classes=3, seed=0)
    options = {"cost_weights": [0.05, 0.2], "combines": ["last"], "progress": False}
    frontier = fit(trace, ["learned", "deferral"], **options)
    assert {p.candidate.method for p in frontier.points} == {"learned", "deferral"}
    assert frontier.cheapest(max_drop=0.3).delta == 0.1


def test_few_examples_leave_the_learned_policy_without_predictions():
    part = make_trace(40, stages=2, classes=3, seed=0)
    found = fit_deferral(part, reference="stage1", cost_weights=[0.1], combines=["last"])
    rules = [r for c in found for node in c.policy.nodes.values() for r in node.rules]
    assert not any(isinstance(rule, Deferral) for rule in rules)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost_weights": [-0.1]}, r"cost_weights must be finite and at least 0, got -0\.1"),
        ({"cost_weights": []}, "must each hold at least one entry"),
        ({"width": 0}, "width must be"),
        ({"loss": "eror"}, "loss must be one of .*'eror'.*Did you mean 'error'"),
    ],
)
def test_a_wrong_option_is_named_with_its_repair(options, message):
    with pytest.raises(InputError, match=message):
        fit_deferral(make_trace(n=80, stages=2), reference="stage1", **options)


def layers(width=2, read=3, out=1):
    linear = [nn.Linear(read, width + 1), nn.Linear(width, out)]
    return [(one.weight.detach(), one.bias.detach()) for one in linear]


NUMBERS = (*FEATURES[:2], Feature("margin", 0))


@pytest.mark.parametrize(
    ("features", "made", "message"),
    [
        (NUMBERS[:2], layers(), r"one number per feature \(2\), got 3"),
        (NUMBERS, layers(out=2), r"shape \(1, 2\).*got \(2, 2\)"),
        (NUMBERS, [layers()[0], layers(width=3)[1]], r"shape \(1, 2\).*got \(1, 3\)"),
        (NUMBERS, [(torch.full((3, 3), torch.nan), torch.zeros(3)), layers()[1]], "finite"),
        (NUMBERS, [*layers(), {0: torch.zeros(5, 2)}], "add to 3 sums, got 2 of stage 0"),
    ],
)
def test_layers_that_do_not_fit_are_refused(features, made, message):
    with pytest.raises(InputError, match=message):
        Deferral(features, *made)


def test_a_damaged_file_is_refused():
    stored = to_json(Deferral(NUMBERS, *layers()))
    stored["sums"]["weight"] = "AAAA"
    with pytest.raises(FileFormatError, match="must be 36 bytes, got 3"):
        from_json(AnyRule, stored)
