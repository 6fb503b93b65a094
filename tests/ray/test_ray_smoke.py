"""The one test of Ray that `make test` runs: the application starts, and answers as the model."""

import pytest

from offramp.bundle import load
from support.served import Client, inputs_of, make_bundle, same

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.timeout(300)
def test_the_application_answers_as_the_model(cluster, tmp_path, free_port):
    from offramp.serve.ray import app
    from ray import serve

    bundle = make_bundle(tmp_path / "net")
    serve.start(http_options={"host": "127.0.0.1", "port": free_port})
    # A deployment for each stage, so that something travels; other tests have stages in the front.
    serve.run(app({"bundle": str(bundle), "fuse": "none"}), name="smoke", route_prefix="/")
    ask, x = Client(f"http://127.0.0.1:{free_port}", None), inputs_of(40)
    outputs = ask.infer(x, id="q")
    same(x, outputs, load(bundle), [f"q/{k}" for k in range(len(x))])
    assert len(set(outputs["stage"])) == 2
    serve.shutdown()
