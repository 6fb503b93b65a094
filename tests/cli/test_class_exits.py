"""A shell session that designs exits of classes: the sweep, the choice, the bundle, the page."""

import io
import json
import shutil
from contextlib import redirect_stdout

import numpy as np
import pytest

from offramp.bundle import load, read_manifest
from offramp.cli import main
from offramp.project.build import dataset_of
from offramp.project.config.config import load_config

CLASS_EXITS = """
[class_exits]
classes = ["2", 6]
tolerance = 0.03
thresholds = [0.5, 1.0]
epochs = 10
"""


@pytest.fixture(scope="module")
def project(one_network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("class_exits")
    shutil.copy(one_network / "net.safetensors", folder)
    text = (one_network / "exits.toml").read_text()
    (folder / "class_exits.toml").write_text(text + CLASS_EXITS)
    return folder


@pytest.fixture(scope="module")
def told(project):
    """What the command says; it leaves a run beside its configuration."""
    with redirect_stdout(io.StringIO()) as out:
        assert main(["class-exits", "--config", str(project / "class_exits.toml")]) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def designed(project, told):
    return project


@pytest.fixture
def copied(designed, tmp_path):
    """A folder of its own for a test that designs again."""
    return shutil.copytree(designed, tmp_path / "copied")


def test_the_design_is_written_with_honest_figures_beside_the_formula_s(designed, told):
    assert "Believe `gain`" in told
    lines = [line for line in told.splitlines() if not line.startswith("Written: ")]
    assert max(map(len, lines)) < 80
    said = json.loads((designed / "run" / "class_exits.json").read_text())
    assert said["targets"] == ["2", "6"]
    assert (said["branches"], said["heads"]) == (80, 0)
    for one in said["classes"]:
        assert one["outcome"] == "exit"
        row = one["rows"]["calibrate"]["system"]
        fallen = np.array(row["recalls_baseline"]) - np.array(row["recalls"])
        assert fallen.max() <= 0.03 + 1e-9
        assert one["rows"]["fit"]["gains"][one["class"]] > 1
    assert [table["unit"] for table in said["tables"]] == ["flops", "seconds"]
    for table in said["tables"]:
        assert [row["class"] for row in table["table3"]] == ["2", "6"]


def test_a_bundle_of_one_class_runs_without_permission_to_import(run, copied, tmp_path):
    config = copied / "class_exits.toml"
    found = run(
        "class-exits", "--config", config, "--class", "6", "--bundle", tmp_path / "b", "--json"
    )
    assert found.code == 0, found.err
    said = json.loads(found.out)
    assert said["targets"] == ["6"]
    loaded = load(tmp_path / "b")
    part = dataset_of(load_config(config)).subset("test")
    answers = loaded(part.inputs)
    right = (answers.labels == part.labels).float().mean().item()
    assert right == pytest.approx(said["classes"][0]["rows"]["test"]["system"]["accuracy"])
    assert (answers.stage == 0).float().mean().item() > 0.02


def test_several_classes_share_one_cascade(run, copied, tmp_path):
    config = copied / "class_exits.toml"
    refused = run("class-exits", "--config", config, "--bundle", tmp_path / "b")
    assert refused.code == 2
    assert "there are 2 classes: name one with --class" in refused.err
    found = run(
        "class-exits", "--config", config, "--together", "--bundle", tmp_path / "b", "--json"
    )
    assert found.code == 0, found.err
    together = json.loads(found.out)["together"]
    assert {leaf["class"] for leaf in together["exits"]} == {"2", "6"}
    assert len(read_manifest(tmp_path / "b").stages) == 3


@pytest.mark.slow  # tests/unit/train/test_design_sweep.py designs for some: make test-slow
def test_superclasses_are_designed_for(run, project, tmp_path):
    low, high = [str(k) for k in range(5)], [str(k) for k in range(5, 10)]
    groups = f"superclasses = {{ low = {low}, high = {high} }}\n"
    text = (project / "class_exits.toml").read_text().replace('classes = ["2", 6]\n', groups)
    config = project / "groups.toml"
    config.write_text(text.replace('dir = "run"', f'dir = "{tmp_path / "groups"}"'))
    found = run("class-exits", "--config", config, "--superclass", "low", "--json")
    assert found.code in (0, 3), found.err
    said = json.loads(found.out)
    assert (said["class_names"], said["targets"]) == (["low", "high"], ["low"])


def test_a_superclass_that_there_is_not_is_refused(run, project):
    wrong = run("class-exits", "--config", project / "class_exits.toml", "--superclass", "low")
    assert wrong.code == 2
    assert "has no superclasses to choose from" in wrong.err


def test_no_viable_exit_is_an_answer_with_its_own_exit_code(run, copied):
    never = (copied / "class_exits.toml").read_text().replace("[0.5, 1.0]", "[1.0, 1.0]")
    (copied / "never.toml").write_text(never)
    found = run("class-exits", "--config", copied / "never.toml", "--class", "8", "--tolerance", 0)
    assert found.code == 3
    assert "8: no viable exit. No branch makes the class '8' faster" in " ".join(found.out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "eleven"], "There is no class 'eleven'."),
        (["--class", "12"], "A class must be in [0, 10), got 12."),
        (["--tolerance", "2"], "--tolerance must be in [0, 1], got 2.0"),
        (["--constraints", "loose"], "--constraints input should be 'strict' or 'paper'"),
        (["--together", "--constraints", "paper"], "needs constraints 'strict', got 'paper'"),
    ],
)
def test_wrong_options_are_named(run, designed, arguments, message):
    found = run("class-exits", "--config", designed / "class_exits.toml", *arguments)
    assert found.code == 2
    assert message in found.err


def test_wrong_values_of_the_configuration_are_named(run, project):
    text = (project / "class_exits.toml").read_text()
    for old, new, message in (
        ("[0.5, 1.0]", "[0.0, 1.0]", "class_exits.thresholds: must be a range"),
        ("tolerance", "tolerence", "Did you mean 'tolerance'?"),
        (
            "epochs = 10",
            'together = true\nconstraints = "paper"',
            "class_exits.together: the paper's",
        ),
    ):
        (project / "wrong.toml").write_text(text.replace(old, new))
        found = run("class-exits", "--config", project / "wrong.toml")
        assert found.code == 2
        assert message in found.err


def test_the_report_of_a_run_with_a_design_shows_it(run, designed):
    found = run("report", designed / "run", "--json")
    assert found.code == 0, found.err
    page = (designed / "run" / "class_exits.html").read_text()
    assert json.loads(found.out)["class_exits"].endswith("class_exits.html")
    assert "Which figure to believe" in page
    assert "Table 4, test" in page
    assert "Figure 5, left" in page
