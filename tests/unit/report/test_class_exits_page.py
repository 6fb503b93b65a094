"""The page about designed exits: every figure of the mapping is on it, and nothing is fetched."""

import copy
import re

import pytest

from offramp._core.errors import FileFormatError, InputError
from offramp.drawing import GainBar, LayerTime, gain_figure, layer_figure
from offramp.report import Reproduction, write_class_exits_report

PAPER = {
    "gain": 2.718,
    "loss": 1.0123,
    "beta": 0.911,
    "eta": 0.822,
    "accuracy_rest": 0.933,
    "accuracy_exit": 0.944,
    "accuracy_class": 0.855,
    "precision": 0.611,
    "precision_baseline": 0.888,
}
SYSTEM = {
    "n": 200,
    "accuracy": 0.7654,
    "accuracy_baseline": 0.7712,
    "recalls": [0.7, 0.83],
    "recalls_baseline": [0.71, 0.8325],
    "sizes": [100, 100],
    "times": [5.0, 10.0],
    "time_baseline": 10.0,
    "missed": [21, 17],
    "missed_baseline": [29, 17],
}
ROW = {
    "paper": PAPER,
    "system": SYSTEM,
    "gains": {"cat": 1.357},
    "gain_intervals": {"cat": [1.21, 1.49]},
    "loss": 0.9876,
    "loss_interval": [0.97, 1.0],
    "accuracy_change": -0.0058,
    "accuracy_change_interval": [-0.012, 0.001],
    "worst_recall": 0.0321,
    "worst_class": "dog",
    "worst_recall_interval": [0.01, 0.05],
}
TIMES = {"time": -0.1, "time_true": 0.6, "others": 1.01, "others_true": 0.99}
TABLE = {
    "unit": "flops",
    "baseline": 10.0,
    "thresholds": [0.95, 1.0],
    "points": ["relu", "layer1"],
    "table2": [
        {"class": "cat", "keep_previous": False, "viable": False},
        {
            "class": "cat",
            "keep_previous": True,
            "viable": True,
            "point": "layer1",
            "threshold": 0.951,
            "rows": {"fit": ROW, "test": ROW},
        },
    ],
    "layers": [
        {
            "class": "cat",
            "point": "layer1",
            "keep_previous": True,
            "threshold": 0.951,
            "on_front": True,
            "splits": {"fit": TIMES, "test": TIMES},
        }
    ],
}
TABLE |= {
    "table3": TABLE["table2"][1:],
    "table4": [
        {
            "class": "cat",
            "point": "layer1",
            "threshold": 0.951,
            "splits": {
                split: {"missed": [21, 17], "missed_baseline": [29, 17], "errors": [30, 17]}
                for split in ("fit", "test")
            },
        }
    ],
    "best": TABLE["layers"],
}
EXIT = {
    "outcome": "exit",
    "refuted": 3,
    "exits": [
        {
            "class": "cat",
            "point": "layer1",
            "keep_previous": True,
            "reads": ["relu", "layer1"],
            "what": "branch",
            "threshold": 0.973,
        }
    ],
    "rows": {"fit": ROW, "calibrate": ROW, "test": ROW},
}


@pytest.fixture
def design():
    return copy.deepcopy(
        {
            "format": "offramp-class-exits",
            "version": 1,
            "unit": "flops",
            "batch_size": 1,
            "class_names": ["cat", "dog"],
            "targets": ["cat", "dog"],
            "requirements": {
                "constraints": "strict",
                "thresholds": [0.5, 1.0],
                "tolerance": 0.005,
                "precision_floor": 0.0,
                "select": "saved",
            },
            "branches": 42,
            "heads": 3,
            "examples": {"fit": 200, "calibrate": 100, "test": 200},
            "classes": [
                {"class": "cat", **EXIT},
                {"class": "dog", "outcome": "no viable exit", "reason": "<b>too hard</b>"},
            ],
            "together": None,
            "everyone": {**EXIT, "exits": [{**EXIT["exits"][0], "class": None}]},
            "tables": [TABLE],
        }
    )


