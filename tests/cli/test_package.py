"""What a wheel and a source distribution hold: whatever is read at run time, and no tests."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = """
from setuptools import build_meta
build_meta.build_wheel("out")
build_meta.build_sdist("out")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both, made of a copy: setuptools writes beside the sources."""
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools 77")
    place = tmp_path_factory.mktemp("package")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", place / "src", ignore=ignored)
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,), (source,) = (place / "out").glob("*.whl"), (place / "out").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file, tarfile.open(source) as other:
        return set(file.namelist()), {name.partition("/")[2] for name in other.getnames()}


def test_a_wheel_holds_every_file_of_the_package_that_git_knows(built):
    wheel, source = built
    inside = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "offramp").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside <= wheel
    assert {f"src/{name}" for name in inside} <= source


@pytest.mark.parametrize(
    "wanted", ["py.typed", ".html", ".css", ".mjs", ".npz", "words.tsv", "py", "README.md"]
)
def test_each_kind_of_file_is_among_them(built, wanted):
    assert any(name.startswith("offramp/") and name.endswith(wanted) for name in built[0])


def test_no_tests_go_along(built):
    for names in built:
        paths = [Path(name).parts for name in names]
        assert not [parts for parts in paths if parts[:1] == ("tests",) or "conftest.py" in parts]
    top = {name.partition("/")[0] for name in built[0]}
    assert {one for one in top if not one.endswith(".dist-info")} == {"offramp"}


def test_a_wheel_starts_the_program(built):
    assert any(name.endswith("entry_points.txt") for name in built[0])
