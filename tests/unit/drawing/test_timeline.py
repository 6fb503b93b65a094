import pytest

from offramp._core.errors import InputError
from offramp.drawing import Section, save_figure, timeline_figure

SECTIONS = [
    Section(kind="other", stage="", start_s=0.0, end_s=0.0001),
    Section(kind="stage", stage="small", start_s=0.0001, end_s=0.002),
    Section(kind="decision", stage="small", start_s=0.002, end_s=0.0022),
    Section(kind="compaction", stage="large", start_s=0.0022, end_s=0.0024),
    Section(kind="stage", stage="large", start_s=0.0024, end_s=0.006),
]


@pytest.mark.parametrize("narrow", [False, True])
def test_each_section_is_a_bar_on_the_lane_of_its_stage(narrow):
    figure = timeline_figure(SECTIONS, ["small", "large"], narrow=narrow)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["small", "large", "batch"]
    lanes = {"small": 0, "large": 1, "": 2}
    assert len(axes.patches) == len(SECTIONS)
    for bar, section in zip(axes.patches, SECTIONS, strict=True):
        assert bar.get_x() == pytest.approx(1000 * section.start_s)
        assert bar.get_width() == pytest.approx(1000 * (section.end_s - section.start_s))
        assert bar.get_y() + bar.get_height() / 2 == pytest.approx(lanes[section.stage])
    assert axes.get_xlabel() == "time, ms"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["stage", "decision", "compaction", "other"]


def test_kinds_differ_in_color_and_the_batch_has_a_lane_only_where_it_needs_one():
    figure = timeline_figure(SECTIONS[1:], ["small", "large"])
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["small", "large"]
    looks = {(bar.get_facecolor(), bar.get_height()) for bar in axes.patches}
    assert len(looks) == 3


@pytest.mark.parametrize(("end", "unit"), [(3.0, "s"), (0.5, "ms"), (2e-5, "µs"), (1e-9, "µs")])
def test_time_is_shown_in_a_unit_that_fits(end, unit):
    one = Section(kind="stage", stage="a", start_s=0.0, end_s=end)
    assert timeline_figure([one], ["a"]).axes[0].get_xlabel() == f"time, {unit}"


def test_the_same_timeline_gives_the_same_file(tmp_path):
    for name in ("a.svg", "b.svg"):
        save_figure(timeline_figure(SECTIONS, ["small", "large"]), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_nothing_to_draw_and_sections_without_a_lane_are_refused():
    with pytest.raises(InputError, match="at least one section to draw, got none"):
        timeline_figure([], ["a"])
    with pytest.raises(InputError, match=r"\['large'\] are missing"):
        timeline_figure(SECTIONS, ["small"])