def written(tmp_path, design):
    how = Reproduction(commands=("offramp class-exits --class cat",))
    path = write_class_exits_report(tmp_path / "d.html", design, title="Cats", reproduction=how)
    return path.read_text(encoding="utf-8")


def test_the_paper_s_figures_and_the_honest_ones_stand_side_by_side(tmp_path, design):
    text = written(tmp_path, design)
    rows = re.findall(r"<tr><th scope=\"row\">cat.*?</tr>", text, flags=re.DOTALL)
    of_table3 = [row for row in rows if "0.888" in row]
    assert len(of_table3) == 2  # validation and test
    for figure in (
        "2.72\N{MULTIPLICATION SIGN}",
        "1.012",
        "0.911",
        "0.822",
        "0.933",
        "0.944",
        "0.855",
        "0.611",
    ):
        assert all(figure in row for row in of_table3)
    for honest in (
        "1.36\N{MULTIPLICATION SIGN}",
        "0.988",
        "\N{MINUS SIGN}0.58",
        "\N{MINUS SIGN}3.21",
    ):
        assert all(honest in row for row in of_table3)
    assert "Which figure to believe" in text
    assert "1.21 to 1.49" in text
    assert "77.1" in text
    assert "76.5" in text
    assert "-17.39" in text  # table 4: 38 of 46
    assert "+2.17" in text  # 47 wrong answers of the complete system
    assert "no viable exit" in text
    assert "&lt;b&gt;too hard" in text
    assert "<script" not in text
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)


def test_a_formula_that_has_broken_down_is_called_broken(tmp_path, design):
    row = copy.deepcopy(ROW)
    row["paper"]["gain"] = None
    design["classes"][0]["rows"] = dict.fromkeys(("fit", "calibrate", "test"), row)
    assert ">broken</td>" in written(tmp_path, design)


def test_a_design_without_any_exit_says_so(tmp_path, design):
    design["classes"] = design["classes"][1:]
    design["everyone"] = {"outcome": "no viable exit", "reason": "nothing helps"}
    nobody = [{"class": "dog", "keep_previous": True, "viable": False}]
    empty = {"table2": nobody, "table3": nobody, "table4": [], "layers": [], "best": []}
    design["tables"] = [{**TABLE, **empty}]
    text = written(tmp_path, design)
    assert "run the network alone" in text
    assert "nothing helps" in text
    assert "<figure>" not in text


def test_what_is_no_design_is_refused(tmp_path, design):
    with pytest.raises(InputError, match=r"must end in \.html"):
        write_class_exits_report(tmp_path / "d.pdf", design, title="x")
    with pytest.raises(FileFormatError, match="got format None, version None"):
        write_class_exits_report(tmp_path / "d.html", {}, title="x")
    del design["classes"][0]["rows"]["test"]
    with pytest.raises(FileFormatError, match="lacks something"):
        write_class_exits_report(tmp_path / "d.html", design, title="x")
    assert not (tmp_path / "d.html").exists()


@pytest.mark.parametrize("narrow", [False, True])
def test_each_class_has_a_panel_and_each_exit_a_bar(narrow):
    exits = [
        LayerTime(of=name, layer=k, keep_previous=bool(k % 2), **TIMES)
        for name in ("a", "b", "c")
        for k in (1, 2)
    ]
    for against in ("layer", "others"):
        figure = layer_figure(exits, against=against, narrow=narrow)
        assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b", "c"]
    bars = [
        GainBar(name="a 1", first=True, gain=None, gain_true=1.5, loss=1.01),
        GainBar(name="a 2", first=False, gain=2.0, gain_true=1.2, loss=0.99),
    ]
    (axes,) = gain_figure(bars, narrow=narrow).axes
    assert [round(1 + bar.get_width(), 6) for bar in axes.patches] == [1.5, 1.2]
    for empty in (lambda: layer_figure([]), lambda: gain_figure([])):
        with pytest.raises(InputError, match="needs at least one exit, got none"):
            empty()
