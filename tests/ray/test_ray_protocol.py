"""What tests/serve/test_protocol.py asks of `offramp serve`, asked of the application on Ray."""

import importlib.util
from pathlib import Path

import pytest

from support.served import Client, make_bundle

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(300),
]

_FILE = Path(__file__).parents[1] / "serve" / "test_protocol.py"
_SPEC = importlib.util.spec_from_file_location("protocol_of_a_server", _FILE)
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
globals().update({n: x for n, x in vars(_MODULE).items() if n.startswith("test_") or n == "model"})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("protocol") / "net")


@pytest.fixture(scope="module")
def client(cluster, bundle, free_port):
    from offramp.serve.ray import build_app
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": free_port})
    serve.run(build_app(bundle), name="protocol", route_prefix="/")
    yield Client(f"http://127.0.0.1:{free_port}", None)
    serve.shutdown()


def test_there_is_something_to_ask():
    assert sum(name.startswith("test_") for name in vars(_MODULE)) >= 10
