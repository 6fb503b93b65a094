"""The examples run as they are, each in a process of its own."""

import ast
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def test_there_are_examples_and_they_are_short():
    assert len(EXAMPLES) >= 3
    assert all(len(path.read_text().splitlines()) < 80 for path in EXAMPLES)


#: Those that are marked, and why they may be.
MARKS = {
    "images": [pytest.mark.slow],  # the README's session, whose block runs in `make test`
    "class_exits": [pytest.mark.slow],  # as tests/unit/train does
    "text": [pytest.mark.slow],  # trains what `languages` does without
    "on_ray": [pytest.mark.ray],
}
NO_PICTURE = ("on_ray", "own_logits")


#: What an example takes, and what it says of one that is not there.
ARGUMENT = {"own_logits": "logits.npz must be a file that is there"}


def takes(path):
    """Whether an example takes an argument."""
    return path.stem != "on_ray"


def runs(path):
    return pytest.param(path, id=path.stem, marks=MARKS.get(path.stem, []))


def test_there_is_one_for_each_kind():
    kinds = {"images", "text", "tabular", "services", "languages", "class_exits", "serving"}
    assert kinds | {"edge_and_cloud"} <= {path.stem for path in EXAMPLES}


@pytest.mark.parametrize("path", [runs(path) for path in EXAMPLES])
def test_an_example_says_something_and_leaves_a_picture(path, tmp_path, pytestconfig):
    passed = pytestconfig.getoption("pythonwarnings") or []  # such as `make test-oldest` lets pass
    strict = ["-Werror", *(f"-W{kind}" for kind in passed)]
    if path.stem == "on_ray":
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'offramp[ray]'")
        strict = []  # Ray warns of itself
    given = [] if path.stem in NO_PICTURE else [str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *strict, str(path), *given],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d", done.stdout)
    left = [file.name for file in tmp_path.iterdir()]
    assert left == ([f"{path.stem}.png"] if given else [])
    for name in left:
        with Image.open(tmp_path / name) as image:
            assert len(image.convert("RGB").getcolors(1_000_000)) > 10  # something is drawn


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in EXAMPLES if takes(p)])
def test_what_is_not_there_is_told_in_one_line_before_anything_is_done(path, monkeypatch, tmp_path):
    """Its last block alone: imports take seconds, and what is done stands in `main`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), "nowhere"])
    last = ast.Module(ast.parse(path.read_text()).body[-1:], type_ignores=[])
    names = {"__name__": "__main__", "Path": Path, "sys": sys, "tempfile": tempfile}
    with pytest.raises(SystemExit) as ended:
        exec(compile(last, path.name, "exec"), names | {"main": pytest.fail})
    said = ARGUMENT.get(path.stem, "FOLDER must be a folder that is there")
    assert str(ended.value).startswith(f"{said}, got nowhere.")
    assert "eave it out" in str(ended.value)
    assert "\n" not in str(ended.value)
