"""Figures: every series is drawn, labels do not cover one another, files are whole."""

import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offramp._core.errors import InputError
from offramp.drawing import (
    Curve,
    Point,
    frontier_figure,
    overlap_figure,
    save_figure,
    stage_figure,
)
from offramp.report.charts import frontier_curves, frontier_points

X = np.array([0.9, 0.2, 0.5])
Y = np.array([0.9, 0.8, 0.85])


def curves():
    kinds = ("random", "threshold", "learned_fit", "learned")
    return [
        Curve(name=f"line {kind}", kind=kind, cost_ratio=X, accuracy=Y + 0.01 * k)
        for k, kind in enumerate(kinds)
    ]


def points():
    names = {"static": ("tiny alone", "huge alone"), "chosen": ("chosen",)}
    names["oracle"] = ("paper oracle", "neutral oracle", "free oracle")
    pairs = [(kind, name) for kind in names for name in names[kind]]
    return [
        Point(name=name, kind=kind, cost_ratio=0.3 + 0.02 * k, accuracy=0.84 + 0.003 * k)
        for k, (kind, name) in enumerate(pairs)
    ]


def texts(figure):
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    return found + [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize("narrow", [False, True])
def test_the_frontier_figure_has_every_series_and_every_label(narrow):
    figure = frontier_figure(curves(), points(), reference_accuracy=0.9, narrow=narrow)
    (axes,) = figure.axes
    drawn = [line.get_xydata() for line in axes.lines]
    for curve in curves():
        order = np.argsort(curve.cost_ratio)
        expected = np.column_stack([curve.cost_ratio[order], curve.accuracy[order]])
        assert any(d.shape == expected.shape and np.allclose(d, expected) for d in drawn)
    for point in points():
        assert any(np.allclose(d, [[point.cost_ratio, point.accuracy]]) for d in drawn)
    written = texts(figure)
    assert {p.name for p in points()} <= set(written)
    assert {c.name for c in curves()} <= set(written)
    assert {"one network alone", "oracle (sees the labels)", "chosen point"} <= set(written)


def overlaps(figure):
    """Pairs of point labels that cover one another, by their drawn extents."""
    boxes = [
        (t.get_text(), t.get_window_extent())
        for t in figure.axes[0].texts
        if t.get_text() and t.get_text() != "accuracy, %"
    ]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    return [(a[0], b[0]) for a, b in pairs if a[1].overlaps(b[1])]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_labels_never_cover_one_another(narrow, seed):
    rng = np.random.default_rng(seed)
    crowd = [
        Point(name=f"network {k} alone", kind="static", cost_ratio=0.4 + 0.2 * rng.random(),
              accuracy=0.8 + 0.05 * rng.random())
        for k in range(9)
    ]  # fmt: skip
    assert overlaps(frontier_figure(curves(), crowd, narrow=narrow)) == []


def test_the_check_above_can_fail():
    figure = frontier_figure(curves(), points())
    labels = [t for t in figure.axes[0].texts if t.get_text() in ("chosen", "paper oracle")]
    for label in labels:
        label.xy, label.xyann = (0.5, 0.85), (0, 0)
    assert overlaps(figure)


def test_labels_stay_within_the_figure():
    figure = frontier_figure(curves(), points(), narrow=True)
    figure.draw_without_rendering()  # lays out the legend
    width, height = figure.canvas.get_width_height()
    for text in [*figure.axes[0].texts, *figure.legends[0].get_texts()]:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


def test_random_exits_do_not_stretch_the_axis():
    far = Curve(name="random", kind="random", cost_ratio=np.array([0.2, 9.0]),
                accuracy=np.array([0.8, 0.9]))  # fmt: skip
    assert frontier_figure([*curves(), far], points()).axes[0].get_xlim()[1] < 1
    assert frontier_figure([far], []).axes[0].get_xlim()[1] > 9


def test_costs_of_very_different_size_are_drawn_as_powers():
    near = points()
    assert frontier_figure(curves(), near).axes[0].get_xscale() == "linear"
    tiny = Point(name="tiny", kind="static", cost_ratio=0.001, accuracy=0.7)
    (axes,) = frontier_figure(curves(), [*near, tiny]).axes
    assert axes.get_xscale() == "log"
    assert "(log)" in axes.get_xlabel()
    assert axes.get_xlim()[0] < 0.001
    free = Point(name="free", kind="static", cost_ratio=0.0, accuracy=0.7)  # no logarithm
    assert frontier_figure(curves(), [*near, free]).axes[0].get_xscale() == "linear"


def test_nothing_to_draw_is_an_error():
    with pytest.raises(InputError, match="at least one curve or point, got none"):
        frontier_figure([], [])
    with pytest.raises(InputError, match="at least one subset, got none"):
        overlap_figure(["a"], [], [])


def test_unequal_lengths_are_an_error():
    with pytest.raises(InputError, match=r"accuracy must have shape \(3\), got \(2,\)"):
        Curve(name="a", kind="learned", cost_ratio=X, accuracy=Y[:2])
    with pytest.raises(InputError, match=r"useful_share must have shape \(2\), got \(1,\)"):
        stage_figure(["a", "b"], [0.5, 0.5], [1.0], [0.0, 0.0])
    with pytest.raises(InputError, match=r"shares must have shape \(1\), got \(2,\)"):
        overlap_figure(["a"], [["a"]], [0.5, 0.5])


@pytest.mark.parametrize("narrow", [False, True])
def test_the_stage_figure_prints_every_value(narrow):
    figure = stage_figure(
        ["a", "b"], [0.613, 0.387], [0.412, 0.301], [0.187, 0.0], decision_share=0.1, narrow=narrow
    )
    written = " ".join(texts(figure)).replace("\xa0", " ")
    for value in ("61.3 %", "38.7 %", "41.2 % + 18.7 %", "30.1 %", "10.0 %", "useful", "overhead"):
        assert value in written
    assert {"a", "b", "deciding"} <= set(texts(figure))
    widths = sorted(float(bar.get_width()) for axes in figure.axes for bar in axes.patches)
    expected = [0.613, 0.387, 0.412, 0.301, 0.0, 0.187, 0.0, 0.1]
    assert widths == pytest.approx(sorted(expected))


@pytest.mark.parametrize("narrow", [False, True])
def test_the_overlap_figure_has_a_row_for_each_subset(narrow):
    subsets = [("a", "b"), (), ("b",)]
    figure = overlap_figure(["a", "b"], subsets, [0.7, 0.2, 0.1], narrow=narrow)
    dots, bars = figure.axes
    assert [float(bar.get_width()) for bar in bars.patches] == [0.7, 0.2, 0.1]
    filled = [tuple(map(int, line.get_xdata())) for line in dots.lines[1::2]]
    assert filled == [(0, 1), (), (1,)]
    assert texts(figure)[:2] == ["a", "b"]
    assert ", none" in texts(figure)[3]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("s", [1, 2, 12])
def test_text_of_the_bar_figures_stays_inside(narrow, s):
    names = [f"a stage with a long name {k}" for k in range(s)]
    even = [1 / s] * s
    stage = stage_figure(names, even, [0.6 / s] * s, [0.4 / s] * s, narrow=narrow)
    subsets = overlap_figure(names, [names, names[:1], []], [0.9, 0.06, 0.04], narrow=narrow)
    for figure in (stage, subsets):
        width, height = figure.canvas.get_width_height()
        for text in (t for axes in figure.axes for t in axes.texts):
            box = text.get_window_extent()
            assert box.x0 >= -1
            assert box.x1 <= width + 1
            assert box.y0 >= -1
            assert box.y1 <= height + 1


@pytest.mark.parametrize(("method", "name"), [("learned", "learned"), ("threshold", "the front")])
def test_fit_and_test_are_told_apart(make_content, method, name):
    content = make_content()
    points = tuple(
        replace(p, candidate=replace(p.candidate, method=method)) for p in content.frontier
    )
    curves = frontier_curves(replace(content, frontier=points))
    assert {curve.kind: curve.name for curve in curves} == {
        "random": "random exits",
        "threshold": "thresholds (test)",
        "learned_fit": f"{name} (fit)",
        "learned": f"{name} (test)",
    }
    found = frontier_points(make_content())
    assert [p.kind for p in found] == ["static"] * 3 + ["oracle"] * 3 + ["chosen"]


def test_points_off_the_front_are_not_drawn(make_content):
    content = make_content()
    one = content.frontier[0]
    hidden = type(one)(candidate=one.candidate, fit=one.fit)
    drawn = frontier_curves(make_content(frontier=(*content.frontier[1:], hidden)))
    assert [len(c.cost_ratio) for c in drawn if c.kind == "learned_fit"] == [2]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_saved_figure_is_whole_and_always_the_same(tmp_path, ending):
    paths = [tmp_path / f"{k}.{ending}" for k in range(2)]
    for path in paths:
        save_figure(frontier_figure(curves(), points()), path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    if ending == "svg":
        assert ElementTree.fromstring(first).tag.endswith("svg")
        assert b"<text" not in first
    else:
        assert first.startswith(b"\x89PNG")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "figure.svg"
    path.write_text("old")
    figure = frontier_figure(curves(), points())

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="No space left"):
        save_figure(figure, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["figure.svg"]


def test_another_ending_is_refused():
    with pytest.raises(InputError, match=r"must be one of \['png', 'svg'\], got 'pdf'"):
        save_figure(frontier_figure(curves(), points()), Path("figure.pdf"))


def test_names_are_never_read_as_mathematics_nor_warned_about(tmp_path):
    names = ["$\\frac{", "_hidden", "模型", "a\nb"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        marked = [Point(name=n, kind="static", cost_ratio=0.5, accuracy=0.8) for n in names]
        line = Curve(name="$\\alpha", kind="learned", cost_ratio=X, accuracy=Y)
        figure = frontier_figure([line], marked)
        save_figure(figure, tmp_path / "a.svg")
        save_figure(stage_figure(names, [0.25] * 4, [0.25] * 4, [0.0] * 4), tmp_path / "b.svg")
        save_figure(overlap_figure(names, [names], [1.0]), tmp_path / "c.png")
    assert {"$\\frac{", "_hidden", "模型", "a b", "$\\alpha"} <= set(texts(figure))
