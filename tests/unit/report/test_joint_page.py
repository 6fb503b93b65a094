"""The page about a joint training: every figure of the mapping is on it, and nothing is fetched."""

import copy
import re

import numpy as np
import pytest

from offramp._core.errors import FileFormatError, InputError
from offramp.drawing import assignment_figure
from offramp.report import ExampleImage, Reproduction, write_joint_report

ROW = {
    "label": "joint, a -> b (cost_weight 0.1)",
    "cost_weight": 0.1,
    "cost": 5.5e6,
    "cost_ratio": 0.55,
}
JOINT = {
    "format": "offramp-joint",
    "version": 1,
    "unit": "flops",
    "reference": "b",
    "split": "test",
    "examples": 321,
    "top": 1,
    "cost_weights": [0.03, 0.1],
    "epochs": [13, 7],
    "given": False,
    "static": [
        {"name": "a", "cost": 2e6, "error": 0.2011, "together": [0.2077, 0.3]},
        {"name": "b", "cost": 1e7, "error": 0.1022, "together": [0.1, 0.12]},
    ],
    "chosen": {"cascade": True, **ROW, "error": 0.0933, "accuracy_drop": -0.0089},
    "frozen": {
        "cascade": True,
        "label": "stopping",
        "cost_weight": 0.03,
        "cost": 6.66e6,
        "cost_ratio": 0.666,
        "error": 0.1144,
        "accuracy_drop": 0.0122,
    },
    "curves": {
        "joint": [{**ROW, "error": 0.0933, "accuracy_drop": -0.0089}],
        "frozen": [{**ROW, "cost": 6.66e6, "error": 0.1144, "accuracy_drop": 0.0122}],
    },
    "assignment": {
        "stages": ["a", "b"],
        "share": [0.777, 0.223],
        "accuracy": [[0.951, 0.412], [0.962, 0.683]],
    },
    "outcome": "cascade",
    "sentence": "Use it.",
    "command": "offramp train joint --config x.toml",
}
IMAGE = ExampleImage(
    pixels=np.zeros((8, 8, 3), np.uint8),
    label="cat",
    visits=(("a", (("dog", 0.55), ("cat", 0.41))), ("b", (("cat", 0.98),))),
    exit_stage="b",
    correct=True,
    stops=(0.314, 1.0),
)


def written(tmp_path, joint=JOINT, images=(IMAGE,)):
    how = Reproduction(commands=("offramp train joint",))
    path = write_joint_report(
        tmp_path / "p.html",
        joint,
        title="T & t",
        images=images,
        reproduction=how,
        overwrite=True,
    )
    return path.read_text(encoding="utf-8")


def changed(**parts):
    value = copy.deepcopy(JOINT)
    value.update(parts)
    return value


def test_the_table_shows_static_networks_then_what_chooses(tmp_path):
    page = written(tmp_path).replace("\u00a0", " ")
    table = page[page.index("<tbody>") : page.index("</tbody>")]
    for text in ("20.11 %", "10.22 %", "9.33 %", "11.44 %", "55.0 %", "66.6 %", "5.5 M"):
        assert text in table
    assert "+0.89" in table  # points gained: the sign of the difference is turned
    names = re.findall(r'<th scope="row">([\w ]+)<', table)
    assert names == ["a", "b", "stopping networks only", "trained jointly"]
    assert 'class="marked"><th scope="row">trained jointly' in table


def test_the_figures_are_drawn_wide_and_narrow(tmp_path):
    page = written(tmp_path)
    for name in ("figure2-wide", "figure2-narrow", "figure4-wide", "figure4-narrow"):
        assert f'class="{name}"' in page
    assert "41.2" in page
    assert "millions of FLOPs per example" in page
    assert not re.search(r"<script|src=\"(?!data:)|href=\"http", page)
    assert "T &amp; t" in page


def test_errors_of_each_network_after_each_training_are_listed(tmp_path):
    page = written(tmp_path).replace("\u00a0", " ")
    assert "cost weight 0.03" in page
    assert "20.77 %" in page


def test_images_say_how_probable_stopping_was(tmp_path):
    page = written(tmp_path).replace("\u00a0", " ")
    assert "a, stops with 31 %" in page
    assert "b, stops with 100 %" in page
    assert "stops with" not in written(tmp_path, images=())


def test_networks_that_were_given_are_called_so(tmp_path):
    page = written(tmp_path, changed(given=True))
    assert "as given" in page
    assert "trained alone" not in page
    assert "13 passes" in written(tmp_path)


def test_a_refusal_says_what_to_run_instead(tmp_path):
    chosen = {**JOINT["chosen"], "cascade": False}
    joint = changed(outcome="do not cascade", chosen=chosen, sentence="Run b alone.")
    page = written(tmp_path, joint)
    assert "Do not cascade" in page
    assert "Run b alone." in page
    assert "<tr class=" not in page


def test_units_without_a_scale_are_shown_as_they_are(tmp_path):
    assert "seconds per example" in written(tmp_path, changed(unit="seconds"))


@pytest.mark.parametrize("lost", ["static", "assignment", "curves", "chosen", "sentence"])
def test_a_damaged_file_is_named(tmp_path, lost):
    joint = {name: value for name, value in JOINT.items() if name != lost}
    with pytest.raises(FileFormatError, match="lacks something"):
        write_joint_report(tmp_path / "p.html", joint, title="")
    assert not (tmp_path / "p.html").exists()


def test_other_files_and_endings_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match="got format None, version None"):
        write_joint_report(tmp_path / "p.html", {}, title="")
    with pytest.raises(InputError, match=r"p\.pdf"):
        write_joint_report(tmp_path / "p.pdf", JOINT, title="")


def test_the_field_shows_every_pair_and_a_dash_where_nobody_left():
    figure = assignment_figure(["a", "b"], [[0.9, None], [0.95, None]], [1.0, 0.0])
    field, bars = figure.axes
    assert [t.get_text() for t in field.texts] == ["90.0", "\u2013", "95.0", "\u2013"]
    assert [t.get_fontweight() for t in field.texts] == ["bold", "normal", "normal", "bold"]
    assert [round(b.get_width(), 3) for b in bars.patches] == [1.0, 0.0]


def test_a_field_of_other_shape_is_refused():
    with pytest.raises(InputError, match="a row of accuracy"):
        assignment_figure(["a", "b"], [[0.9], [0.9]], [0.5, 0.5])
    with pytest.raises(InputError, match="share"):
        assignment_figure(["a", "b"], [[0.9, 0.9]] * 2, [0.5])
    with pytest.raises(InputError, match="at least one stage"):
        assignment_figure([], [], [])


def test_stops_of_an_image_are_checked():
    given = {
        "pixels": np.zeros((2, 2), np.uint8),
        "label": "cat",
        "visits": (("a", (("cat", 1.0),)),),
        "exit_stage": "a",
        "correct": True,
    }
    with pytest.raises(InputError, match="each of the 1 visits, got 2"):
        ExampleImage(**given, stops=(0.5, 1.0))
    with pytest.raises(InputError, match=r"probability of stopping .* 1\.5"):
        ExampleImage(**given, stops=(1.5,))
