"""Models in MLflow: saved as code beside a bundle, logged, loaded and served."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tests.support import functions

import offramp
from offramp._core.errors import FileFormatError, UnknownNameError, UnsupportedError
from offramp.adapters import from_function
from offramp.models import ModelSpec, build
from offramp.policy import Candidate
from offramp.trace import make_trace

pytest.importorskip("mlflow", reason="mlflow is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # mlflow warns of its own type hints
    import mlflow

    import offramp.mlflow as flavor

pytestmark = pytest.mark.filterwarnings("ignore")  # mlflow and what it brings warn of themselves

SPECS = {
    f"stage{k}": ModelSpec(name="small_cnn", arguments={"width": 2 + k, "depth": 2, "classes": 4})
    for k in range(2)
}
IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = ["x" * k for k in (5, 15, 30)]


@pytest.fixture(scope="module")
def model():
    trace = make_trace(600, stages=2, classes=4, seed=0)
    frontier = offramp.fit(trace, "threshold", progress=False)
    networks = {name: build(spec) for name, spec in SPECS.items()}
    cascade = offramp.Cascade.from_models(networks, specs=SPECS)
    return offramp.Adaptive(cascade, frontier.cheapest(max_drop=0.05, delta=None))


@pytest.fixture(scope="module")
def of_texts():
    stages = {
        name: from_function(call, outputs="confidence", class_names=functions.NAMES)
        for name, call in (("rough", functions.rough), ("exact", functions.exact))
    }
    cascade = offramp.Cascade.from_models(stages)
    return offramp.Adaptive(cascade, Candidate.single(cascade.topology, "exact", reference="exact"))


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_registry_uri(f"sqlite:///{tmp_path}/mlflow.db")


def test_arrays_come_back_as_they_went(model, tmp_path):
    path = tmp_path / "saved"
    flavor.save_model(model, path)
    assert not list(path.rglob("*.pkl"))
    again = flavor.load_model(str(path))
    assert torch.equal(again(IMAGES).labels, model(IMAGES).labels)
    assert again.choice.sentence == model.choice.sentence
    found = mlflow.pyfunc.load_model(str(path)).predict(IMAGES.numpy())
    said = model(IMAGES)
    assert found["label"].tolist() == said.labels.tolist()
    assert found["confidence"].tolist() == pytest.approx(said.confidence.tolist())
    assert found["stage"].tolist() == [said.stage_names[k] for k in said.stage.tolist()]
    assert set(found["reason"]) <= {"policy", "last"}


def test_texts_are_logged_with_the_column_that_they_stand_in(of_texts, tracked):
    with mlflow.start_run():
        info = flavor.log_model(of_texts, "texts", column="text")
    with pytest.raises(UnsupportedError, match="not allowed here"):
        flavor.load_model(info.model_uri)
    again = flavor.load_model(info.model_uri, allow_import=True)
    assert again(ROWS).labels.tolist() == of_texts(ROWS).labels.tolist()
    config = {"allow_import": True}
    served = mlflow.pyfunc.load_model(info.model_uri, model_config=config)
    pandas = pytest.importorskip("pandas")
    for given in (ROWS, pandas.DataFrame({"id": [1, 2, 3], "text": ROWS})):
        assert served.predict(given)["label"].tolist() == ["short", "middle", "long"]
    with pytest.raises(UnknownNameError, match="There is no column 'text'"):
        served.predict(pandas.DataFrame({"txt": ROWS}))


def test_other_models_are_refused(tmp_path):
    class Other(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return model_input

    mlflow.pyfunc.save_model(tmp_path / "other", python_model=Other(), pip_requirements=[])
    with pytest.raises(FileFormatError, match="not of 'offramp'"):
        flavor.load_model(str(tmp_path / "other"))


def test_it_is_served(of_texts, tmp_path):
    flavor.save_model(of_texts, tmp_path / "saved", column="text")
    code = (
        "import json, sys, mlflow\n"
        "from fastapi.testclient import TestClient\n"
        "from mlflow.pyfunc.scoring_server import init\n"
        "served = mlflow.pyfunc.load_model(sys.argv[1], model_config={'allow_import': True})\n"
        "rows = [{'text': row} for row in json.loads(sys.argv[2])]\n"
        "said = TestClient(init(served)).post('/invocations', json={'dataframe_records': rows})\n"
        "print(said.text)\n"
    )
    there = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "saved"), json.dumps(ROWS)]
    paths = os.pathsep.join([str(Path.cwd()), *sys.path])
    done = subprocess.run(
        there, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, timeout=120
    )
    found = json.loads(done.stdout.splitlines()[-1])["predictions"]
    assert [row["label"] for row in found] == ["short", "middle", "long"], done.stderr
