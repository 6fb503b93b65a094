"""One example alone: the same answer as in company, whatever its stages say."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp.policy import Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Stage
from offramp.testing import random_policy, random_topology
from reference.walk import route_reference
from support.properties import examples


class Recorded(nn.Module):
    """A network that says of example i what was drawn for it, and counts its calls."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.calls = logits, 0

    def forward(self, rows):
        self.calls += 1
        return self.logits[rows[:, 0]]


def drawn(cascade, generator):
    """Weights that do not depend on what ran before."""
    for stage in cascade:
        for weights in stage.parameters():
            weights.detach().normal_(generator=generator)


@examples(60)
@given(
    seed=st.integers(0, 2**20),
    stages=st.integers(1, 5),
    combine=st.sampled_from(["last", "mean", "log_linear"]),
    classes=st.sampled_from([2, 5, 70]),
    broken=st.sampled_from([0.0, 0.2]),
)
def test_it_does_what_the_slow_twin_does_also_where_stages_are_not_finite(
    seed, stages, combine, classes, broken
):
    topology = random_topology(stages, seed=seed)
    policy = random_policy(topology, seed=seed, classes=classes, combine=combine)
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(12, stages, classes, generator=generator)
    logits[torch.rand(12, stages, generator=generator) < broken] = torch.nan
    ids = torch.randint(0, 10**6, (12,), generator=generator)
    networks = {name: Recorded(logits[:, k]) for k, name in enumerate(topology.names)}
    costs = Costs.simple("x", list(range(1, stages + 1)))
    model = Adaptive(Cascade.from_models(networks), policy, costs=costs)
    wanted = route_reference(policy, logits, ids)
    for i in range(12):
        before = [network.calls for network in networks.values()]
        answer = model(torch.tensor([[i]]), ids=ids[i : i + 1])
        assert torch.equal(answer.valid, wanted.valid[i : i + 1])
        torch.testing.assert_close(
            answer.log_probs, wanted.log_probs[i : i + 1], rtol=0, atol=0, equal_nan=True
        )
        assert torch.equal(answer.path, wanted.path[i : i + 1])
        assert torch.equal(answer.nonfinite, wanted.nonfinite[i : i + 1])
        assert answer.reasons == wanted.reasons[i : i + 1]
        together = model(torch.tensor([[i], [i]]), ids=ids[[i, i]])
        assert torch.equal(answer.labels, together.labels[:1])
        assert torch.equal(answer.cost, together.cost[:1])
        path = answer.paths[answer.path.item()]
        after = [network.calls for network in networks.values()]
        # once alone and once in company; other stages never
        counted = [now - then for then, now in zip(before, after, strict=True)]
        assert counted == [2 * (k in path) for k in range(stages)]


@examples(30)
@given(seed=st.integers(0, 2**20))
def test_segments_that_stages_share_run_once(seed):
    generator = torch.Generator().manual_seed(seed)
    sources = {"a": None, "b": "a", "c": "a", "d": "b"}
    stages = [
        Stage(name, nn.Linear(6, 6), head=nn.Linear(6, 3), source=source)
        for name, source in sources.items()
    ]
    cascade = Cascade(stages, edges=[("a", "b"), ("a", "c"), ("b", "c"), ("b", "d")])
    drawn(cascade, generator)
    policy = random_policy(cascade.topology, seed=seed, classes=3)
    ran = []
    for stage in cascade:
        stage.module.register_forward_hook(lambda *_, name=stage.name: ran.append(name))
    model = Adaptive(cascade, policy)
    x = torch.randn(6, 6, generator=generator)
    together = model(x)
    for i in range(6):
        ran.clear()
        answer = model(x[i : i + 1], ids=torch.tensor([i]))
        assert answer.path.item() == together.path[i].item()
        torch.testing.assert_close(answer.log_probs, together.log_probs[i : i + 1])
        assert len(ran) == len(set(ran))


def two(threshold=0.5):
    cascade = Cascade.from_models({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    drawn(cascade, torch.Generator().manual_seed(0))
    rule = Linear.threshold(Feature("max_prob", 0), threshold)
    policy = Policy(cascade.topology, {(0,): Node(rule)})
    return Adaptive(cascade, policy, costs=Costs.simple("x", [1.0, 2.0]))


def test_nobody_shares_an_answer():
    model = two()
    first = model(torch.zeros(1, 4))
    with torch.inference_mode():
        for values in (first.cost, first.stage, first.path, first.nonfinite, first.labels):
            values.add_(7)
        first.valid.logical_not_()
    second = model(torch.zeros(1, 4))
    assert second.cost.item() < 7
    assert second.stage.item() < 7
    assert second.valid.item()


def test_weights_and_temperatures_that_change_are_seen():
    model, x = two(threshold=0.0), torch.randn(1, 4)
    assert model(x).stage.item() == 0
    rule = model.policy.node((0,)).leave
    rule.bias.fill_(-2.0)
    assert model(x).stage.item() == 1
    rule.bias.fill_(-0.5)
    model.policy.temperatures.fill_(1e-3)
    assert model(x).stage.item() == 0
    model.policy.temperatures.fill_(1e3)
    assert model(x).stage.item() == 1


def test_a_copy_of_a_model_that_has_answered_answers_alike():
    model, x = two(), torch.randn(1, 4)
    wanted = model(x)
    answer = copy.deepcopy(model)(x)
    assert torch.equal(answer.log_probs, wanted.log_probs)
    assert answer.stage.item() == wanted.stage.item()


def test_a_network_that_drops_the_only_row_is_refused():
    class Drops(nn.Linear):
        def forward(self, x):
            return super().forward(x)[:0]

    cascade = Cascade.from_models({"a": Drops(4, 3)})
    with pytest.raises(InputError, match="for each of the 1 examples"):
        Adaptive.single(cascade, "a")(torch.zeros(1, 4))
