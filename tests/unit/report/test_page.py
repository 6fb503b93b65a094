"""The page: self-contained, well-formed, complete, harmless, written whole."""

import html
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from offramp._core import formatting as form
from offramp._core.errors import InputError
from offramp._core.files import sha256
from offramp._core.schema import to_json
from offramp.evaluation import Limit, evaluate, fit, overlap, references, share_of_gap_closed
from offramp.report import ReportContent, write_report
from offramp.trace.testing import make_trace

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&{{ 7*7 }}$\\frac$-->]]>"


class Page(HTMLParser):
    """Tags, attributes, ids and visible text; complains about what is not closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.faults, self.tags, self.attributes = [], [], [], []
        self.text = ""
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, name):
        return [value for _, key, value in self.attributes if key == name]


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = write_report(tmp_path / "report.html", content, overwrite=True)
        return path.read_text(encoding="utf-8")

    return write


def test_the_parser_of_these_tests_finds_faults():
    assert Page("<p><b>x</p>").faults
    assert Page("<div>").faults
    assert not Page("<p>x<br></p>").faults


def test_every_tag_is_closed_and_every_id_is_unique(written, make_content, refusal):
    for content in (make_content(), make_content(chosen=refusal)):
        page = Page(written(content))
        assert page.faults == []
        ids = page.all("id")
        assert len(ids) == len(set(ids)) > 10


def test_nothing_is_fetched_and_nothing_is_scripted(written, make_content):
    text = written(make_content())
    page = Page(text)
    for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
        assert all(value.startswith(("data:image/png;base64,", "#")) for value in page.all(name))
    assert page.all("src")
    assert page.all("href")
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    assert "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in text


def test_every_reference_within_the_page_leads_somewhere(written, make_content):
    text = written(make_content())
    page = Page(text)
    ids = set(page.all("id"))
    inner = [v.removeprefix("#") for v in page.all("href")] + re.findall(r"url\(#([^)]+)\)", text)
    inner += " ".join(page.all("aria-labeledby")).split()
    assert inner
    assert set(inner) <= ids


def test_a_phone_gets_its_own_layout_and_tables_scroll_within_themselves(written, make_content):
    text = written(make_content())
    page = Page(text)
    assert 'name="viewport" content="width=device-width' in text
    assert text.count('class="wide"') == text.count('class="narrow"') == 4
    assert page.tags.count("table") == page.all("class").count("scroll") >= 7
    assert "@media print" in text
    assert "prefers-color-scheme: dark" in text


def test_figures_and_images_have_words_for_those_who_do_not_see_them(written, make_content):
    page = Page(written(make_content()))
    figures = page.tags.count("svg")
    assert figures == 8
    assert page.all("role").count("img") == figures
    assert page.tags.count("desc") == figures
    assert page.tags.count("img") == len([alt for alt in page.all("alt") if "cat" in alt]) == 3


def test_figures_follow_the_scheme_of_the_reader(written, make_content):
    svgs = "".join(re.findall(r"<svg.*?</svg>", written(make_content()), flags=re.DOTALL))
    assert "var(--ink)" in svgs
    assert set(re.findall(r"#[0-9a-f]{6}\b", svgs)) <= {"#000000", "#ffffff"}


def test_every_number_is_on_the_page(written, make_content):
    content = make_content()
    text = Page(written(content)).text
    test = content.test
    expected = [
        form.percent(test.cost_ratio), form.saving(test.cost_ratio),
        form.change(test.accuracy_drop),
        form.share_interval(test.cost_ratio_ci), form.change_interval(test.accuracy_drop_ci),
        form.share_interval(test.negative_flips_ci), form.percent(test.accuracy), str(test.n),
        form.percent(test.reference_accuracy), form.percent(test.negative_flips), "107",
        "Use the middle one & be glad.", "No certificate was asked for.", "The images are shifted.",
        "offramp report --seed 41", "2.13.0", "c0ffee" * 10, "ab12" * 16, "two cores of something",
    ]  # fmt: skip
    for share in (*test.exit_share, *test.useful_share, *test.overhead_share, test.decision_share):
        expected.append(form.percent(share))
    for point in content.frontier:
        expected += [form.percent(point.fit.cost_ratio), form.percent(point.fit.accuracy)]
    for point in content.references:
        if point.kind != "random":  # a curve: in the figure and in the JSON
            expected += [point.name, form.percent(point.cost_ratio), form.percent(point.accuracy)]
            expected += [form.change(point.accuracy_drop), form.percent(point.negative_flips)]
    for row in content.timing:
        expected += [form.seconds(row.static_s), form.seconds(row.adaptive_s)]
        expected += [form.times(row.speedup), str(row.rounds), row.backend]
    for table in content.costs:
        for values in (table.segment, table.head, table.decision):
            expected += [form.amount(value, table.unit) for value in values]
    for share in content.overlap.shares:
        expected.append(form.percent(share))
    for _, classes in content.images[0].visits:
        expected += [form.percent(p) for _, p in classes]
    assert [number for number in expected if number not in text] == []


def test_the_numbers_beside_the_page_can_be_read_again(tmp_path, make_content):
    content = make_content()
    path = write_report(tmp_path / "out.html", content)
    beside = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert beside["frontier"] == [to_json(point) for point in content.frontier]
    assert beside["test"]["cost_ratio"] == content.test.cost_ratio
    assert beside["chosen"] == to_json(content.chosen)
    assert [r["speedup"] for r in beside["timing"]] == [1.69, 1.91, 2.43]
    assert len(beside["references"]) == len(content.references)
    assert beside["images"][1]["visits"][0]["best"][0] == ["cat", 0.713]
    assert beside["costs"][1]["segment"] == [0.0013, 0.0057, 0.0191]
    assert sha256(tmp_path / "out.json") in path.read_text(encoding="utf-8")


def test_hostile_names_stay_text(written, make_content):
    names = tuple(f"{EVIL}{k}" for k in range(3))
    classes = tuple(f"{EVIL}{k}c" for k in range(3))
    text = written(make_content(names=names, classes=classes, title=EVIL, notes=(EVIL,)))
    page = Page(text)
    assert page.faults == []
    assert "script" not in page.tags
    assert page.tags.count("img") == 3
    assert not page.all("onerror")
    assert f"{EVIL}0c" in page.text
    assert "49" not in re.findall(r"&(\d+)\$", page.text)
    assert html.escape("<script>", quote=False) in text


def test_long_and_foreign_names_are_written_without_a_warning(written, make_content):
    text = written(make_content(names=("小さいモデル" * 9, "مصنف", "🦊" * 40)))
    assert Page(text).faults == []


def test_each_class_has_a_row_and_each_stage_a_calibration(written, make_content):
    content = make_content()
    text = Page(written(content)).text
    rows = content.worst_classes
    assert [row.name for row in rows] == ["cat", "dog", "ship"]  # the most lost first
    for row in rows:
        figures = [row.early, row.cost_ratio, row.recall, row.reference_recall, row.lost]
        assert all(form.percent(value) in text for value in figures)
        assert form.change(row.drop) in text
    for one in content.reliability:
        assert f"{one.stage}: expected calibration error {form.percent(one.error)}" in text


def test_of_many_classes_the_worst_are_shown(written, make_content):
    content = make_content()
    few = content.classes[0]
    many = tuple(replace(few, name=f"class-{k}", recall=0.9 - 0.01 * k) for k in range(50))
    text = Page(written(replace(content, classes=many))).text
    assert "class-49" in text
    assert "class-38" in text
    assert "class-37" not in text
    assert "38 more stand in report.json" in text


def test_the_band_says_whether_it_is_promised(written, make_content):
    text = Page(written(make_content())).text
    assert "allowed: 2 points" in text
    assert "the band below it what was allowed" in text
    other = make_content()
    recall = replace(other.chosen, limits=(Limit(risk="negative_flips", at_most=0.02),))
    assert "allowed:" not in Page(written(replace(other, chosen=recall))).text


def test_what_could_be_promised_is_drawn_where_a_promise_was_asked_for(written, make_content):
    content = make_content()
    words = "could be promised"
    assert words not in Page(written(content)).text  # measured only
    asked = replace(content, chosen=replace(content.chosen, delta=0.05))
    text = Page(written(asked)).text
    assert f"{words}, 95\u00a0% sure" in text
    assert f"the loss that {words} of it by itself" in text
    few = replace(asked, promisable=asked.promisable[:1])
    assert words not in Page(written(few)).text


def test_a_logarithmic_axis_is_explained(written, make_content):
    content = make_content()
    words = "equal steps multiply"
    assert words not in Page(written(content)).text
    cheap = replace(content.references[0], cost_ratio=0.001)
    references = (cheap, *content.references[1:])
    assert words in Page(written(replace(content, references=references))).text


def test_a_refusal_says_so_and_shows_no_gain_of_a_cascade(written, make_content, refusal):
    content = make_content(chosen=refusal, test=None, frontier_test=())
    text = Page(written(content)).text
    assert "No candidate stays within 0.5 points." in text
    assert "No cascade" in text
    assert "0.7654" in text
    assert "of the gap closed" not in text
    assert "Measured, not promised" not in text
    assert "Measured, not promised" in Page(written(make_content())).text


def test_without_a_test_part_the_page_says_what_its_figures_come_from(written, make_content):
    text = Page(written(make_content(test=None))).text
    assert "calibrate split" in text
    assert "all are optimistic" in text
    assert "all are optimistic" not in Page(written(make_content())).text


def test_the_least_content_makes_a_page(written, make_content):
    full = make_content()
    page = Page(written(ReportContent(title="Bare", chosen=full.chosen)))
    assert page.faults == []
    assert "Exits and cost of each stage" in page.text


def test_the_same_content_gives_the_same_bytes(written, make_content):
    assert written(make_content()) == written(make_content())


def test_a_page_with_many_large_images_stays_light_and_says_what_it_leaves_out(
    written, make_content
):
    content = make_content()
    noise = np.random.default_rng(0).integers(0, 256, size=(300, 400, 3), dtype=np.uint8)
    images = tuple(replace(image, pixels=noise) for image in content.images for _ in range(12))
    text = written(make_content(images=images))
    assert "8 of 12 examples" in Page(text).text
    assert len(text) < 2_000_000


def test_a_number_that_is_not_finite_is_refused_and_nothing_is_written(tmp_path, make_content):
    content = make_content()
    broken = replace(content, test=replace(content.test, accuracy=float("nan")))
    with pytest.raises(InputError, match="must be finite"):
        write_report(tmp_path / "report.html", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_the_old_pair_untouched(tmp_path, make_content, monkeypatch):
    path = write_report(tmp_path / "report.html", make_content())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    write_text = Path.write_text

    def full_disk(self, data, **options):
        if data.startswith("<!DOCTYPE"):
            raise OSError(28, "No space left on device")
        return write_text(self, data, **options)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, make_content(title="Another"), overwrite=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert len(before) == 2


def test_a_path_that_is_no_page_is_refused(tmp_path, make_content):
    with pytest.raises(InputError, match=r"path must end in \.html, got '.*report\.pdf'"):
        write_report(tmp_path / "report.pdf", make_content())


def test_real_results_make_a_page(written):
    trace = make_trace(400, stages=3, seed=2).split_into({"fit": 200, "test": 200}, seed=0)
    frontier = fit(trace, "random", progress=False)
    test = trace.subset("test")
    chosen = frontier.cheapest(max_drop=0.05, delta=None)
    found = evaluate(test, chosen.candidate, bootstrap=50)
    points = references(test, frontier.reference)
    neutral = next(p for p in points if p.name == "neutral oracle")
    gap = share_of_gap_closed(found, [p for p in points if p.kind == "random"], neutral)
    content = ReportContent(
        title="Real", chosen=chosen, test=found, frontier=frontier.points, gap_closed=gap,
        references=tuple(points), overlap=overlap(test), stages=trace.stages, costs=(trace.costs,),
    )  # fmt: skip
    page = Page(written(content))
    assert page.faults == []
    assert form.percent(found.cost_ratio) in page.text


def test_reporting_leaves_no_global_plotting_state():
    code = "import sys, offramp.report; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "False"
