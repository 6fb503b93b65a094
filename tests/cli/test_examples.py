"""The examples run as they are, each in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def test_there_are_examples_and_they_are_short():
    assert len(EXAMPLES) >= 3
    assert all(len(path.read_text().splitlines()) < 80 for path in EXAMPLES)


def runs(path):
    """The newcomer's session is the README's, whose block runs in `make test`: make test-slow."""
    marks = {"newcomer_session": [pytest.mark.slow], "on_ray": [pytest.mark.ray]}
    return pytest.param(path, id=path.stem, marks=marks.get(path.stem, []))


@pytest.mark.parametrize("path", [runs(path) for path in EXAMPLES])
def test_an_example_runs_and_says_something(path, tmp_path):
    strict = ["-W", "error"]
    if path.stem == "on_ray":
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'offramp[ray]'")
        strict = []  # Ray warns of itself
    done = subprocess.run(
        [sys.executable, *strict, str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d", done.stdout)
    assert not list(tmp_path.iterdir())
