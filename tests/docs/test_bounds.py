"""The lowest versions that are allowed are those that `make test-oldest` runs."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
#: The extras whose packages the fast tests run.
EXTRAS = ("parquet", "onnx", "openvino", "fabric", "sklearn", "services", "serve")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RANGES = [
    Requirement(line)
    for lines in (
        PROJECT["dependencies"],
        *(PROJECT["optional-dependencies"][extra] for extra in EXTRAS),
    )
    for line in lines
]


def pinned() -> dict[str, Version]:
    text = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")
    lines = re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.MULTILINE)
    return {name: Version(version) for name, version in lines}


@pytest.mark.parametrize("allowed", RANGES, ids=lambda allowed: allowed.name)
def test_the_lowest_version_of_a_range_is_the_one_that_is_run(allowed):
    (bound,) = allowed.specifier
    assert bound.operator == ">="
    assert pinned()[allowed.name] == Version(bound.version)


def test_what_runs_at_its_lowest_version_has_a_range():
    named = {allowed.name for allowed in RANGES}
    extra = set(pinned()) - named
    assert not extra, f"no range in pyproject.toml says why {sorted(extra)} are held"
