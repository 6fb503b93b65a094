"""A stage that gives more numbers than a policy was fitted on: no number is taken for another."""

import json

import numpy as np
import pytest
import torch
from tests.support import signals
from torch import nn

import offramp
from offramp import Adaptive, Cascade, Policy, fit
from offramp._core.errors import InputError
from offramp._core.schema import from_json, to_json
from offramp._core.seal import sealed
from offramp.evaluation import evaluate_all, replay
from offramp.models import ModelSpec
from offramp.policy import Candidate, Feature, Linear, Node
from offramp.runtime import Executor
from offramp.stages import Stage
from offramp.trace import from_losses

N = 400
REFUSED = r"features must be those that the policy was fitted on, 2 of stage 'small', got {}\."


class Numbers(nn.Module):
    """How sure it is, and its answer; with more, something else stands before these."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x):
        return torch.cat([x[:, :1] * 0 + 7] * (self.count - 2) + [x], dim=1)[:, : self.count]


class Answer(nn.Module):
    def forward(self, x):
        return x[:, 1]


def cascade_of(count: int) -> Cascade:
    return Cascade.from_models({"small": Numbers(count), "large": Answer()}, outputs="features")


def trace_of(cascade, x):
    said = {stage.name: stage.run(x)[0].features for stage in cascade}
    hard = np.random.default_rng(0).uniform(size=len(x)) < 0.5 - x[:, 0].numpy() / 4
    lost = {"small": hard.astype(np.int64), "large": np.zeros(len(x), dtype=np.int64)}
    return from_losses(lost, features=said, costs={"small": 1.0, "large": 5.0}, unit="usd")


@pytest.fixture(scope="module")
def fitted():
    x = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
    cascade = cascade_of(2)
    trace = trace_of(cascade, x)
    points = [
        point
        for method in ("learned", "threshold")
        for point in fit(trace, method, progress=False).points
        if point.candidate.policy.topology.edges
    ]
    assert {point.candidate.method for point in points} >= {"learned", "threshold"}
    return x, trace, [point.candidate for point in points]


def test_what_was_fitted_knows_how_many_there_were(fitted):
    x, trace, candidates = fitted
    assert trace.feature_counts == (2, 1)
    for candidate in candidates:
        assert candidate.policy.feature_counts == (2, 1)
        again = from_json(Policy, to_json(candidate.policy), where="policy")
        assert again.feature_counts == (2, 1)
        model = Adaptive(cascade_of(2), candidate)
        assert model(x).stage.tolist() == replay(trace, candidate.policy).last.tolist()


@pytest.mark.parametrize("count", [1, 3, 5])
def test_other_numbers_are_refused_by_replay_and_runtimes(fitted, count):
    x, _, candidates = fitted
    for candidate in candidates:
        model, refused = Adaptive(cascade_of(count), candidate), REFUSED.format(count)
        for rows in (x, x[:1]):  # together, and alone
            with pytest.raises(InputError, match=refused):
                model(rows)
        with pytest.raises(InputError, match=refused), Executor(model) as executor:
            executor.future(x[:1]).result(timeout=60)
        other = trace_of(cascade_of(count), x)
        assert other.feature_counts == (count, 1)
        with pytest.raises(InputError, match=refused):
            replay(other, candidate.policy)
        with pytest.raises(InputError, match=refused):
            evaluate_all(other, [candidate])


def test_a_file_of_before_says_nothing_and_is_read(fitted, tmp_path):
    x, trace, candidates = fitted
    offramp.save_trace(trace, tmp_path / "new.trace")
    assert offramp.load_trace(tmp_path / "new.trace").feature_counts == (2, 1)
    manifest = tmp_path / "new.trace" / "trace.json"
    old = {k: v for k, v in json.loads(manifest.read_text()).items() if k != "feature_counts"}
    manifest.write_text(json.dumps(sealed({k: v for k, v in old.items() if k != "sha256"})))
    held = offramp.load_trace(tmp_path / "new.trace")
    assert held.feature_counts == (None, None)
    assert torch.equal(held.features, trace.features)
    stored = to_json(candidates[0].policy)
    assert stored.pop("feature_counts") == [2, 1]
    policy = from_json(Policy, stored, where="policy")
    assert policy.feature_counts == ()
    assert np.array_equal(replay(held, policy).path, replay(trace, candidates[0].policy).path)
    assert len(Adaptive(cascade_of(2), policy)(x)) == N


def test_one_stage_of_a_trace_keeps_its_count(fitted):
    _, trace, _ = fitted
    assert trace.only(["large"]).feature_counts == (1,)
    assert trace.output(1).features.shape == (N, 1)  # not what fills it up
    with pytest.raises(InputError, match=r"feature_counts must hold a number from 0 to 2 for each"):
        offramp.Trace(**{**vars_of(trace), "feature_counts": (3, 1)})


def vars_of(trace):
    return {name: getattr(trace, name) for name in type(trace).__dataclass_fields__}


def test_a_bundle_whose_network_gives_more_is_refused_when_it_runs(tmp_path, monkeypatch):
    stages = [
        Stage("length", signals.Length(), outputs="signals", spec=named("Length")),
        Stage("large", signals.Regression(), outputs="features", spec=named("Regression")),
    ]
    rows = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    leave = Node(Linear.threshold(Feature("value_0", 0), 100.0))
    cascade = Cascade(stages)
    policy = Policy(cascade.topology, {(0,): leave}, outputs="features", feature_counts=(1, 2))
    candidate = Candidate(policy=policy, method="mine", reference="large")
    offramp.save(Adaptive(cascade, candidate), tmp_path / "bundle", input_shape=(8,))
    read = offramp.load(tmp_path / "bundle", allow_import=True)
    assert read.policy.feature_counts == (1, 2)
    read(rows)
    monkeypatch.setattr(signals.Length, "forward", lambda self, x: x.abs()[:, :3])
    with pytest.raises(InputError, match="fitted on, 1 of stage 'length', got 3"):
        offramp.load(tmp_path / "bundle", allow_import=True)(rows)


def named(kind):
    return ModelSpec(name=f"tests.support.signals:{kind}")
