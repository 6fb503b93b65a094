import copy

import numpy as np
import pytest
import torch
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import InputError, UnknownNameError
from offramp._core.topology import Topology
from offramp.policy import Candidate, Constant, Feature, Linear, Node, Policy, Random
from offramp.runtime import NO_LABEL, Adaptive
from offramp.stages import Cascade, Stage

SIZES = [0, 1, 2, 7, 33]
PATTERNS = ["none", "all", "alternating", "one survivor", "first stays", "last stays"]


class Scripted(nn.Module):
    """Is as sure of class 1 as column `k` of the input says; counts the rows it sees."""

    def __init__(self, k):
        super().__init__()
        self.k = k
        self.rows = []

    def forward(self, x):
        self.rows += x[:, -1].int().tolist()
        sure = x[:, self.k]
        return torch.stack([torch.zeros_like(sure), sure, torch.full_like(sure, -1.0)], dim=1)


def leaves(pattern, n):
    """Which examples leave."""
    at = torch.arange(n)
    return {
        "none": torch.zeros(n).bool(),
        "all": torch.ones(n).bool(),
        "alternating": at % 2 == 0,
        "one survivor": at != n // 2,
        "first stays": at != 0,
        "last stays": at != n - 1,
    }[pattern]


def scripted_cascade():
    cascade = Cascade.from_models(
        {name: Scripted(k) for k, name in enumerate("abc")}, edges="chain"
    )
    for stage in cascade:
        stage.keeps_company = True  # as after recording, so that nothing runs to find it out
    return cascade


def threshold_policy(topology, combine="last"):
    nodes = {
        path: Node(Linear.threshold(Feature("max_prob", path[-1]), 0.9))
        for path in topology.paths()
        if topology.children(path[-1])
    }
    return Policy(topology, nodes, combine=combine)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("first", PATTERNS)
@pytest.mark.parametrize("second", PATTERNS)
def test_each_network_sees_exactly_the_survivors(n, first, second):
    cascade = scripted_cascade()
    model = Adaptive(cascade, threshold_policy(cascade.topology))
    out_first, out_second = leaves(first, n), leaves(second, n)
    x = torch.stack(
        [
            torch.where(out_first, 9.0, 0.1),
            torch.where(out_second, 9.0, 0.2),
            torch.full((n,), 0.3),
            torch.arange(n).float(),
        ],
        dim=1,
    )
    model(torch.zeros(1, 4))  # shows the number of classes, so that an empty batch runs nothing
    for stage in cascade:
        stage.module.rows.clear()
    answer = model(x)
    everyone = torch.arange(n)
    assert cascade.stage("a").module.rows == everyone.tolist()
    assert cascade.stage("b").module.rows == everyone[~out_first].tolist()
    assert cascade.stage("c").module.rows == everyone[~out_first & ~out_second].tolist()
    stage = torch.where(out_first, 0, torch.where(out_second, 1, 2))
    assert torch.equal(answer.stage, stage)
    sure = x[:, :3].gather(1, stage[:, None])[:, 0]
    wanted = torch.stack([torch.zeros(n), sure, torch.full((n,), -1.0)], dim=1).log_softmax(1)
    torch.testing.assert_close(answer.log_probs, wanted)
    assert answer.labels.tolist() == [1] * n


@pytest.mark.parametrize("n", SIZES)
def test_shapes_and_types_are_the_same_for_every_batch_size(n):
    cascade = scripted_cascade()
    costs = Costs.simple("flops", [1.0, 2.0, 4.0])
    for model in (
        Adaptive(cascade, threshold_policy(cascade.topology), costs=costs),
        Adaptive.single(cascade, "c", costs=costs),
    ):
        answer = model(torch.zeros(n, 4))
        assert len(answer) == n
        assert answer.log_probs.shape == (n, 3)
        assert answer.log_probs.dtype == answer.confidence.dtype == torch.float32
        assert answer.labels.dtype == answer.stage.dtype == answer.nonfinite.dtype == torch.int64
        assert answer.cost.dtype == torch.float64
        assert answer.valid.dtype == torch.bool
        assert answer.stage_names == ("a", "b", "c")
        for values in (answer.labels, answer.stage, answer.confidence, answer.cost):
            assert values.shape == (n,)


def test_an_answer_says_what_the_example_cost_decisions_included():
    cascade = scripted_cascade()
    costs = Costs(unit="usd", segment=(1, 10, 100), head=(0, 0, 0), decision=(0.5, 0.25, 0.125))
    model = Adaptive(cascade, threshold_policy(cascade.topology), costs=costs)
    x = torch.tensor([[9.0, 0, 0, 0], [0, 9.0, 0, 1], [0, 0, 9.0, 2]])
    assert model(x).cost.tolist() == [1.5, 11.75, 111.75]
    assert Adaptive.single(cascade, "c", costs=costs)(x).cost.tolist() == [100.0] * 3
    assert Adaptive(cascade, threshold_policy(cascade.topology))(x).cost is None


