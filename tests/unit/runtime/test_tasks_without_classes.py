"""A cascade of stages that give numbers and no classes: what was fitted on losses runs."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import offramp
from offramp import Adaptive, Cascade
from offramp._core.errors import InputError
from offramp.evaluation import replay
from offramp.trace import from_losses


class Model(nn.Module):
    """A regression: its answer, and how unsure it is of it."""

    def __init__(self, error: float, told: bool) -> None:
        super().__init__()
        self.error, self.told = error, told

    def forward(self, x: Tensor) -> Tensor:
        unsure = x.abs().sum(dim=1) * self.error
        answer = x.sum(dim=1) + unsure
        return torch.stack([-unsure, answer], dim=1) if self.told else answer


def session():
    """Losses of a small and a large regression, by a length that stands first."""
    cascade = Cascade.from_models(
        {"length": Length(), "small": Model(0.5, True), "large": Model(0.1, True)},
        outputs={"length": "signals", "small": "features", "large": "features"},
    )
    x = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
    said = {
        name: cascade.stage(k).run(x)[0].features for k, name in enumerate(cascade.topology.names)
    }
    truth = x.sum(dim=1)
    lost = {
        name: None if name == "length" else ((v[:, 1] - truth).abs() / 4).clamp(max=1)
        for name, v in said.items()
    }
    costs = {"length": 0.01, "small": 1.0, "large": 5.0}
    return cascade, x, from_losses(lost, features=said, costs=costs, unit="usd")


class Length(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs().sum(dim=1)


@pytest.fixture(scope="module")
def fitted():
    cascade, x, trace = session()
    frontier = offramp.fit(trace, "learned", cost_weights=[0.03, 0.1], progress=False)
    point = max(frontier.points, key=lambda p: len(p.candidate.policy.topology.edges))
    return cascade, x, trace, point.candidate


@pytest.mark.parametrize("size", [1, 7, 600])
def test_it_runs_as_it_was_replayed(fitted, size):
    cascade, x, trace, candidate = fitted
    done = replay(trace, candidate.policy)
    model = Adaptive(cascade, candidate, costs=trace.costs)
    parts = [model(part) for part in x[: 20 if size == 1 else 600].split(size)]
    stages = torch.cat([p.stage for p in parts])
    assert stages.tolist() == done.last[: len(stages)].tolist()
    assert {1, 2} >= set(stages.tolist())
    values = torch.cat([p.values for p in parts])
    expected = trace.features[torch.arange(len(stages)), stages]
    torch.testing.assert_close(values, expected)  # the answer of the stage that answered
    cost = torch.cat([p.cost for p in parts]).numpy()
    assert cost == pytest.approx(done.cost[: len(stages)])
    assert all(p.log_probs is None and not p.labels.any() for p in parts)


def test_a_number_that_is_not_finite_goes_on_and_is_told(fitted):
    cascade, x, _, candidate = fitted
    broken = x[:9].clone()
    broken[4] = torch.nan
    answer = Adaptive(cascade, candidate)(broken)
    assert answer.valid.tolist() == [k != 4 for k in range(9)]
    assert answer.values[4].isnan().all()
    assert not len(Adaptive(cascade, candidate)(x[:0]))


def test_nobody_is_answered_by_a_stage_that_answers_nothing(fitted):
    cascade, x, _, candidate = fitted

    class Fails(Model):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.where(x[:, :1] > 0, 1.0, torch.nan)

    def model_of(small, large):
        return Adaptive(
            Cascade.from_models(
                {"length": Length(), "small": small, "large": large},
                outputs={"length": "signals", "small": "features", "large": "features"},
            ),
            candidate,
        )

    whole = Adaptive(cascade, candidate)
    late, left = model_of(Model(0.5, True), Fails(0.1, True))(x), whole(x).stage == 1
    assert left.any()
    torch.testing.assert_close(late.values[left], whole(x).values[left])  # gone before it failed
    model = model_of(Fails(0.5, True), Fails(0.1, True))
    for part in (x, x[:1], x[1:2], x[5:6]):
        answer, fine = model(part), part[:, 0] > 0
        assert answer.valid.tolist() == fine.tolist()
        assert answer.values[~fine].isnan().all()
        torch.testing.assert_close(answer.values[fine], whole(part).values[fine])


def test_a_way_that_ends_where_nothing_is_answered_is_refused(fitted):
    cascade, _, _, _ = fitted
    with pytest.raises(InputError, match="answers nothing"):
        Adaptive.single(cascade, "length")


def test_other_forms_are_refused(fitted):
    cascade, x, _, candidate = fitted
    networks = Cascade.from_models({name: nn.Linear(3, 2) for name in cascade.topology.names})
    with pytest.raises(InputError, match="fitted on features"):
        Adaptive(networks, candidate)
    with pytest.raises(InputError, match=r"from_losses"):
        offramp.record(cascade, [(x, torch.zeros(600, dtype=torch.int64))])
    one = Cascade.from_models({"a": nn.Unflatten(1, (3, 1)), "b": Length()}, outputs="features")
    with pytest.raises(InputError, match=r"features of stage 'a' must have shape"):
        one.stage(0).run(x)


def test_what_was_recorded_is_what_stages_gave(fitted):
    _, _, trace, _ = fitted
    assert trace.features.shape == (600, 3, 2)
    assert np.isfinite(trace.loss(2)).all()
