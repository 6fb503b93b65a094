"""One split and one server for all tests that change neither."""

import pytest

from offramp.edge import split
from support.served import cascade_of, inputs_of, model_of, running


@pytest.fixture(scope="session")
def model():
    return model_of(cascade_of())


@pytest.fixture(scope="session")
def made(model, tmp_path_factory):
    """A split of two small networks."""
    path = tmp_path_factory.mktemp("split") / "made"
    offline = {"accuracy": 0.9, "at_least": 0.85, "delta": 0.1, "n": 500}
    return split(model, path, device=["small"], example=inputs_of(1), offline=offline)


@pytest.fixture(scope="session")
def cloud(made):
    with running({"cloud": made.path / "cloud"}) as server:
        yield server