def test_confidence_and_label_are_those_of_the_combination():
    cascade = scripted_cascade()
    model = Adaptive(cascade, threshold_policy(cascade.topology, combine="mean"))
    answer = model(torch.tensor([[0.0, 1.0, 2.0, 0.0]]))
    logits = torch.tensor([[0.0, 0.0, -1.0], [0.0, 1.0, -1.0], [0.0, 2.0, -1.0]])
    mean = logits.softmax(dim=1).mean(dim=0)
    torch.testing.assert_close(answer.confidence[0], mean.max())
    torch.testing.assert_close(answer.log_probs[0], mean.log())


def test_ties_go_to_the_lowest_class():
    cascade = scripted_cascade()
    answer = Adaptive.single(cascade, "a")(torch.zeros(1, 4))
    assert answer.labels.tolist() == [0]


def test_a_broken_stage_is_passed_over_and_counted_and_no_answer_has_no_label():
    cascade = scripted_cascade()
    model = Adaptive(cascade, threshold_policy(cascade.topology))
    nan = torch.nan
    x = torch.tensor([[nan, 9, 0, 0], [0, nan, 0.5, 1], [0, 0.4, nan, 2], [nan, nan, nan, 3]])
    answer = model(x)
    assert answer.stage.tolist() == [1, 2, 2, 2]
    assert answer.nonfinite.tolist() == [1, 1, 1, 3]
    assert answer.valid.tolist() == [True, True, True, False]
    assert answer.labels.tolist() == [1, 1, 1, NO_LABEL]
    assert answer.confidence[3] == 0
    torch.testing.assert_close(answer.log_probs[2, 1] - answer.log_probs[2, 0], torch.tensor(0.4))
    alone = Adaptive.single(cascade, "a")(x)
    assert alone.valid.tolist() == [False, True, True, False]
    assert alone.labels.tolist() == [NO_LABEL, 0, 0, NO_LABEL]


def test_random_policies_follow_the_ids_and_count_from_zero_without_them():
    cascade = scripted_cascade()
    topology = cascade.topology.chain(["a", "c"])
    model = Adaptive(cascade, Policy(topology, {(0,): Node(Random(0.5, 3, 0))}))
    x = torch.zeros(64, 4)
    plain = model(x).stage
    assert 0 < (plain == 0).sum() < 64
    assert torch.equal(plain, model(x).stage)
    assert torch.equal(plain, model(x, ids=torch.arange(64)).stage)
    assert torch.equal(plain.flip(0), model(x, ids=np.arange(64)[::-1].copy()).stage)
    named = model(x[:2], ids=["cat.png", "dog.png"]).stage
    assert torch.equal(named.flip(0), model(x[:2], ids=["dog.png", "cat.png"]).stage)
    with pytest.raises(InputError, match=r"ids must have shape \(64,\).*got .*\[?3"):
        model(x, ids=torch.arange(3))


def test_networks_never_run_in_training_mode():
    class Mode(nn.Module):
        def forward(self, x):
            assert not self.training
            return x

    cascade = Cascade.from_models({"a": Mode(), "b": Mode()})
    models = [
        Adaptive(cascade, threshold_policy(cascade.topology)),
        Adaptive.single(cascade, "b"),
    ]
    for model in models:
        cascade.train()
        model.train()
        assert not model.training
        model(torch.zeros(3, 2))
        cascade.stage(0).module.train()
        cascade.stage(1).module.train()
        model(torch.zeros(3, 2))


def test_no_gradients_are_recorded():
    cascade = Cascade.from_models({"a": nn.Linear(4, 3)})
    answer = Adaptive.single(cascade, "a")(torch.zeros(2, 4))
    assert not answer.log_probs.requires_grad


def test_the_policy_given_is_copied_and_stages_not_needed_are_not_held():
    cascade = scripted_cascade()
    policy = threshold_policy(cascade.topology.chain(["a", "b"]))
    model = Adaptive(cascade, policy)
    assert model.policy is not policy
    assert sorted(model.stages) == ["0", "1"]


def test_a_setting_and_whatever_holds_a_setting_may_be_given():
    class Point:
        candidate = Candidate.single(scripted_cascade().topology, "b", reference="c")

    cascade = scripted_cascade()
    for choice in (Point(), Point.candidate, Point.candidate.policy):
        assert Adaptive(cascade, choice)(torch.zeros(1, 4)).stage.tolist() == [1]


