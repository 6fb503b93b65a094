"""Ray Serve has a mode for throughput, in which a replica routes in its own event loop alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray


@pytest.mark.timeout(300)
def test_the_application_runs_where_ray_is_told_to_favor_throughput(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'offramp[ray]'")
    smoke = Path(__file__).with_name("test_ray_smoke.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(smoke)],
        env={**os.environ, "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 passed" in done.stdout
