import json

import pytest

from offramp._core.errors import FileFormatError, InputError
from offramp._core.schema import from_json, to_json
from offramp.evaluation import Frontier, fit
from offramp.project.choose import choose
from offramp.project.config.sections import FitSection
from offramp.project.folder import (
    MARKER,
    RunFolder,
    candidate_from_file,
    check_replaceable,
)
from offramp.trace import make_trace


@pytest.fixture(scope="module")
def frontier():
    return fit(make_trace(400, stages=2, seed=0), "threshold", combines=["last"], progress=False)


def test_a_frontier_comes_back_from_json_as_it_was(frontier, tmp_path):
    text = json.dumps(to_json(frontier), allow_nan=False)
    again = from_json(Frontier, json.loads(text))
    assert to_json(again) == to_json(frontier)


@pytest.mark.parametrize(
    ("asked", "delta"),
    [
        ({"max_drop": 0.03, "delta": "none"}, None),
        ({"max_drop": 0.03}, 0.1),
        ({"max_drop": 0.001, "delta": 0.2}, 0.2),
        ({"max_cost": 0.6}, None),
        ({"max_cost": 0.6, "delta": 0.1, "risk": "negative_flips"}, 0.1),
        ({"max_cost": 0.9, "max_drop": 0.05}, 0.1),
    ],
)
def test_the_choice_is_read_from_the_folder_as_it_was_made(frontier, tmp_path, asked, delta):
    choice = choose(frontier, FitSection(**asked))
    assert choice.delta == delta
    run = RunFolder.claim(tmp_path / "run")
    run.write("chosen.json", to_json(choice))
    assert to_json(RunFolder.open(run.path).choice()) == to_json(choice)
    assert to_json(candidate_from_file(run.path)) == to_json(choice.candidate)


def test_a_choice_of_an_older_version_is_refused_and_its_candidate_read(frontier, tmp_path):
    candidate = frontier.points[0].candidate
    run = RunFolder.claim(tmp_path / "run")
    run.write("chosen.json", {"limit": {"max_drop": 0.02}, "candidate": to_json(candidate)})
    with pytest.raises(FileFormatError, match=r"chosen\.json was written by version 0\.1"):
        run.choice()
    assert to_json(candidate_from_file(run.path)) == to_json(candidate)


def test_a_margin_is_kept(frontier):
    kept, usual = (
        choose(frontier, FitSection(max_drop=0.04, delta="none", margin=margin))
        for margin in (3.0, None)
    )
    assert to_json(kept) == to_json(frontier.cheapest(max_drop=0.04, margin=3.0, delta=None))
    assert to_json(usual) == to_json(frontier.cheapest(max_drop=0.04, delta=None))
    assert to_json(kept) != to_json(usual)


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
