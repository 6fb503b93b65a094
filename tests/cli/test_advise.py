import json

import pytest

from offramp.cli.errors import NO_ANSWER, WRONG_INPUT
from offramp.trace import make_trace, save_trace


def test_advice_is_a_table_and_a_sentence(run, trace_path):
    found = run("advise", trace_path, "--max-drop", "0.03")
    assert found.code == 0, found.err
    assert "Yes: " in found.out
    assert "never differs from the reference" in found.out
    assert "400 examples" in found.out  # those of fit


def test_as_json_it_is_one_object(run, trace_path):
    found = run("advise", trace_path, "--risk", "negative_flips", "--json")
    value = json.loads(found.out)
    assert value["worth_it"] is True
    assert value["calibrate"] == 250
    assert value["at_best"]["examples_needed"] == 230


@pytest.mark.parametrize("kind", ["logits", "labels"])
def test_no_is_an_exit_code_of_its_own(run, tmp_path, kind):
    save_trace(make_trace(500, accuracies=[0.9, 0.9], kind=kind, seed=0), tmp_path / "t.trace")
    found = run("advise", tmp_path / "t.trace", "--max-drop", "0.05", "--reference", "stage1")
    assert found.code == NO_ANSWER
    assert "Run stage0 alone" in found.out


def test_percentages_are_explained(run, trace_path):
    found = run("advise", trace_path, "--max-drop", "5")
    assert found.code == WRONG_INPUT
    assert "max_drop must be in (0, 1), got 5.0. A percentage" in found.err
