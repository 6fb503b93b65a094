"""The stopping network as a rule: the same decision in any batch, drawn or from a threshold."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.errors import FileFormatError, InputError
from offramp._core.schema import from_json, to_json
from offramp.bundle import load, save
from offramp.evaluation import evaluate, replay
from offramp.evaluation.batch import evaluate_all
from offramp.fitting.stopping.network import (
    make_networks,
    stop_odds,
    stopping_policy,
    with_stopping,
)
from offramp.models import ModelSpec, build
from offramp.policy import Candidate, Constant, Node, Policy, Stopping
from offramp.policy.features import Distribution
from offramp.policy.rules import AnyRule
from offramp.policy.stopping import fixed_order_linear, fixed_order_linear_reference
from offramp.recording import record
from offramp.runtime import Adaptive
from offramp.stages import Cascade
from offramp.testing.slow import replay_slow
from offramp.trace import make_trace
from reference.walk import route_reference
from support.properties import examples

CLASSES = 5


class Seen:
    def __init__(self, logits, ids):
        self.ids, self.logits = ids, logits

    def distribution(self, stage):
        return Distribution(self.logits[:, stage].log_softmax(dim=1))

    def ranked(self, stage, count):
        return self.logits[:, stage].topk(count, dim=1).indices

    def take(self, which):
        return Seen(self.logits[which], self.ids[which])


def seen(m=37, seed=0, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(m, 2, classes, generator=generator)
    return Seen(logits, torch.randint(0, 10**9, (m,), generator=generator))


def rules(count=2, classes=CLASSES, width=64, seed=0, scale=4.0):
    """Networks with larger weights than at first, so that they decide something."""
    networks = make_networks(count, classes, width, seed=seed)
    with torch.no_grad():
        for values in networks.parameters():
            values.mul_(scale)
    return networks, [network.rule(k) for k, network in enumerate(networks)]


@examples(25)
@given(seed=st.integers(0, 2**31), m=st.integers(0, 3), d=st.integers(1, 9), k=st.integers(1, 4))
def test_a_layer_is_the_sum_one_number_at_a_time_to_the_last_bit(seed, m, d, k):
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(m, d, generator=generator), torch.randn(k, d, generator=generator)
    bias = torch.randn(k, generator=generator)
    found = fixed_order_linear(x, weight, bias)
    assert torch.equal(found, fixed_order_linear_reference(x, weight, bias))
    torch.testing.assert_close(found, x @ weight.T + bias, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["threshold", "drawn"])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_score_does_not_depend_on_the_rest_of_the_batch(kind, classes):
    rule = rules(classes=classes)[1][0]
    rule = rule.drawn(3) if kind == "drawn" else rule.from_threshold(0.7)
    at = seen(m=67, classes=classes)
    together = rule.score(at)
    assert together.dtype == torch.float32
    for size in (1, 2, 3, 7, 8, 16, 33):
        parts = [rule.score(at.take(r)) for r in torch.split(torch.arange(67), size)]
        assert torch.equal(torch.cat(parts), together), size


def test_a_matrix_product_in_its_place_would_be_caught():
    """Some batch size gives other last bits; else the fixed order would be for nothing."""
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(257, 64, generator=torch.Generator().manual_seed(1))
    whole = x @ weight.T
    alone = torch.cat([row[None] @ weight.T for row in x])
    if torch.equal(whole, alone):
        pytest.skip("this BLAS sums in one order whatever the batch")
    assert not torch.equal(whole, alone)


def test_the_rule_says_what_the_network_in_training_says():
    networks, made = rules()
    at = seen()
    wanted = stop_odds(networks, at.logits)[:, 0].detach()
    found = made[0].log_odds(at.distribution(0))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(made[0].score(at), found)  # from 1/2 on


def test_a_threshold_is_on_the_probability():
    _, made = rules()
    at = seen()
    pi = made[0].log_odds(at.distribution(0)).sigmoid()
    for threshold in (0.2, 0.5, 0.9):
        leaves = made[0].from_threshold(threshold).score(at) >= 0
        sure = (pi - threshold).abs() > 1e-5
        assert torch.equal(leaves[sure], (pi >= threshold)[sure])


def test_drawn_stops_have_the_probability_of_the_network():
    _, made = rules(scale=2.0)
    one = seen(m=1)
    pi = float(made[0].log_odds(one.distribution(0)).sigmoid())
    many = Seen(one.logits.expand(20_000, -1, -1), torch.arange(20_000))
    for seed in (0, 5):
        share = float((made[0].drawn(seed).score(many) >= 0).double().mean())
        assert share == pytest.approx(pi, abs=4 * np.sqrt(pi * (1 - pi) / 20_000))
    again = made[0].drawn(5).score(many)
    assert torch.equal(again, made[0].drawn(5).score(many))
    assert not torch.equal(again >= 0, made[0].drawn(6).score(many) >= 0)


def test_nan_never_stops():
    _, made = rules()
    at = seen(m=3)
    at.logits[1, 0, 2] = torch.nan
    for rule in (made[0], made[0].drawn(0), made[0].from_threshold(0.01)):
        assert not bool(rule.score(at)[1] >= 0)


@pytest.mark.parametrize("seed", [None, 7])
def test_json_gives_back_the_same_scores_bit_by_bit(seed):
    rule = rules()[1][1].from_threshold(0.3)
    rule = rule if seed is None else rule.drawn(seed)
    again = from_json(AnyRule, json.loads(json.dumps(to_json(rule), allow_nan=False)))
    assert isinstance(again, Stopping)
    assert to_json(again) == to_json(rule)
    assert torch.equal(again.score(seen()), rule.score(seen()))


def test_hostile_weights_are_refused():
    value = to_json(rules()[1][0])
    for change, said in (
        ({"weight": "AAAA"}, "must be 1280 bytes, got 3"),
        ({"weight": "not base64!"}, "no base64"),
        ({"shape": [64]}, r"layers\.0\.shape\.1: this field is missing"),
    ):
        layers = [{**value["layers"][0], **change}, *value["layers"][1:]]
        with pytest.raises(FileFormatError, match=said):
            from_json(AnyRule, {**value, "layers": layers})


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([], "at least one layer, got none"),
        ([(torch.zeros(3, 2), torch.zeros(3))], r"must give 2 numbers .* got 3"),
        ([(torch.zeros(2, 2), torch.zeros(3))], r"got \(2, 2\) and \(3,\)"),
        (
            [(torch.zeros(4, 2), torch.zeros(4)), (torch.zeros(2, 3), torch.zeros(2))],
            "as the one before gives, 4, got 3",
        ),
        ([(torch.full((2, 2), torch.nan), torch.zeros(2))], "float32 and finite"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, said):
    with pytest.raises(InputError, match=said):
        Stopping(0, layers)


def test_bad_numbers_are_refused_with_their_value():
    rule = rules()[1][0]
    with pytest.raises(InputError, match=r"threshold must be in \(0, 1\), got 50"):
        rule.from_threshold(50)
    with pytest.raises(InputError, match="log_odds must be finite, got inf"):
        Stopping(0, rule.layers, log_odds=float("inf"))
    with pytest.raises(InputError, match="reads 5 probabilities, but stage 0 gives 7"):
        rule.score(seen(classes=7))


def lively(trace, *, combine="stopping", drawn=False):
    """The first policy by which examples stop at every stage."""
    for seed in range(500):
        made = rules(len(trace.topology) - 1, trace.classes, 16, seed=seed, scale=6.0)[1]
        policy = stopping_policy(
            trace.topology.chain(range(len(trace.topology))),
            made,
            combine=combine,
            seed=seed if drawn else None,
        )
        if len(set(replay(trace, policy).last.tolist())) == len(trace.topology):
            return policy
    raise AssertionError


def test_the_answer_is_weighted_by_the_probabilities_of_stopping():
    trace = make_trace(60, stages=3, classes=4, seed=2)
    policy = lively(trace)
    done = replay(trace, policy)
    answers = route_reference(policy, trace.logits, torch.arange(60)).log_probs
    for i in range(60):
        path = done.paths[done.path[i]]
        weights, probabilities = [], []
        for k in path:
            p = trace.logits[i : i + 1, k].log_softmax(dim=1)
            last = k == path[-1] and not policy.topology.children(k)
            odds = (
                0.0
                if last
                else float(policy.node(path[: path.index(k) + 1]).leave.log_odds(Distribution(p)))
            )
            weights.append(1.0 if last else 1 / (1 + np.exp(-odds)))
            probabilities.append(p.exp()[0].double().numpy())
        wanted = np.average(probabilities, axis=0, weights=weights)
        np.testing.assert_allclose(answers[i].exp().numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("combine", ["stopping", "last", "mean", "log_linear"])
@pytest.mark.parametrize("drawn", [False, True])
def test_replay_is_what_walking_each_example_on_its_own_gives(combine, drawn):
    trace = make_trace(40, stages=3, classes=4, seed=3)
    policy = lively(trace, combine=combine, drawn=drawn)
    fast, slow = replay(trace, policy), replay_slow(trace, policy)
    again = replay(trace, from_json(Policy, json.loads(json.dumps(to_json(policy)))))
    for name in ("path", "labels", "closest", "path_cost"):
        assert np.array_equal(getattr(fast, name), getattr(slow, name)), name
        assert np.array_equal(getattr(fast, name), getattr(again, name)), name


def test_many_settings_at_once_are_each_what_they_are_alone():
    """Answers of two policies on one path must not be mixed up."""
    trace = make_trace(200, stages=3, classes=4, seed=4)
    candidates_ = []
    for seed in range(6):
        made = rules(2, 4, 8, seed=seed, scale=3.0)[1]
        for combine in ("stopping", "last"):
            policy = stopping_policy(trace.topology.chain([0, 1, 2]), made, combine=combine)
            candidates_.append(Candidate(policy=policy, method="joint", reference="stage2"))
    wanted = [evaluate(trace, s, bootstrap=0) for s in candidates_]
    assert evaluate_all(trace, candidates_) == wanted
    assert any(a.accuracy != b.accuracy for a, b in zip(wanted[::2], wanted[1::2], strict=True))


@pytest.mark.parametrize("combine", ["stopping", "last"])
@pytest.mark.parametrize("drawn", [False, True])
def test_runtime_and_bundle_do_what_replay_said(tmp_path, combine, drawn):
    specs = {
        name: ModelSpec(name="small_cnn", arguments={"width": w, "depth": 3, "classes": 4})
        for name, w in (("small", 4), ("middle", 8), ("large", 16))
    }
    cascade = Cascade.from_models({k: build(v) for k, v in specs.items()}, specs=specs)
    images = 3 * torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    trace = record(cascade, [(images, torch.arange(40) % 4)], progress=False)
    policy = lively(trace, combine=combine, drawn=drawn)
    wanted = replay(trace, policy)
    candidate = Candidate(policy=policy, method="joint", reference="large")
    costs = with_stopping(trace.costs, 4, 16)
    save(Adaptive(cascade, candidate, costs=costs), tmp_path / "b")
    model, loaded = Adaptive(cascade, candidate, costs=costs), load(tmp_path / "b")
    ids = trace.ids
    sure = torch.from_numpy(wanted.closest > 1e-4)
    assert sure.float().mean() > 0.9
    for size in (1, 7, 40):
        for rows in torch.split(torch.arange(40), size):
            one, other = (m(images[rows], ids=ids[rows.numpy()]) for m in (model, loaded))
            for name in ("log_probs", "stage", "labels", "cost"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
            last = torch.from_numpy(wanted.last)[rows]
            assert torch.equal(one.stage[sure[rows]], last[sure[rows]])
    bill = Adaptive(cascade, candidate, costs=costs)(images, ids=ids)
    first = bill.stage == 0
    flops = 2.0 * (4 * 16 + 16 * 16 + 2 * 16)
    assert set(bill.cost[first].tolist()) == {costs.segment[0] + flops}


def test_the_combination_by_stopping_needs_stopping_networks():
    topology = make_trace(5, stages=2).topology.chain([0, 1])
    with pytest.raises(InputError, match=r"needs at every node .* got Constant at \(0,\)"):
        Policy(topology, {(0,): Node(Constant(True))}, combine="stopping")
    other_stage = rules(2, 4)[1][1]
    with pytest.raises(InputError, match="stopping network of its own stage, got Stopping"):
        Policy(topology, {(0,): Node(other_stage)}, combine="stopping")
