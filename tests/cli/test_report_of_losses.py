"""`offramp report` on tasks without classes: prices of each example, a stage without answers."""

import json

import numpy as np
import pytest

from offramp.cli import main
from offramp.trace import from_losses, save_trace


@pytest.mark.parametrize("graded", [True, False])
def test_a_page_of_losses_shows_scores(graded, tmp_path, capsys):
    drawn = np.random.default_rng(0)
    hard, words = drawn.uniform(size=900), drawn.integers(5, 200, 900)
    small, large = hard**2 * 0.8, hard**3 * 0.3
    if not graded:
        small, large = hard > 0.7, hard > 0.9
    trace = from_losses(
        {"length": None, "small": small, "large": large},
        features={"length": hard, "small": 1 - hard, "large": np.ones(900)},
        costs={"length": 0.0, "small": 1e-5 * words, "large": 2e-4 * words},
        unit="usd",
        split=np.array(["fit", "calibrate", "test"])[np.arange(900) % 3],
    )
    save_trace(trace, tmp_path / "trace")
    run = str(tmp_path / "run")
    assert main(["fit", str(tmp_path / "trace"), "--out", run, "--max-drop", "0.1"]) == 0
    assert main(["report", run]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "points of score, against large alone" in page
    assert "Score against cost" in page
    assert "new losses" in page
    assert "ccuracy" not in page.replace("accuracy_drop", "")
    assert ("oracle" in page.partition("How to read this")[0].lower()) is not graded
    assert ("right together" in page) is not graded
    told = json.loads((tmp_path / "run" / "report.json").read_text())
    assert told["test"]["unit"] == "usd"
    assert (told["overlap"] is None) is graded
    if not graded:
        assert told["overlap"]["stages"] == ["small", "large"]
    # the mean price of the test examples themselves, not of all
    alone = next(row for row in told["references"] if row["name"] == "large alone")
    assert alone["cost_ratio"] == pytest.approx(1.0)
