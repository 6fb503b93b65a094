"""One bundle and one server for all tests of a folder that do not change them."""

import pytest

from support.served import make_bundle, running


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("served") / "net")


@pytest.fixture(scope="session")
def client(bundle):
    with running({"net": bundle}) as client:
        yield client
