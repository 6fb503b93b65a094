import json

import pytest

from offramp._core.errors import FileFormatError, InputError
from offramp._core.schema import from_json, to_json
from offramp.evaluation import Frontier, fit
from offramp.project.folder import (
    MARKER,
    RunFolder,
    check_replaceable,
    choice_to_dict,
    choose_again,
)
from offramp.trace import make_trace


@pytest.fixture(scope="module")
def frontier():
    return fit(make_trace(400, stages=2, seed=0), "threshold", combines=["last"], progress=False)


def test_a_frontier_comes_back_from_json_as_it_was(frontier, tmp_path):
    text = json.dumps(to_json(frontier), allow_nan=False)
    again = from_json(Frontier, json.loads(text))
    assert to_json(again) == to_json(frontier)


@pytest.mark.parametrize("limit", [{"max_drop": 0.03}, {"max_cost": 0.6}])
def test_the_choice_can_be_made_again_from_the_files(frontier, tmp_path, limit):
    choice = frontier.cheapest(**limit) if "max_drop" in limit else frontier.best(**limit)
    path = tmp_path / "chosen.json"
    path.write_text(json.dumps(choice_to_dict(choice)))
    again = from_json(Frontier, json.loads(json.dumps(to_json(frontier))))
    assert to_json(choose_again(again, path)) == to_json(choice)


def test_a_margin_is_kept(frontier, tmp_path):
    choice = frontier.cheapest(max_drop=0.03, margin=3.0)
    assert to_json(choice) != to_json(frontier.cheapest(max_drop=0.03))
    path = tmp_path / "chosen.json"
    path.write_text(json.dumps(choice_to_dict(choice, margin=3.0)))
    assert to_json(choose_again(frontier, path)) == to_json(choice)


@pytest.mark.parametrize("value", [{}, {"reference": "a", "points": [{}], "singles": []}])
def test_a_foreign_frontier_is_refused_by_name(value, tmp_path):
    with pytest.raises(FileFormatError, match=r"frontier\.json has [1-9] problems? as a frontier"):
        from_json(Frontier, value, where=tmp_path / "frontier.json")


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty and no run"):
        RunFolder.claim(tmp_path)
    with pytest.raises(InputError, match=r"not only a run of offramp: it holds 'thesis\.txt'"):
        check_replaceable(tmp_path, "offramp demo")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match="must be a folder"):
        RunFolder.claim(tmp_path / "thesis.txt")


def test_a_file_that_we_did_not_write_keeps_a_run_from_being_replaced(tmp_path):
    run = RunFolder.claim(tmp_path / "run")
    run.remember(command="offramp demo --seed 0")
    run.write("frontier.json", {})
    assert check_replaceable(tmp_path / "run", "offramp demo")
    (tmp_path / "run" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds 'notes\.txt'"):
        check_replaceable(tmp_path / "run", "offramp demo")
    assert RunFolder.claim(tmp_path / "run").facts["files"] == ["frontier.json"]


def test_claiming_writes_nothing(tmp_path):
    RunFolder.claim(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [({"format": "x"}, "does not describe"), ({"version": 99}, "newer version")],
)
def test_a_marker_that_is_not_ours_is_refused(tmp_path, value, said):
    (tmp_path / MARKER).write_text(json.dumps({"format": "offramp-run", "files": [], **value}))
    with pytest.raises(FileFormatError, match=said):
        RunFolder.open(tmp_path)