def test_a_policy_or_costs_for_other_stages_are_refused():
    cascade = scripted_cascade()
    foreign = Policy(Topology.of(["a", "x", "c"]).chain(["a"]), {})
    with pytest.raises(InputError, match=r"names \('a', 'x', 'c'\).*\('a', 'b', 'c'\)"):
        Adaptive(cascade, foreign)
    for make in (
        lambda costs: Adaptive(cascade, threshold_policy(cascade.topology), costs=costs),
        lambda costs: Adaptive.single(cascade, 0, costs=costs),
    ):
        with pytest.raises(InputError, match=r"one entry per stage \(3\), got 1"):
            make(Costs.simple("flops", [1.0]))
    with pytest.raises(UnknownNameError, match="no stage 'bb'"):
        Adaptive.single(cascade, "bb")


def test_batches_of_unequal_lengths_are_refused():
    cascade = scripted_cascade()
    model = Adaptive(cascade, threshold_policy(cascade.topology))
    with pytest.raises(InputError, match="lengths"):
        model((torch.zeros(2, 4), torch.zeros(3, 4)))


def test_tuples_and_mappings_are_narrowed_to_the_survivors():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes = []

        def forward(self, left, right):
            self.sizes.append((len(left), len(right)))
            return left + right

    cascade = Cascade.from_models({"a": Both(), "b": Both()})
    for stage in cascade:
        stage.keeps_company = True
    model = Adaptive(cascade, threshold_policy(cascade.topology))
    left = torch.tensor([[0.0, 9.0], [0.0, 0.0], [9.0, 0.0]])
    for batch in ((left, left * 0), {"left": left, "right": left * 0}):
        assert model(batch).stage.tolist() == [0, 1, 0]
        assert len(model(copy.copy(batch))) == 3
    assert cascade.stage("a").module.sizes == [(3, 3)] * 4
    assert cascade.stage("b").module.sizes == [(1, 1)] * 4


def test_an_empty_batch_of_a_mapping_learns_the_classes_from_one_example_of_zeros():
    class Named(nn.Module):
        def forward(self, pixels):
            return pixels.reshape(len(pixels), -1)  # fails on an empty batch

    model = Adaptive(
        (cascade := Cascade.from_models({"a": Named()})),
        Candidate.single(cascade.topology, "a", reference="a"),
    )
    assert model({"pixels": torch.zeros(0, 2, 3)}).log_probs.shape == (0, 6)


def test_a_transform_belongs_to_the_stage():
    class Half(nn.Module):
        def forward(self, x):
            return x / 2

    stages = [Stage("a", nn.Identity(), transform=Half()), Stage("b", nn.Identity())]
    cascade = Cascade(stages)
    on = Policy(cascade.topology, {(0,): Node(Constant(False))})
    x = torch.tensor([[2.0, 0.0]])
    assert torch.equal(Adaptive.single(cascade, "a")(x).log_probs, (x / 2).log_softmax(1))
    assert torch.equal(Adaptive(cascade, on)(x).log_probs, x.log_softmax(1))


def test_moving_to_a_device_moves_everything_a_call_needs():
    cascade = Cascade.from_models({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    model = Adaptive(cascade, threshold_policy(cascade.topology)).to("cpu")
    state = {name for name, _ in model.named_buffers()}
    assert "policy.temperatures" in state
    assert model(torch.zeros(2, 4)).log_probs.device.type == "cpu"


def linear_models():
    cascade = Cascade.from_models({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    return Adaptive(cascade, threshold_policy(cascade.topology)), Adaptive.single(cascade, "b")


@pytest.mark.parametrize(
    ("bad", "given"),
    [
        (torch.zeros(2, 5), r"\(n, 5\) float32"),
        (torch.zeros(2, 4, dtype=torch.float64), r"\(n, 4\) float64"),
        ((torch.zeros(2, 4), torch.zeros(2, 1)), r"\(n, 4\) float32, \(n, 1\) float32"),
        ({"y": torch.zeros(2, 4)}, r"y: \(n, 4\) float32"),
    ],
)
def test_a_batch_of_another_shape_or_type_is_refused_and_what_is_expected_named(bad, given):
    for model in linear_models():
        with pytest.raises(InputError, match=rf"whose weights are float32, .*{given}: \w+Error"):
            model(bad)
        model(torch.zeros(3, 4))
        with pytest.raises(InputError, match=rf"batches like \(n, 4\) float32, .*{given}"):
            model(bad)
        assert len(model(torch.zeros(1, 4))) == 1


def test_errors_that_are_not_the_batch_s_fault_stay_as_they_are():
    class Moody(nn.Module):
        fails = False

        def forward(self, x):
            if self.fails:
                raise RuntimeError("out of paper")
            return x

    cascade = Cascade.from_models({"a": Moody()})
    models = [Adaptive(cascade, Policy(cascade.topology, {})), Adaptive.single(cascade, "a")]
    for model in models:
        model(torch.zeros(2, 3))
    cascade.stage("a").module.fails = True
    for model in models:
        with pytest.raises(RuntimeError, match=r"^out of paper$"):
            model(torch.zeros(4, 3))
