"""The policy: paths, combinations, batch independence, JSON, costs of deciding, messages."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.errors import FileFormatError, InputError
from offramp._core.outputs import StageOutput
from offramp._core.schema import from_json, to_json
from offramp._core.topology import EXIT, Topology
from offramp.policy import Candidate, Constant, Evidence, Feature, Linear, Node, Policy, Random
from offramp.policy.features import COMBINED
from support.properties import examples

TOPOLOGY = Topology.of(["a", "b", "c"])
PATHS = TOPOLOGY.paths()  # (0,), (0, 1), (0, 1, 2), (0, 2)


def threshold(stage: int, value: float = 0.4) -> Linear:
    return Linear.threshold(Feature("margin", stage), value)


def full_policy(combine: str = "last", **options) -> Policy:
    nodes = {
        (0,): Node(threshold(0), [Linear([Feature("entropy", 0)], [-1.0], 1.1)]),
        (0, 1): Node(Linear([Feature("log_margin", COMBINED), Feature("agrees_0", 1)], [1, 1], -1)),
    }
    weights = (
        {p: tuple(0.5 + 0.25 * k for k in p) for p in PATHS} if combine == "log_linear" else None
    )
    return Policy(
        TOPOLOGY, nodes, temperatures=[1.5, 0.8, 2.0], combine=combine, weights=weights, **options
    )


def outputs(seed: int, m: int) -> list[StageOutput]:
    generator = torch.Generator().manual_seed(seed)
    return [
        StageOutput(classes=5, logits=2 * torch.randn(m, 5, generator=generator)) for _ in range(3)
    ]


def view_of(policy: Policy, seed: int, m: int, path) -> Evidence:
    """Examples that came to the end of a path."""
    return Evidence(policy, path, outputs(seed, m), torch.arange(m))


def single_rows(policy: Policy, seed: int, m: int, path) -> list[Evidence]:
    held, ids = outputs(seed, m), torch.arange(m)
    each = [[o.take(torch.tensor([i])) for o in held] for i in range(m)]
    return [Evidence(policy, path, one, ids[i : i + 1]) for i, one in enumerate(each)]


@examples(25)
@given(
    seed=st.integers(0, 2**31),
    m=st.integers(1, 30),
    path=st.sampled_from(PATHS),
    combine=st.sampled_from(["last", "mean", "log_linear"]),
)
def test_decisions_and_answers_do_not_depend_on_the_rest_of_the_batch(seed, m, path, combine):
    policy = full_policy(combine)
    view = view_of(policy, seed, m, path)
    action, score = policy.decide(view)
    answer = policy.answer(view)
    for i, one in enumerate(single_rows(policy, seed, m, path)):
        alone_action, alone_score = policy.decide(one)
        assert torch.equal(alone_action, action[i : i + 1])
        assert torch.equal(alone_score, score[i : i + 1])
        assert torch.equal(policy.answer(one), answer[i : i + 1])
        if TOPOLOGY.children(path[-1]):
            assert policy.step(one) == int(action[i])
        for top in (1, 3):
            predicted = policy.predict(view, top=top)
            assert torch.equal(policy.predict(one, top=top), predicted[i : i + 1])


@examples(25)
@given(seed=st.integers(0, 2**31), combine=st.sampled_from(["last", "mean", "log_linear"]))
def test_json_gives_back_the_same_policy_bit_by_bit(seed, combine):
    policy = full_policy(combine)
    again = from_json(Policy, json.loads(json.dumps(to_json(policy))))
    assert to_json(again) == to_json(policy)
    for path in PATHS:
        one, other = (view_of(each, seed, 20, path) for each in (policy, again))
        for first, second in zip(policy.decide(one), again.decide(other), strict=True):
            assert torch.equal(first, second)
        assert torch.equal(policy.answer(one), again.answer(other))


@pytest.mark.parametrize("combine", ["last", "mean", "log_linear"])
def test_answers_are_the_combination_by_its_formula(combine):
    policy, held = full_policy(combine), outputs(3, 8)
    answer = policy.answer(Evidence(policy, (0, 2), held, torch.arange(8))).double()
    p = [(o.logits.double() / t).softmax(dim=1) for o, t in zip(held, [1.5, 0.8, 2.0], strict=True)]
    expected = {
        "last": p[2],
        "mean": (p[0] + p[2]) / 2,
        "log_linear": p[0] ** 0.5 * p[2] ** 1.0,
    }[combine]
    expected = expected / expected.sum(dim=1, keepdim=True)
    torch.testing.assert_close(answer.exp(), expected, atol=1e-6, rtol=1e-5)


def test_answers_are_normalized_log_probabilities():
    for combine in ("last", "mean", "log_linear"):
        policy = full_policy(combine)
        for path in PATHS:
            answer = policy.answer(view_of(policy, 0, 10, path))
            torch.testing.assert_close(answer.exp().sum(dim=1), torch.ones(10))


def test_the_last_stage_always_leaves():
    policy = full_policy()
    action, score = policy.decide(view_of(policy, 0, 4, (0, 2)))
    assert action.tolist() == [EXIT] * 4
    assert torch.isinf(score).all()


def test_routing_prefers_an_earlier_child_where_its_rule_says_so():
    wide = Topology.of(["a", "b", "c", "d"], edges=[("a", "b"), ("a", "c"), ("a", "d")])

    def route(to_b: bool, to_c: bool) -> int:
        node = Node(Constant(False), [Constant(to_b), Constant(to_c)])
        policy = Policy(wide, {(0,): node})
        said = [StageOutput(classes=2, logits=torch.zeros(1, 2)), None, None, None]
        at = Evidence(policy, (0,), said, torch.arange(1))
        action = int(policy.decide(at)[0][0])
        assert policy.step(at) == action
        return action

    assert [route(True, True), route(True, False), route(False, True), route(False, False)] == [
        1,
        1,
        2,
        3,
    ]


def test_rules_of_one_way_do_not_touch_examples_on_another():
    topology = Topology.of(
        ["a", "b", "c", "d"], edges=[("a", "b"), ("a", "c"), ("b", "c"), ("c", "d")]
    )
    nodes = {
        (0,): Node(Constant(False), [threshold(0)]),
        (0, 1): Node(Constant(False)),
        (0, 2): Node(Constant(True)),
        (0, 1, 2): Node(Constant(False)),
    }
    policy, held = Policy(topology, nodes), [*outputs(0, 1), None]
    ways = [Evidence(policy, path, held, torch.arange(1)) for path in ((0, 2), (0, 1, 2))]
    assert [int(policy.decide(at)[0]) for at in ways] == [EXIT, 3]


@pytest.mark.parametrize("combine", ["last", "mean", "log_linear"])
def test_an_example_with_nan_goes_on(combine):
    policy = full_policy(combine)
    for stage, spoiled in [(0, 0), (1, 1), (1, 0)]:
        held = outputs(0, 6)
        held[spoiled].logits[2] = torch.nan
        path = tuple(range(stage + 1))
        action, _ = policy.decide(Evidence(policy, path, held, torch.arange(6)))
        looks = combine != "last" or spoiled == stage
        assert action[2] != EXIT or not looks
        assert torch.equal(
            action[[0, 1, 3, 4, 5]],
            policy.decide(view_of(policy, 0, 6, path))[0][[0, 1, 3, 4, 5]],
        )


@pytest.mark.parametrize("path", PATHS)
def test_no_example_at_all_is_no_problem(path):
    for combine in ("last", "mean", "log_linear"):
        policy = full_policy(combine)
        empty = view_of(policy, 0, 0, path)
        action, score = policy.decide(empty)
        assert len(action) == len(score) == 0
        assert policy.answer(empty).shape == (0, 5)
        assert policy.predict(empty, top=2).shape == (0, 2)


def test_only_decisions_that_look_at_something_are_charged():
    nodes = {
        (0,): Node(Random(0.5, 0, 0), [Constant(True)]),
        (0, 1): Node(threshold(1)),
    }
    policy = Policy(TOPOLOGY, nodes)
    assert policy.decided((0,)) == ()
    assert policy.decided((0, 1)) == (1,)
    assert policy.decided((0, 1, 2)) == (1,)
    assert policy.decided((0, 2)) == ()
    routing = Policy(TOPOLOGY, {**nodes, (0,): Node(Constant(False), [threshold(0)])})
    assert routing.decided((0, 2)) == (0,)


def test_bad_arguments_are_named_with_their_value():
    chain = TOPOLOGY.chain(["a", "b"])
    good = {(0,): Node(Constant(True))}
    with pytest.raises(InputError, match=r"nodes must hold .*\[\(0,\)\], got \[\]"):
        Policy(chain, {})
    with pytest.raises(InputError, match=r"The node \(0,\) needs 0 routing rules, got 1"):
        Policy(chain, {(0,): Node(Constant(True), [Constant(True)])})
    with pytest.raises(InputError, match=r"temperatures must be greater than 0, got \[1.0, 0.0"):
        Policy(chain, good, temperatures=[1.0, 0.0, 1.0])
    with pytest.raises(InputError, match=r"temperatures must have shape \(3\), got \(2,\)"):
        Policy(chain, good, temperatures=[1.0, 1.0])
    with pytest.raises(InputError, match=r"combine='log_linear', got 'mean'"):
        Policy(chain, good, combine="mean", weights={(0, 1): [1.0, 1.0]})
    with pytest.raises(InputError, match=r"weights are missing for the path \(0, 1\)"):
        Policy(chain, good, combine="log_linear")
    with pytest.raises(InputError, match=r"not all 0, got \[0.0, 0.0\]"):
        Policy(chain, good, combine="log_linear", weights={(0, 1): [0.0, 0.0]})


def test_what_is_no_policy_is_refused_as_a_file_error():
    value = to_json(full_policy())
    for name in value:
        broken = {k: v for k, v in value.items() if k != name}
        with pytest.raises(FileFormatError, match=f"as a policy: {name}: this field is missing"):
            from_json(Policy, broken)
    with pytest.raises(FileFormatError, match="temperatures must be greater than 0"):
        from_json(Policy, {**value, "temperatures": [1.0, -1.0, 1.0]})


def test_a_setting_survives_json_and_has_a_short_label():
    candidate = Candidate(
        policy=full_policy("mean"),
        method="learned",
        reference="c",
        top=5,
        parameters={"cost_weight": 0.12345, "loss": "negative_flips"},
    )
    again = from_json(Candidate, json.loads(json.dumps(to_json(candidate))))
    assert to_json(again) == to_json(candidate)
    assert (
        candidate.label
        == "learned, a -> b, a -> c, b -> c (mean, cost_weight 0.123, loss negative_flips)"
    )
    single = Candidate.single(TOPOLOGY, "b", reference="c")
    assert single.label == "b alone"
    assert from_json(Candidate, to_json(single)).label == "b alone"
