from pathlib import Path

import pytest

from offramp._core.errors import FileFormatError, InputError
from offramp.cli.config import load_config


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


GOOD = """
[data]
kind = "digits"
splits = { fit = 0.5, calibrate = 0.25, test = 0.25 }
[[stage]]
name = "small"
model = "small_cnn"
[[stage]]
name = "large"
model = "resnet20"
"""


def test_a_small_file_is_enough_and_defaults_are_filled_in(tmp_path):
    config = load_config(write(tmp_path, GOOD), needs=("data", "stage"))
    assert [stage.name for stage in config.stage] == ["small", "large"]
    assert config.data.splits == {"fit": 0.5, "calibrate": 0.25, "test": 0.25}
    assert (config.cascade.edges, config.cost.unit, config.fit.policy) == (
        "full",
        "flops",
        ["weighted"],
    )


def test_all_problems_are_named_at_once_with_their_place(tmp_path):
    path = write(
        tmp_path,
        """
[data]
kind = 3
splits = { fit = -1, tset = 0.5 }
[[stage]]
name = "a"
model = "small_cnn"
[[stage]]
model = "resnet20"
wieghts = "w.npz"
weights = "nowhere.npz"
normalise = { mean = "x" }
[cascade]
edges = [["a"]]
[fitt]
[fit]
max_loss = 2.0
risk = "excees"
[cost]
batch_size = 0
""",
    )
    with pytest.raises(InputError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path} has {len(lines) - 1} problems:"
    wanted = {
        "data.kind": "got 3",
        "data.splits.fit": "got -1",
        "data.splits.tset": "'tset'",
        "stage[1].name": "is missing",
        "stage[1].wieghts": "Did you mean 'weights'?",
        "stage[1].weights": str(tmp_path / "nowhere.npz"),
        "stage[1].normalise.mean[0]": "got 'x'",
        "cascade.edges": "pairs of stage names, got [['a']]",
        "fitt": "Did you mean 'fit'?",
        "fit.max_loss": "got 2.0",
        "fit.risk": "got 'excees'",
        "cost.batch_size": "got 0",
    }
    for place, text in wanted.items():
        assert any(line.startswith(f"  {place}") and text in line for line in lines), (place, lines)
    assert len(lines) - 1 == len(wanted)


def test_contradictions_between_sections_are_found(tmp_path):
    text = GOOD + (
        '[[stage]]\nname = "small"\nmodel = "resnet8"\n[cascade]\nedges = [["small", "larg"]]\n'
        '[fit]\nreference = "huge"\nmax_loss = 0.1\nmax_cost = 0.5\n[cost]\nunit = "usd"\n'
        "given = { small = 1.0, tiny = 2.0 }\n"
    )
    with pytest.raises(InputError) as caught:
        load_config(write(tmp_path, text))
    said = str(caught.value)
    for problem in (
        "stage[2].name: 'small' is the name of an earlier stage",
        "cascade.edges[0]: there is no stage 'larg'",
        "fit.reference: there is no stage 'huge'",
        "fit.max_cost: give either",
        "cost.given.tiny: there is no stage 'tiny'",
        "cost.given: stage 'large' has no cost",
    ):
        assert problem in said


def test_a_unit_that_cannot_be_measured_needs_given_costs(tmp_path):
    with pytest.raises(InputError, match=r"cost\.unit: 'usd' cannot be measured"):
        load_config(write(tmp_path, '[cost]\nunit = "usd"\n'))


def test_sections_that_a_command_needs_are_asked_for(tmp_path):
    with pytest.raises(InputError, match=r"has 2 problems(.|\n)*data: this section is missing"):
        load_config(write(tmp_path, ""), needs=("data", "stage"))


@pytest.mark.parametrize("text", ["a = [", "\xff", "[fit]\n[fit]\n"])
def test_a_file_that_is_no_toml_is_named(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FileFormatError, match=r"run\.toml cannot be read as TOML"):
        load_config(path)
    with pytest.raises(FileFormatError, match=r"other\.toml is missing"):
        load_config(tmp_path / "other.toml")


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "w.npz").touch()
    write(
        tmp_path / "deep",
        '[[stage]]\nname = "a"\nmodel = "m"\nweights = "w.npz"\n[output]\ndir = "x"\n',
    )
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("deep/run.toml"))
    assert Path(config.stage[0].weights) == (tmp_path / "deep" / "w.npz").resolve()
    assert Path(config.output.dir) == (tmp_path / "deep" / "x").resolve()
