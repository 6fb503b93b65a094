"""Numbers in tables of pages follow from the files of results that their rows link to.

The last cell of such a row is a link to a file in benchmarks/results and a comment, which readers
do not see, with a key of that file for each number of the row: `a.b` is a key in a key or a place
in a list, `1-a` what is left of 1. "points" and "%" are hundredths.
"""

import json
import re
from pathlib import Path

import matplotlib
import pytest

from offramp.drawing import save_figure

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/start/measured.md", "docs/compare.md"]
ROW = re.compile(r"^\| (.+?) \| \[[\w ]+\]\((\S+/results/\S+\.json)\) (?:<!-- (.+?) --> )?\|$")
NUMBER = re.compile(r"([+-]?\d+(?:\.(\d+))?)( points| %| times| seconds)?")


def rows(page):
    """What stands before the link, the file, and the keys, of each row that has one."""
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if match := ROW.match(line):
            cells, target, keys = match.groups()
            yield re.split(r" ?\| ?", cells), (ROOT / page).parent / target, (keys or "").split()


def value_of(path, key):
    complement, key = key.startswith("1-"), key.removeprefix("1-")
    value = json.loads(path.read_text(encoding="utf-8"))
    for name in key.split("."):
        value = value[int(name) if isinstance(value, list) else name]
    return 1 - value if complement else value


def wrong(cells, path, keys):
    """Numbers of a row that are not those of the file, as (shown, measured)."""
    shown = [match for cell in cells if (match := NUMBER.fullmatch(cell))]
    assert len(shown) == len(keys) > 0, f"{len(shown)} numbers and the keys {keys} in {cells}"
    found = []
    for match, key in zip(shown, keys, strict=True):
        number, decimals, unit = match.groups()
        value = value_of(path, key) * (100 if unit in (" points", " %") else 1)
        if abs(float(number) - value) > 0.5 * 10 ** -len(decimals or "") + 1e-9:
            found.append((match[0], value))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_numbers_of_a_page_follow_from_its_files(page):
    each = list(rows(page))
    assert len(each) >= 5
    for cells, path, keys in each:
        assert wrong(cells, path, keys) == [], cells[0]


@pytest.mark.parametrize("page", PAGES)
def test_no_row_with_a_file_is_overlooked(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    linked = [line for line in text.splitlines() if line.startswith("|") and "/results/" in line]
    assert len(linked) == len(list(rows(page)))


def test_the_comparison_can_fail():
    path = ROOT / "benchmarks" / "results" / "selection_cifar10.json"
    assert wrong(["x", "0.384", "+0.34 points"], path, ["cost_ratio", "difference"]) == []
    assert wrong(["x", "0.385"], path, ["cost_ratio"])
    assert wrong(["x", "-0.34 points"], path, ["difference"])
    assert wrong(["x", "0.616"], path, ["1-cost_ratio"]) == []
    with pytest.raises(AssertionError, match="1 numbers"):
        wrong(["x", "0.384"], path, ["cost_ratio", "difference"])


def test_the_picture_of_the_readme_is_drawn_from_its_results(tmp_path):
    pinned = re.search(r"^matplotlib==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if matplotlib.__version__ != pinned[1]:
        pytest.skip("another matplotlib draws other bytes")
    space = {"__name__": "draw_frontier", "__file__": str(ROOT / "tools" / "draw_frontier.py")}
    exec((ROOT / "tools" / "draw_frontier.py").read_text(encoding="utf-8"), space)
    results = json.loads(space["RESULTS"].read_text(encoding="utf-8"))
    save_figure(space["drawn"](results), tmp_path / "again.svg")
    drawn = (tmp_path / "again.svg").read_bytes()
    assert drawn == space["PICTURE"].read_bytes(), "run python tools/draw_frontier.py"
