"""Rules: what they say, batch independence, NaN, draws by key, JSON."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from offramp._core.errors import FileFormatError, InputError
from offramp._core.schema import from_json, to_json
from offramp.policy import Agreement, Constant, Feature, Linear, Random
from offramp.policy.features import Distribution
from offramp.policy.rules import AnyRule, Rule, keyed_uniform
from support.properties import examples


class Seen:
    """Two stages' logits, as a rule sees them."""

    def __init__(self, logits: torch.Tensor, ids: torch.Tensor) -> None:
        self.ids, self.logits = ids, logits  # (m,), (m, 2, c)

    def distribution(self, stage: int) -> Distribution:
        return Distribution(self.logits[:, max(stage, 0)].log_softmax(dim=1))

    def ranked(self, stage: int, count: int) -> torch.Tensor:
        order = self.logits[:, stage].sort(dim=1, descending=True, stable=True).indices
        return order[:, :count]

    def row(self, i: int) -> "Seen":
        return Seen(self.logits[i : i + 1], self.ids[i : i + 1])


def seen(seed: int, m: int = 23) -> Seen:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(m, 2, 6, generator=generator)
    return Seen(logits, torch.randint(0, 10**12, (m,), generator=generator))


def takes(rule: Rule, at: Seen) -> bool:
    """What `Policy.step` asks of the only example."""
    return rule.takes(at) if isinstance(rule, Linear) else bool(rule.score(at) >= 0)


RULES = [
    Constant(True),
    Constant(False),
    Linear.threshold(Feature("max_prob", 0), 0.7),
    Linear.threshold(Feature("entropy", -1), 0.5, sign=-1.0),
    Linear(
        [Feature("margin", 0), Feature("log_prob_2", 1), Feature("agrees_0", 1)],
        [0.1, 1 / 3, -2.7],
        0.123456789,
    ),
    Random(0.37, 11, 1),
    Random(0.0, 0, 0),
    Random(1.0, 0, 0),
    Agreement((0, 1)),
    Agreement((0, 1), depth=3, shared=2),
]
NAMES = [f"{type(r).__name__}-{i}" for i, r in enumerate(RULES)]


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_score_does_not_depend_on_the_rest_of_the_batch(rule):
    at = seen(0)
    together = rule.score(at)
    assert together.dtype == torch.float32
    assert torch.equal(together, torch.cat([rule.score(at.row(i)) for i in range(23)]))
    back = Seen(at.logits.flip(0), at.ids.flip(0))
    assert torch.equal(rule.score(back).flip(0), together)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_json_gives_back_the_same_scores_bit_by_bit(rule):
    again = from_json(AnyRule, json.loads(json.dumps(to_json(rule))))
    assert isinstance(again, Rule)
    assert again.free == rule.free
    assert torch.equal(again.score(seen(1)), rule.score(seen(1)))


@examples(50)
@given(
    weights=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4),
    bias=st.floats(-1e6, 1e6),
)
def test_any_linear_rule_survives_json(weights, bias):
    rule = Linear([Feature("margin", 0)] * len(weights), weights, bias)
    again = from_json(AnyRule, json.loads(json.dumps(to_json(rule))))
    assert torch.equal(again.weights, rule.weights)
    assert torch.equal(again.bias, rule.bias)


@examples(50)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["max_prob", "log_margin"]))
def test_a_threshold_takes_exactly_those_that_are_at_least_as_sure(seed, kind):
    at = seen(seed)
    values = Feature(kind, 0).of(at.distribution)
    cut = float(values[seed % 23])  # one of them stands on the threshold itself
    assert torch.equal(Linear.threshold(Feature(kind, 0), cut).score(at) >= 0, values >= cut)
    below = Linear.threshold(Feature(kind, 0), cut, sign=-1.0)
    assert torch.equal(below.score(at) >= 0, values <= cut)


@examples(150)
@given(
    seed=st.integers(0, 2**31),
    weights=st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=4),
    onto=st.booleans(),
    bias=st.floats(-(2.0**126), 2.0**126, width=32),
)
def test_one_example_takes_an_action_exactly_where_its_score_says_so(seed, weights, onto, bias):
    """Also where the sum is exactly 0, vanishes next to the bias, or overflows."""
    kinds = ["max_prob", "log_margin", "entropy", "log_prob_2"]
    features = [Feature(kind, k % 2) for k, kind in enumerate(kinds[: len(weights)])]
    at = seen(seed)
    if onto:  # the bias puts one example on the boundary, or as near as float32 comes
        bias = -float(Linear(features, weights, 0.0).score(at)[seed % 23])
        bias = bias if math.isfinite(bias) else 0.0
    rule = Linear(features, weights, bias)
    wanted = (rule.score(at) >= 0).tolist()
    assert [takes(rule, at.row(i)) for i in range(23)] == wanted


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_every_kind_of_rule_can_be_asked_by_one_example(rule):
    at = seen(3)
    wanted = (rule.score(at) >= 0).tolist()
    assert [takes(rule, at.row(i)) for i in range(23)] == wanted


