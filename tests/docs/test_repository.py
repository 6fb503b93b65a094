"""What the host of a repository reads: workflows run targets that exist, templates ask enough."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def asked(path):
    """The targets of make that a workflow runs, with those of its matrix."""
    for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        for step in job["steps"]:
            for word in step.get("run", "").removeprefix("make ").split():
                if word not in ("${{", "}}"):
                    yield from matrix["target"] if word == "matrix.target" else [word]


def test_workflows_run_the_targets_of_the_makefile_and_nothing_else():
    found = {target for path in WORKFLOWS for target in asked(path)}
    assert {"lint", "types", "imports", "unit", "docs", "test-docs", "wheel"} <= found <= TARGETS
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
            commands = [step["run"] for step in job["steps"] if "run" in step]
            assert all(command.startswith("make ") for command in commands)


def test_all_pythons_are_tested():
    held = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    stated = re.findall(r"Python :: (3\.\d+)", project)
    assert held["jobs"]["test"]["strategy"]["matrix"]["python-version"] == stated


@pytest.mark.parametrize("name", ["fault", "wish"])
def test_who_reports_is_asked_what_the_doctor_says(name):
    held = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text("utf-8"))
    labels = [part["attributes"]["label"] for part in held["body"]]
    assert any("`offramp doctor`" in label for label in labels)


def test_the_citation_can_be_read():
    held = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version"} <= held.keys()
