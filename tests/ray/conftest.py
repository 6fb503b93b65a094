"""A small cluster of Ray on this machine, for the tests of a file, and gone after them."""

import os
import socket
import warnings

import pytest


@pytest.fixture(scope="module")
def cluster():
    """Ray, started with two CPUs; what is asked of it counts, so nothing waits for want of them."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'offramp[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            num_cpus=8,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=200 * 2**20,
            logging_level="ERROR",
        )
        yield ray
        ray.shutdown()


@pytest.fixture
def run(capsys):
    """Runs the program in this process: its code, what it printed, and what it said of errors."""
    from types import SimpleNamespace

    from offramp.cli import main

    def call(*arguments):
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        caught = capsys.readouterr()
        return SimpleNamespace(code=code, out=caught.out, err=caught.err)

    return call


@pytest.fixture(scope="module")
def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]
