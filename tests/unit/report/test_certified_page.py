"""The report says what is promised, or why nothing is, and under what it holds."""

import json
from dataclasses import replace

import pytest

from offramp.evaluation import Choice, FrontierPoint, Guarantee, Limit
from offramp.report import write_report

ASSUMPTIONS = ("The future is like the past & so on.", "Nobody has looked.")


@pytest.fixture
def certified(make_content):
    content = make_content()
    chosen = content.chosen
    point = FrontierPoint(candidate=chosen.candidate, fit=chosen.fit, calibrate=chosen.calibrate)
    limits = (Limit(risk="accuracy_drop", at_most=0.0321), Limit(risk="cost", at_most=0.5))
    promise = Choice(
        point=point,
        limits=limits,
        delta=0.05,
        guarantee=Guarantee(
            limits=limits,
            delta=0.05,
            p_value=0.012345,
            tested=17,
            n=1234,
            split="calibrate",
            fingerprint="beef" * 16,
            class_weights=None,
            assumptions=ASSUMPTIONS,
        ),
        sentence="With a confidence of 95 %, all goes well.",
    )
    return replace(content, chosen=promise)


@pytest.fixture
def refused(make_content, refusal):
    return replace(
        make_content(),
        chosen=Choice(
            point=refusal.point,
            limits=(Limit(risk="accuracy_drop", at_most=0.001),),
            delta=0.05,
            refused="it takes more examples",
            alternative=refusal.alternative,
            examples_needed=4321,
            sentence="Not certified: it takes more examples. About 4321 examples in calibrate.",
        ),
    )


def page_of(content, tmp_path):
    return write_report(tmp_path / "r.html", content, overwrite=True).read_text()


def test_the_promise_stands_in_one_sentence_with_what_it_rests_on(certified, tmp_path):
    page = page_of(certified, tmp_path)
    assert certified.outcome == "The certified point"
    for text in (
        "The certified point", "With a confidence of 95 %, all goes well.",
        "What the promise rests on", "so on.", "Nobody has looked.",
        "accuracy_drop &lt;= 0.0321; cost &lt;= 0.5", "0.01235", "1234", "17", "beef" * 16,
        "Candidates are tested one by one",
    ):  # fmt: skip
        assert text in page
    assert "<dt>Confidence</dt>" in page
    held = json.loads((tmp_path / "r.json").read_text())
    assert held["chosen"]["outcome"] == "certified"
    assert held["chosen"]["guarantee"]["p_value"] == 0.012345
    assert held["chosen"]["guarantee"]["assumptions"] == list(ASSUMPTIONS)
    assert [s.split for s in certified.splits] == ["fit", "calibrate", "test"]


def test_without_a_promise_the_page_says_why_and_what_runs(refused, tmp_path):
    page = page_of(refused, tmp_path)
    assert not refused.cascade
    assert "Not certified: it takes more examples. About 4321 examples in calibrate" in page
    assert "The figures behind this" in page
    assert "What the promise rests on" not in page
    assert "<dt>Confidence</dt>" not in page
    held = json.loads((tmp_path / "r.json").read_text())
    assert held["chosen"]["examples_needed"] == 4321


def test_where_no_number_would_do_the_page_says_none(refused, tmp_path):
    chosen = replace(refused.chosen, examples_needed=None)
    assert '<th scope="row">examples needed</th><td class="word">none</td>' in page_of(
        replace(refused, chosen=chosen), tmp_path
    )


def test_a_page_without_a_certificate_speaks_of_none(make_content, tmp_path):
    page = page_of(make_content(), tmp_path)
    assert "Measured, not promised" in page
    assert "What the promise rests on" not in page
    assert "<dt>Confidence</dt>" not in page


def test_a_single_network_may_be_promised(certified, tmp_path):
    candidate = replace(certified.chosen.candidate, method="single")
    point = replace(certified.chosen.point, candidate=candidate)
    content = replace(certified, chosen=replace(certified.chosen, point=point))
    assert not content.cascade
    page = page_of(content, tmp_path)
    assert "The certified point" in page
    assert '<section class="outcome">' in page
