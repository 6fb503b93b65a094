"""What a report says of exits: savings, reasons, other units, accuracy against depth."""

import json
from dataclasses import replace

import numpy as np
import pytest

from offramp._core import formatting
from offramp._core.errors import InputError
from offramp._core.schema import to_json
from offramp.drawing import SavedSeries, savings_figure
from offramp.report import write_report
from offramp.report.charts import frontier_points
from offramp.report.exit_charts import depth_charts, exit_curves, savings_chart


@pytest.fixture
def text(tmp_path):
    def write(content):
        path = write_report(tmp_path / "r.html", content, overwrite=True)
        return path.read_text(encoding="utf-8")

    return write


def test_savings_bills_reasons_and_exits_are_on_the_page(text, make_exits):
    content = make_exits()
    page = text(content)
    for saving in content.savings:
        assert formatting.percent(saving.saved) in page
        assert formatting.share_interval(saving.saved_ci) in page
        assert formatting.change(saving.found.accuracy_drop) in page
    assert page.count("<small>one network alone</small>") == 2
    for bill in content.costs_by_unit:
        assert formatting.amount(bill.cost, bill.unit) in page
        assert formatting.amount(bill.reference_cost, bill.unit) in page
        assert formatting.share_interval(bill.cost_ratio_ci) in page
        assert formatting.times(bill.speedup) in page
        assert bill.note in page
    for use in content.uses:
        assert use.reason in page
        assert formatting.percent(use.numbers["head_cost_ratio"]) in page
    for point in content.exits:
        assert formatting.percent(point.accuracy) in page
        assert all(formatting.percent(share) in page for share in point.cost_ratios)
    assert formatting.percent(0.793) in page


def test_the_numbers_beside_the_page_hold_all_of_it(tmp_path, make_exits):
    content = make_exits()
    path = write_report(tmp_path / "r.html", content)
    beside = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    for name in ("uses", "costs_by_unit", "savings", "exits"):
        assert beside[name] == json.loads(json.dumps([to_json(r) for r in getattr(content, name)]))


def test_without_them_nothing_is_said_of_them(text, make_content):
    page = text(make_content())
    for heading in ("within a loss", "in every unit", "against its depth", "why not the others"):
        assert heading not in page


def test_one_unit_needs_no_comparison_of_units(text, make_exits):
    content = make_exits()
    page = text(replace(content, costs_by_unit=content.costs_by_unit[:1]))
    assert "in every unit" not in page
    assert "against its depth" in page


def test_alternative_heads_of_a_point_are_lines_of_their_own(make_exits):
    content = make_exits()
    curves = {curve.name: curve for curve in exit_curves(content.exits, 1)}
    assert list(curves) == [
        "linear head alone", "deep head alone", "the exit alone", "combined answer"
    ]  # fmt: skip
    assert len({curve.kind for curve in curves.values()}) == 4
    assert curves["deep head alone"].cost_ratio.tolist() == [0.59]
    assert curves["combined answer"].accuracy.tolist() == [0.793]


def test_depth_is_drawn_in_two_units_and_each_id_once(make_exits):
    content = make_exits()
    charts = depth_charts(content)
    assert [words for words, _ in charts] == ["FLOPs (counted)", "seconds (batch size 64)"]
    first, second = (str(chart.wide) for _, chart in charts)
    assert "FLOPs to the exit, reference network = 1" in first
    assert "seconds to the exit" in second
    assert 'id="depth-0-wide-title"' in first
    assert 'id="depth-1-wide-title"' in second
    assert depth_charts(replace(content, costs_by_unit=())) == []


def test_only_stages_in_use_are_named_in_the_depth_figure(make_exits):
    (_, chart), _ = depth_charts(make_exits())
    drawn = str(chart.wide).split("</desc>")[1]
    assert ">b1/linear<" in drawn
    assert ">b1/deep<" not in drawn


def test_exits_have_their_names_in_one_figure_only(make_exits, make_content):
    named = {p.name for p in frontier_points(make_exits()) if p.kind == "static"}
    assert named == {"", "large"}
    assert "" not in {p.name for p in frontier_points(make_content())}


@pytest.mark.parametrize("narrow", [False, True])
def test_the_savings_figure_draws_every_value_with_its_interval(narrow):
    series = [
        SavedSeries(name="learned", kind="learned", saved=[0.2, 0.3], low=[0.1, 0.25],
                    high=[0.3, 0.35]),
        SavedSeries(name="$x_y$", kind="threshold", saved=[0.1, -0.1], low=[0.1, -0.2],
                    high=[0.1, 0.0]),
    ]  # fmt: skip
    figure = savings_figure([0.0, 0.005], series, oracle=0.5, narrow=narrow)
    (axes,) = figure.axes
    marks = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 2]
    assert any(np.allclose(y, [0.2, 0.3]) for y in marks)
    assert any(np.allclose(y, [0.1, -0.1]) for y in marks)
    ends = [segment[:, 1].tolist() for c in axes.collections for segment in c.get_segments()]
    assert [0.1, 0.3] in ends
    assert [-0.2, 0.0] in ends
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.5"]
    names = [label.get_text() for label in figure.legends[0].get_texts()]
    assert names == ["learned", "$x_y$", "neutral oracle"]
    (box,) = [legend.get_window_extent() for legend in figure.legends]
    assert box.x1 <= figure.bbox.x1


def test_the_savings_figure_refuses_nothing_and_uneven_series():
    with pytest.raises(InputError, match="at least one series, got none"):
        savings_figure([0.0], [])
    one = SavedSeries(name="a", kind="learned", saved=[0.1], low=[0.1], high=[0.1])
    with pytest.raises(InputError, match="saved must have shape"):
        savings_figure([0.0, 0.1], [one])
    with pytest.raises(InputError, match="low must have shape"):
        SavedSeries(name="a", kind="learned", saved=[0.1], low=[], high=[0.1])


def test_the_savings_chart_says_its_numbers_in_words(make_exits):
    chart = savings_chart(make_exits())
    assert "learned: " in str(chart.wide)
    assert "at 5 points" in str(chart.wide)


def test_a_long_cascade_is_named_by_its_ends(text, make_content):
    names = tuple(f"e{k}" for k in range(3))
    assert "e0, e1 and e2 spends" in text(make_content(names=names))


def test_where_f_would_have_been_right_the_image_says_so(text, make_content):
    content = make_content()
    wrong = replace(content.images[1], reference_correct=True)
    assert "large alone is right" in text(replace(content, images=(wrong,)))
    assert "large alone is" not in text(content)
