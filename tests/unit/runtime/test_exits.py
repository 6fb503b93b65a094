"""What the runtime holds and runs of a cut network: nothing that a policy does not use."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from offramp.policy import Candidate, Constant, Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade, measure_flops

WIDTHS = [4, 6, 5, 7, 3]  # after each layer
AT = ["0", "1", "2", "3"]


class Counted(nn.Linear):
    """Counts the rows it sees."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.rows = 0

    def forward(self, x):
        self.rows += len(x)
        return super().forward(x)


def make_cascade():
    net = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise([2, *WIDTHS, 2]))).eval()
    heads = {point: Counted(width, 2) for point, width in zip(AT, WIDTHS, strict=False)}
    heads["1"] = {"a": heads["1"], "b": Counted(WIDTHS[1], 2)}
    cascade = Cascade.from_network(net, AT, head=heads, example=torch.zeros(1, 2))
    for stage in cascade:
        stage.keeps_company = True  # as after recording, so that nothing runs to find it out
    return cascade, heads


def visiting(cascade, names):
    """A policy by which everybody visits all of some exits."""
    part = cascade.topology.chain(names)
    nodes = {path: Node(Constant(False)) for path in part.paths() if part.children(path[-1])}
    return Candidate(policy=Policy(part, nodes), method="x", reference="last")


@pytest.mark.parametrize("fold", [False, True])
def test_heads_that_are_not_used_are_neither_held_nor_run(fold):
    cascade, heads = make_cascade()
    model = Adaptive(cascade, visiting(cascade, ["1/b", "last"]), fold=fold)
    held = {k: stage.head is not None for k, stage in model.stages.items()}
    assert held == {"0": False, "2": True, "3": False, "4": False, "5": False}
    one_way = [2, *WIDTHS, 2]
    weights = sum((a + 1) * b for a, b in pairwise(one_way)) + (WIDTHS[1] + 1) * 2
    assert sum(p.numel() for p in model.parameters()) == weights
    answer = model(torch.randn(7, 2, generator=torch.Generator().manual_seed(0)))
    assert answer.stage.tolist() == [5] * 7
    if not fold:
        assert heads["1"]["b"].rows == 7
    others = [heads["0"], heads["1"]["a"], heads["2"], heads["3"]]
    assert [head.rows for head in others] == [0, 0, 0, 0]


def test_segments_beyond_the_last_exit_are_not_held():
    cascade, _ = make_cascade()
    assert sorted(Adaptive(cascade, visiting(cascade, ["0", "1/a"])).stages) == ["0", "1"]
    assert sorted(Adaptive.single(cascade, "0").stages) == ["0"]


def test_between_exits_that_are_not_used_nobody_decides_and_each_segment_runs_once(monkeypatch):
    cascade, heads = make_cascade()
    for parameter in cascade.parameters():  # every layer hands on its first feature
        parameter.data.zero_()
        if parameter.dim() == 2:
            parameter.data[0, 0] = 1
    decisions, rows = [], {}
    decide = Policy.decide

    def noted(self, at):
        decisions.append((at.path[-1], len(at.ids)))
        return decide(self, at)

    monkeypatch.setattr(Policy, "decide", noted)
    for group in cascade.topology.groups:
        cascade.stage(cascade.topology.groups.index(group)).module.register_forward_hook(
            lambda _, given, __, group=group: rows.setdefault(group, set()).add(len(given[0]))
        )
    part = cascade.topology.chain(["0", "3", "last"])
    sure = Linear.threshold(Feature("max_prob", 0), 0.75)
    policy = Policy(part, {(0,): Node(sure), (0, 4): Node(Constant(False))})
    x = torch.tensor([[9.0, 0], [0, 0], [9.0, 0], [0, 0], [0, 1]])
    answer = Adaptive(cascade, policy)(x)
    assert answer.stage.tolist() == [0, 5, 0, 5, 5]
    assert decisions == [(0, 5), (4, 3)]
    assert rows == {"0": {5}, "1": {3}, "2": {3}, "3": {3}, "last": {3}}
    assert (heads["0"].rows, heads["3"].rows) == (5, 3)
    assert heads["1"]["a"].rows == heads["1"]["b"].rows == heads["2"].rows == 0


def test_what_is_charged_is_what_runs():
    cascade, _ = make_cascade()
    costs = measure_flops(cascade, torch.zeros(1, 2))
    model = Adaptive(cascade, visiting(cascade, ["1/b", "last"]), costs=costs)
    one_way = [2, *WIDTHS, 2]
    segments = sum(2 * a * b for a, b in pairwise(one_way))
    head = 2 * WIDTHS[1] * 2
    assert model(torch.zeros(3, 2)).cost.tolist() == [segments + head] * 3


def test_a_model_moves_to_another_type_of_number_with_all_its_segments():
    cascade, _ = make_cascade()
    model = Adaptive(cascade, visiting(cascade, ["0", "last"])).to(torch.float64)
    answer = model(torch.zeros(2, 2, dtype=torch.float64))
    assert answer.log_probs.dtype == torch.float32
    assert {p.dtype for p in model.stages.parameters()} == {torch.float64}


def test_a_state_dict_carries_weights_over_to_another_model():
    (one, _), (other, _) = make_cascade(), make_cascade()
    models = [Adaptive(c, visiting(c, ["1/b", "last"])) for c in (one, other)]
    x = torch.ones(3, 2)
    assert not torch.equal(models[0](x).log_probs, models[1](x).log_probs)
    models[1].load_state_dict(models[0].state_dict())
    assert torch.equal(models[0](x).log_probs, models[1](x).log_probs)
    assert torch.equal(
        Adaptive.single(one, "last")(x).log_probs, Adaptive.single(other, "last")(x).log_probs
    )
