"""Looking on changes no answer: `explain` gives what the model gives, stage by stage."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp.policy import Candidate
from offramp.runtime import Adaptive, explain
from offramp.stages import Cascade
from offramp.testing import random_policy, random_topology
from support.properties import examples


class Row(nn.Module):
    """Says of an example what stands in its column."""

    def __init__(self, stage):
        super().__init__()
        self.stage = stage

    def forward(self, rows):
        return rows[:, self.stage]


def model_of(seed, stages, *, broken=0.0, combine="last"):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(12, stages, 3, generator=generator) * 3
    rows[torch.rand(12, stages, generator=generator) < broken] = torch.nan
    cascade = Cascade.from_models({f"stage{k}": Row(k) for k in range(stages)})
    policy = random_policy(
        random_topology(stages, seed=seed), seed=seed, classes=3, combine=combine
    )
    costs = Costs.simple("flops", [float(k + 1) for k in range(stages)])
    return Adaptive(cascade, policy, costs=costs), rows


@examples(40)
@given(
    seed=st.integers(0, 2**20),
    stages=st.integers(1, 5),
    broken=st.sampled_from([0.0, 0.3]),
    combine=st.sampled_from(["last", "mean", "log_linear"]),
)
def test_looking_on_changes_no_answer(seed, stages, broken, combine):
    model, rows = model_of(seed, stages, broken=broken, combine=combine)
    whole = model(rows, ids=list(range(len(rows))))
    for k in range(len(rows)):
        answer, visits = explain(model, rows[k : k + 1], id=k)
        for name in ("labels", "stage", "path", "reason", "cost", "valid", "nonfinite"):
            assert torch.equal(getattr(answer, name), getattr(whole, name)[k : k + 1]), name
        torch.testing.assert_close(answer.log_probs, whole.log_probs[k : k + 1], equal_nan=True)
        path = answer.paths[int(answer.path)]
        assert [visit.stage for visit in visits] == [model.stage_names[j] for j in path]
        assert [visit.goes_to for visit in visits] == [*(v.stage for v in visits[1:]), None]
        last = visits[-1]
        assert last.cost == float(answer.cost)
        assert last.label == (int(answer.labels) if answer.valid else None)
        for visit, column in zip(visits, path, strict=True):
            assert (visit.probabilities is None) == bool(rows[k, column].isnan().any())


def test_score_says_why_it_went_on_or_left():
    model, rows = model_of(3, 4)
    for k in range(len(rows)):
        for visit in explain(model, rows[k : k + 1], id=k)[1]:
            if visit.score is not None:
                assert (visit.score >= 0) == (visit.goes_to is None)


def test_a_stage_is_run_once():
    calls = []

    class Counting(nn.Linear):
        def forward(self, rows):
            calls.append(len(rows))
            return super().forward(rows)

    cascade = Cascade.from_models({"a": Counting(4, 3)})
    model = Adaptive(cascade, Candidate.single(cascade.topology, "a", reference="a"))
    explain(model, torch.zeros(1, 4))
    assert calls == [1]


@pytest.mark.parametrize("n", [0, 2])
def test_one_example_is_explained(n):
    cascade = Cascade.from_models({"a": nn.Linear(4, 3)})
    with pytest.raises(InputError, match=f"example must be a batch of one example, got {n}"):
        explain(Adaptive.single(cascade, "a"), torch.zeros(n, 4))
