"""A first stage that answers nothing: bundles keep it; files and runtimes refuse it by name."""

import numpy as np
import pytest
import torch
from tests.support import signals

import offramp
from offramp._core.errors import InputError, UnsupportedError
from offramp.models import ModelSpec
from offramp.stages import Stage
from offramp.trace import from_losses

ROWS = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
FORMS = {"length": "signals", "small": "features", "large": "features"}


@pytest.fixture(scope="module")
def model():
    stages = []
    for name, form in FORMS.items():
        kind = "Length" if form == "signals" else "Regression"
        spec = ModelSpec(name=f"tests.support.signals:{kind}")
        stages.append(Stage(name, getattr(signals, kind)(), outputs=form, spec=spec))
    cascade = offramp.Cascade(stages)
    said = {stage.name: stage.run(ROWS)[0].features for stage in stages}
    hard = ROWS.abs().mean(dim=1).numpy()
    rng = np.random.default_rng(0)
    lost = {"small": (hard * rng.uniform(size=600) / 2).clip(0, 1), "large": hard * 0.05}
    costs = {"length": 0.0, "small": 1.0, "large": 5.0}
    trace = from_losses({"length": None, **lost}, features=said, costs=costs, unit="usd")
    choice = offramp.fit(trace, "learned", progress=False).best(max_cost=0.6)
    assert choice.candidate.policy.topology.active[0] == 0  # it is routed by the length
    return offramp.Adaptive(cascade, choice, costs=trace.costs)


def test_a_bundle_of_it_answers_as_before(model, tmp_path):
    offramp.save(model, tmp_path / "bundle", input_shape=(8,))
    again = offramp.load(tmp_path / "bundle", allow_import=True)
    one, other = model(ROWS), again(ROWS)
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.path, other.path)
    assert torch.equal(one.cost, other.cost)
    assert again.cascade.stage("length").silent
    assert again.reference(ROWS[:2]).values.shape == (2, 2)


def test_files_and_other_runtimes_refuse_it_by_name(model, tmp_path):
    with pytest.raises(InputError, match="Stage 'length' answers with features"):
        offramp.export_onnx(model, tmp_path / "model.onnx", example=ROWS[:2])
    with pytest.raises(UnsupportedError, match="Stage 'length' gives signals; other runtimes"):
        offramp.compile(model, ROWS[:8], backend="folded", batch_sizes=[1], rounds=1)
    fast = offramp.compile(model, ROWS[:8], batch_sizes=[1], rounds=1, progress=False)
    assert torch.equal(fast(ROWS).values, model(ROWS).values)