def test_sums_in_double_precision_would_be_caught():
    at = seen(0)
    value = Feature("max_prob", 0).of(at.distribution)[0].item()
    rule = Linear([Feature("max_prob", 0)] * 2, [1e8, -1e8], -1e-3)
    assert takes(rule, at.row(0)) == bool(rule.score(at)[0] >= 0)
    third = Linear([Feature("max_prob", 0)] * 3, [1.0, 1e8, -1e8], -value / 2)
    in_doubles = value + 1e8 * value - 1e8 * value - value / 2 >= 0
    assert takes(third, at.row(0)) == bool(third.score(at)[0] >= 0) != in_doubles


def test_nan_never_takes_an_action_that_looks_at_it():
    at = seen(0, m=3)
    at.logits[1, 0, 2] = torch.nan
    for rule in RULES[2:5]:
        taken = rule.score(at) >= 0
        assert not taken[1] or all(f.stage == 1 for f in rule.features)
    always = Linear([Feature("max_prob", 0)], [0.0], 1.0)  # even at weight 0
    assert (always.score(at) >= 0).tolist() == [True, False, True]


def test_agreement_counts_common_labels():
    logits = torch.tensor([[[3.0, 2, 1], [3.0, 1, 2]], [[3.0, 2, 1], [1.0, 2, 3]]])
    at = Seen(logits, torch.arange(2))
    assert (Agreement((0, 1)).score(at) >= 0).tolist() == [True, False]
    assert Agreement((0, 1), depth=2, shared=1).score(at).tolist() == [0.0, 0.0]
    assert (Agreement((0, 1), depth=2, shared=2).score(at) >= 0).tolist() == [False, False]


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.9, 1.0])
def test_a_random_rule_takes_its_share(rate):
    at = Seen(torch.zeros(20000, 2, 2), torch.arange(20000))
    share = float((Random(rate, 3, 0).score(at) >= 0).double().mean())
    assert share == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 20000) + 1e-12)


@pytest.mark.parametrize("n", [500, 20000])
@pytest.mark.parametrize("start", [0, 10**9, 2**62])
def test_draws_are_uniform(n, start):
    ids = torch.arange(start, start + n)
    for seed in range(3):
        for stage in range(3):
            assert kstest(keyed_uniform(ids, seed, stage).numpy(), "uniform").pvalue > 1e-4


def dependence(first: torch.Tensor, second: torch.Tensor) -> float:
    table = np.histogram2d(first.numpy(), second.numpy(), bins=8, range=[[0, 1], [0, 1]])[0]
    return float(chisquare(table.ravel()).pvalue)


def test_draws_after_different_stages_and_of_different_seeds_are_independent():
    ids = torch.arange(20000)
    worst = 1.0
    for seed in range(4):
        for stage in range(4):
            here = keyed_uniform(ids, seed, stage)
            others = [keyed_uniform(ids, seed, stage + 1), keyed_uniform(ids, seed + 1, stage)]
            neighbors = [(here[1:], here[:-1]), *((here, other) for other in others)]
            worst = min(worst, *(dependence(a, b) for a, b in neighbors))
    assert worst > 1e-5


def test_the_check_of_independence_can_fail():
    drawn = keyed_uniform(torch.arange(20000), 0, 0)
    assert dependence(drawn, (drawn + 0.25) % 1) < 1e-9


def test_draws_are_fixed_by_seed_example_and_stage():
    ids = torch.tensor([5, 9, 5])
    drawn = keyed_uniform(ids, 1, 2)
    assert drawn.dtype == torch.float64
    assert drawn[0] == drawn[2] != drawn[1]
    assert torch.equal(drawn, keyed_uniform(ids, 1, 2))
    assert ((drawn >= 0) & (drawn < 1)).all()


def test_bad_arguments_are_named_with_their_value():
    with pytest.raises(InputError, match=r"rate must be in \[0, 1\], got 1.5.*divided by 100"):
        Random(1.5, 0, 0)
    with pytest.raises(InputError, match=r"one entry per feature \(1\), got 2"):
        Linear([Feature("margin", 0)], [1.0, 2.0], 0.0)
    with pytest.raises(InputError, match=r"shared must be in \[1, depth = 2\], got 3"):
        Agreement((0, 1), depth=2, shared=3)


@pytest.mark.parametrize(
    "value", [{}, {"kind": "oracle"}, {"kind": "linear", "features": []}, {"kind": "constant"}]
)
def test_what_is_no_rule_is_refused_as_a_file_error(value):
    with pytest.raises(FileFormatError, match=r"problems? as a rule: "):
        from_json(AnyRule, value)
