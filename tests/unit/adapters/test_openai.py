"""A chat-completions endpoint as a stage: what it answers, and what becomes of what it does not."""

import json
import math
import random
import time

import numpy as np
import pytest
import torch

from offramp._core.errors import InputError, ServiceError
from offramp._core.outputs import FAILED
from offramp.adapters import Limits, from_openai
from offramp.stages import Stage
from support.openai_server import Faults, StandIn

PLAIN = "http:" + "//example.org/v1"  # no key is sent there
LABELS = ["good", "bad"]
PRICES = {"input": 1.0, "output": 2.0}
ROWS = [f"good {k}" for k in range(40)]
FAST = Limits(attempts=3, longest_wait=0.02, timeout=2.0, cache=0)


def stage_of(server: StandIn, **others) -> Stage:
    given = {"key_env": None, "limits": FAST, "prices": PRICES, "model": "tiny", "labels": LABELS}
    return from_openai(server.url, **{**given, "prompt": "Good or bad? {row}", **others})


def said(stage: Stage, rows):
    try:
        return stage.run(rows)[0]
    finally:
        stage.module.close()


def test_the_label_has_the_product_of_its_tokens_probabilities():
    with StandIn() as server:
        found = said(stage_of(server), ["a good day", "rain"])
    assert found.ranked.tolist() == [[0], [1]]
    assert found.confidence.tolist() == pytest.approx([0.9, 0.9])
    assert found.prices.sum().item() == pytest.approx(server.spent)


def test_a_json_answer_is_read():
    with StandIn() as server:
        found = said(stage_of(server, answer="json"), ["a good day"])
    assert (found.ranked.item(), found.confidence.item()) == (0, pytest.approx(0.9))
    assert server.bodies[0]["response_format"] == {"type": "json_object"}


def test_a_foreign_label_is_wrong_and_a_refusal_certainly_so():
    answers = {"x": ("Tuesday", 0.8), "y": (" 'Good'. ", 0.7), "z": ("  ", 0.5)}
    with StandIn(say=lambda text: answers[text[-1]]) as server:
        stage = stage_of(server)
        found = said(stage, ["x", "y", "z"])
    foreign, good, refused = found.ranked[:, 0].tolist()
    assert foreign >= 2
    assert good == 0
    assert refused < 0
    assert found.confidence[2] == 0
    assert (found.prices > 0).all()
    assert (stage.module.counts["foreign"], stage.module.counts["refused"]) == (1, 1)


@pytest.mark.parametrize("fault", ["limited", "broken", "html", "half"])
def test_what_may_pass_is_tried_again_and_paid_once(fault):
    with StandIn(faults=Faults(**{fault: 0.5}, retry_after=0.001)) as server:
        stage = stage_of(server, limits=Limits(attempts=30, longest_wait=0.001, cache=0))
        found = said(stage, [f"good {k}" for k in range(20)])
    assert found.ranked[:, 0].tolist() == [0] * 20
    assert sum(server.attempts.values()) > 20
    assert max(server.charges.values()) == 1
    assert found.prices.sum().item() == pytest.approx(server.spent)


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (500, b"{}", "HTTP 500"),
        (200, b"<html>", "no JSON object"),
        (200, b'{"choices": [', "no JSON object"),
        (200, b"[1]", "no JSON object"),
        (200, b"[" * 100_000, "no JSON object"),
        (400, b"[" * 100_000, "HTTP 400"),
        (200, b'{"usage": {"prompt_tokens": 1, "completion_tokens": 1}}', "without choices"),
        (200, b'{"choices": [{"message": {"content": "good"}}]}', "without its usage"),
        (429, b'{"error": {"code": "insufficient_quota"}}', "no quota left"),
        (400, b'{"error": {"message": "too long"}}', "too long"),
    ],
)
def test_what_does_not_pass_is_no_answer(status, body, why):
    with StandIn(fixed=(status, {}, body)) as server:
        stage = stage_of(server)
        found = said(stage, ["a"])
    assert found.ranked.item() == FAILED
    assert math.isnan(found.confidence.item())
    assert any(why in key for key in stage.module.counts), stage.module.counts


@pytest.mark.parametrize(
    ("status", "headers", "why"),
    [
        (401, {}, "does not accept the key"),
        (404, {}, "knows no such"),
        (307, {"location": "https://elsewhere.example/v1"}, "elsewhere.example"),
        (301, {"location": "/v2"}, "sends on"),
    ],
)
def test_a_service_that_never_answered_and_refuses_is_an_error(status, headers, why):
    with (
        StandIn(fixed=(status, headers, b"{}")) as server,
        pytest.raises(ServiceError, match=why),
    ):
        said(stage_of(server), [str(k) for k in range(50)])
    assert sum(server.statuses.values()) <= FAST.concurrency  # nobody else was asked


def test_a_service_that_answered_before_and_refuses_has_failed():
    with StandIn() as server:
        stage = stage_of(server)
        assert stage.run(["good"])[0].ranked.item() == 0
        server.fixed = (401, {}, b"{}")
        assert said(stage, ["bad"]).ranked.item() == FAILED


def test_a_missing_key_is_named(monkeypatch):
    monkeypatch.delenv("TINY_KEY", raising=False)
    with StandIn(key="k") as server, pytest.raises(ServiceError, match="TINY_KEY"):
        said(stage_of(server, key_env="TINY_KEY"), ["a"])
    assert not server.attempts


def test_the_key_stands_nowhere_but_in_the_header(monkeypatch, caplog):
    key = "sk-very-secret-7131"
    monkeypatch.setenv("TINY_KEY", key)
    caplog.set_level("DEBUG")
    with StandIn(key=key, say=lambda text: (f"the key is {key}", 0.5)) as server:
        stage = stage_of(server, key_env="TINY_KEY")
        found = said(stage, ["a"])
        server.key = "another"
        fresh = stage_of(server, key_env="TINY_KEY")
        with pytest.raises(ServiceError) as caught:
            said(fresh, ["a"])
    everything = [repr(stage), repr(found), str(caught.value), repr(caught.value), caplog.text]
    everything += [json.dumps(dict(stage.module.counts)), repr(stage.module.settings)]
    everything += [repr(caught.value.__context__), repr(caught.value.__cause__)]
    assert not any(key in text for text in everything)


def test_a_service_that_asks_to_wait_is_not_asked_before():
    draws = {text: [random.Random(f"0/{text}/{k}").random() for k in (1, 2)] for text in ROWS}
    text = next(text for text, (first, second) in draws.items() if first < 0.5 <= second)
    with StandIn(faults=Faults(limited=0.5, retry_after=0.3)) as server:
        stage = stage_of(server, prompt="{row}", limits=Limits(attempts=2))
        begun = time.monotonic()
        found = said(stage, [text])
        seconds = time.monotonic() - begun
        impatient = stage_of(server, prompt="{row}", limits=Limits(longest_wait=0.2))
        server.attempts.clear()
        assert said(impatient, [text]).ranked.item() == FAILED
    assert found.ranked.item() >= 0
    assert seconds > 0.3
    assert server.attempts[text] == 1


def test_many_are_asked_at_a_time_but_no_more_than_that():
    with StandIn(latency=0.02) as server:
        said(stage_of(server, limits=Limits(concurrency=5)), [str(k) for k in range(40)])
    assert server.most_running == 5


def test_the_same_text_is_asked_once_and_remembered_for_nothing():
    with StandIn(latency=0.01) as server:
        stage = stage_of(server, limits=Limits())
        first = stage.run(["good", "good"])[0]
        again = said(stage, ["good"])
    assert server.charges == {"Good or bad? good": 1}
    assert (first.prices > 0).sum() == 1
    assert again.prices.tolist() == [0.0]


def test_a_service_that_only_fails_is_left_alone_for_a_while():
    with StandIn(fixed=(500, {}, b"{}")) as server:
        limits = Limits(attempts=1, breaker_failures=3, concurrency=1, breaker_seconds=60.0)
        stage = stage_of(server, limits=limits)
        found = said(stage, [str(k) for k in range(20)])
    assert server.statuses["500"] == 3
    assert (found.ranked == FAILED).all()


def test_a_daily_cap_is_never_broken():
    with StandIn(latency=0.001) as server:
        stage = stage_of(server, daily_cap=0.002)
        found = said(stage, [f"good {k}" for k in range(200)])
    assert 0 < server.spent <= 0.002
    assert found.confidence.isnan().any()
    assert stage.module.spent == pytest.approx(server.spent)


def test_fields_of_rows_stand_in_the_prompt():
    with StandIn() as server:
        stage = stage_of(server, prompt='{"a": 1} {labels}: {title} ({year})')
        said(stage, {"title": ["good one"], "year": torch.tensor([1999])})
        with pytest.raises(InputError, match="year"):
            stage.run([{"title": "x"}])
    assert server.bodies[0]["messages"][0]["content"] == '{"a": 1} good, bad: good one (1999)'


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://x", "address"),
        ("https://me:secret@example.org/v1", "key_env"),
        ("https://example.org/v1?key=secret", "key_env"),
        ("https://example.org/v1?", "key_env"),
        ("https://@example.org/v1", "key_env"),
        ("https://me:sec?ret@example.org/v1", "address"),
        (PLAIN, "https"),
        ("http:" + "//[::1/v1", "address"),
        ("https://example.org:99999/v1", "address"),
        ("https://exa mple.org/v1", "address"),
        ("https://ex\nample.org/v1", "address"),
        ("https://ex\\ample.org/v1", "address"),
        ("example.org/secret", "address"),
        (5, "address .* got 5"),
        (None, "address .* got None"),
    ],
)
def test_addresses_that_would_tell_a_key_are_refused(url, why):
    with pytest.raises(InputError, match=why) as caught:
        from_openai(url, model="m", labels=LABELS, prompt="{row}", key_env="KEY")
    assert "secret" not in str(caught.value)


OTHERS = [
    {"prompt": "Bad or good? {row}"},
    {"labels": LABELS[::-1]},
    {"model": "other"},
    {"options": {"seed": 1}},
    {"max_tokens": 3},
    {"answer": "json"},
    {"prices": None},
]


@pytest.mark.parametrize("other", OTHERS)
def test_services_that_are_asked_otherwise_are_others(other):
    with StandIn(say=lambda _: ("", 0.5)) as server:
        one, two = stage_of(server), stage_of(server, **other)
        assert one.module.fingerprint == stage_of(server).module.fingerprint
        assert one.module.fingerprint != two.module.fingerprint
        refusals = [said(stage, ["good"]).ranked.item() for stage in (one, two)]
    assert refusals[0] != refusals[1]
    assert refusals[0] < 0


def test_the_key_of_a_request_is_that_of_its_service():
    with StandIn() as server:
        found = {said(stage_of(server, **other), ["a"]).ranked.item() for other in ({}, OTHERS[1])}
    assert found == {0, 1}  # "bad", by the order of the labels
    assert server.charges == {"Good or bad? a": 2}


def answer_of(read, written, **message):
    """An answer of so many tokens."""
    choice = {"message": message, "logprobs": {"content": [{"logprob": -0.1}]}}
    usage = {"prompt_tokens": read, "completion_tokens": written}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_longest_answer_is_that_which_is_asked_for(name):
    stages = [
        from_openai(PLAIN, model="m", labels=LABELS, prompt="{row}", key_env=None, **others)
        for others in (
            {"prices": {"input": 0.0, "output": 1.0}, "options": {"max_tokens": None, name: 1000}},
            {"prices": {"input": 0.0, "output": 1.0}, "max_tokens": 9},
        )
    ]
    assert [s.module._asks.most("a") for s in stages] == pytest.approx([1e-3, 9e-6])
    assert stages[0].module._asks._body("a")[name] == 1000


def test_options_without_a_length_or_with_none_are_refused():
    given = {"model": "m", "labels": LABELS, "prompt": "{row}", "key_env": None, "prices": PRICES}
    with pytest.raises(InputError, match="max_completion_tokens"):
        from_openai(PLAIN, **given, options={"max_tokens": None})
    with pytest.raises(InputError, match="length of an answer"):
        from_openai(PLAIN, **given, options={"max_tokens": -1})
    from_openai(PLAIN, **(given | {"prices": None}), options={"max_tokens": None})


@pytest.mark.parametrize(
    "body",
    [
        b'{"usage": {"prompt_tokens": 100, "completion_tokens": 50}}',
        b'{"choices": [{"message": {"content": "good"}}],'
        b' "usage": {"prompt_tokens": 100, "completion_tokens": 50}}',
    ],
)
def test_what_was_billed_counts_even_where_it_cannot_be_read(body):
    with StandIn(fixed=(200, {}, body)) as server:
        stage = stage_of(server)
        found = said(stage, ["a", "b"])
    assert found.ranked.unique().tolist() == [FAILED]
    assert stage.module.spent == pytest.approx(4e-4)
    assert found.prices.tolist() == pytest.approx([2e-4, 2e-4])


def test_an_answer_without_usage_counts_as_the_most_that_it_may_have_cost():
    with StandIn(fixed=(200, {}, b'{"choices": []}')) as server:
        stage = stage_of(server)
        said(stage, ["a"])
    assert stage.module.spent == pytest.approx(stage.module._asks.most("a"))


@pytest.mark.parametrize(
    ("body", "latency", "attempts"),
    [(b'{"choices": [', 0.0, 1), (b"[" * 100_000, 0.0, 3), (b"{}", 0.2, 1), (b"{}", 0.2, 2)],
)
def test_what_was_sent_and_not_answered_counts_as_the_most(body, latency, attempts):
    limits = Limits(attempts=attempts, longest_wait=0.001, timeout=0.05 if latency else 2.0)
    with StandIn(fixed=(200, {}, body), latency=latency) as server:
        stage = stage_of(server, limits=limits)
        found = said(stage, ["a"])
    most = stage.module._asks.most("a")
    assert found.ranked.item() == FAILED
    assert (found.prices.item(), stage.module.spent) == pytest.approx((most, most))


def test_what_was_never_sent_or_refused_costs_nothing():
    with StandIn(fixed=(500, {}, b"{}")) as server:
        stage = stage_of(server)
        said(stage, ["a"])
    assert stage.module.spent == 0
    assert said(stage, ["a"]).ranked.item() == FAILED  # nobody is there any more
    assert stage.module.spent == 0
    assert any("ConnectError" in why for why in stage.module.counts)


def test_after_an_answer_above_its_highest_price_no_call_begins_beyond_the_cap():
    body = answer_of(5000, 0, content="good")  # 0.005 each, where less than 0.0003 was set aside
    with StandIn(fixed=(200, {}, body), latency=0.01) as server:
        stage = stage_of(server, daily_cap=0.01, limits=Limits(concurrency=1))
        found = said(stage, ROWS)
    assert server.statuses["200"] == 2
    assert int((found.ranked == 0).sum()) == 2
    assert stage.module.counts["capped"] == len(ROWS) - 2


def test_a_redirect_tells_no_key_of_the_address_that_it_names():
    there = "https://me:secret@elsewhere.example:8443/v1?key=secret#secret"
    with (
        StandIn(fixed=(307, {"location": there}, b"{}")) as server,
        pytest.raises(ServiceError, match=r"'https://elsewhere\.example:8443'") as caught,
    ):
        said(stage_of(server), ["a"])
    assert "secret" not in str(caught.value)


LONG = "1" + "0" * 400  # no float holds it


@pytest.mark.parametrize(
    "text",
    [
        f'{{"label": "good", "confidence": {LONG}}}',
        '{"label": "good", "confidence": 1e999}',
        '{"label": "good", "confidence": NaN}',
        '{"label": ["good"], "confidence": 1}',
        '{"label": "good"}',
        "[" * 100_000,
        '"good"',
    ],
)
def test_json_that_says_nothing_is_right_with_probability_0(text):
    with StandIn(fixed=(200, {}, answer_of(5, 1, content=text))) as server:
        stage = stage_of(server, answer="json")
        found = said(stage, ["a"])
    assert found.ranked.item() < 0
    assert found.confidence.item() == 0
    assert found.prices.item() == pytest.approx(7e-6)
    assert stage.module.counts["refused"] == 1


@pytest.mark.parametrize("content", [{"a": 1}, ["good"], 5, None, True])
def test_what_is_no_text_says_nothing(content):
    with StandIn(fixed=(200, {}, answer_of(5, 1, content=content))) as server:
        assert said(stage_of(server), ["a"]).confidence.item() == 0


def test_a_label_of_half_a_character_is_a_foreign_one():
    with StandIn(fixed=(200, {}, answer_of(5, 1, content="\ud800"))) as server:
        assert said(stage_of(server), ["a"]).ranked.item() >= 2


@pytest.mark.parametrize("each", [[LONG], ["-1e308"] * 20, ["1e999", "-1e999"], ["NaN"], ["[]"]])
def test_probabilities_that_are_none_are_no_answer(each):
    tokens = ", ".join(f'{{"logprob": {number}}}' for number in each)
    body = answer_of(5, 1, content="good").decode().replace('{"logprob": -0.1}', tokens)
    with StandIn(fixed=(200, {}, body.encode())) as server:
        stage = stage_of(server)
        found = said(stage, ["a"])
    assert found.ranked.item() == FAILED
    assert found.prices.item() == pytest.approx(7e-6)


@pytest.mark.parametrize("count", [LONG, '"x"', "-1", "NaN", "1e999", "null", "[]"])
def test_a_usage_that_is_none_counts_as_the_most(count):
    body = answer_of(5, 1, content="good").replace(b": 5,", f": {count},".encode())
    with StandIn(fixed=(200, {}, body)) as server:
        stage = stage_of(server)
        found = said(stage, ["a"])
    assert found.ranked.item() == FAILED
    assert found.prices.item() == pytest.approx(stage.module._asks.most("a"))


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("model", 5, "model must be a text that is not empty, got 5"),
        ("model", "", "model must be a text"),
        ("prompt", 5, "prompt must be a text that is not empty, got 5"),
        ("labels", "good", "labels must be a list of names, got the text 'good'"),
        ("labels", 5, "labels must be a list of names, got 5"),
        ("labels", [1, 2], "labels must be text, got 1"),
        ("labels", ["good", '"'], "labels must be at least 2 texts"),
        ("prices", 5, "prices must be a mapping of fields among .*, got 5"),
        ("prices", {"input": 1.0}, r"\['output'\] must be among them"),
        ("prices", {"input": 1.0, "output": 1.0, "more": 1}, "prices must have fields among"),
        ("prices", {"input": "1", "output": 1.0}, "prices: input must be a number"),
        ("prices", {"input": 10**400, "output": 1.0}, "prices: input must be a number"),
        ("prices", {"input": 1.0, "output": 1.0, "unit": 5}, "prices: unit must be a text"),
        ("options", 5, "options must be a dict of fields by name, got 5"),
        ("options", {5: 1}, "options must be a dict of fields by name"),
        ("options", {"seed": float("nan")}, "options must be what JSON can hold"),
        ("options", {"seed": object()}, "options must be what JSON can hold"),
        ("limits", 5, "limits must be a mapping of fields among .*, got 5"),
        ("limits", {"more": 5}, "limits must have fields among"),
        ("limits", {"timeout": "5"}, "limits: timeout must be a number"),
        ("limits", {"cache": 0.5}, "limits: cache"),
        ("daily_cap", "5", "daily_cap must be a number"),
        ("max_tokens", 0, "max_tokens must be an integer of at least 1, got 0"),
        ("answer", 5, "answer must be one of"),
        ("on_error", None, "on_error must be one of"),
    ],
)
def test_an_argument_of_another_kind_is_named(name, value, why):
    given = {"model": "m", "labels": LABELS, "prompt": "{row}", "key_env": None, "prices": PRICES}
    with pytest.raises(InputError, match=why):
        from_openai(PLAIN, **{**given, name: value})


@pytest.mark.parametrize("row", [object(), b"good", {"no": "row"}])
def test_a_row_that_cannot_be_asked_about_costs_its_batch_nothing(row):
    with StandIn() as server:
        stage = stage_of(server, prompt="{text}")
        with pytest.raises(InputError):
            said(stage, [{"text": "good"}, {"text": row} if not isinstance(row, dict) else row])
        assert said(stage, [{"text": "good"}]).ranked.item() == 0
    assert sum(server.attempts.values()) == 1


def keyed(url, key_env):
    return from_openai(url, model="m", labels=["x", "y"], prompt="{row}", key_env=key_env)


@pytest.mark.parametrize("given", ["sk-proj-SECRET123", "", "A B", 5])
def test_a_key_in_place_of_its_variable_is_refused_and_not_shown(given):
    with pytest.raises(InputError, match="key_env must be the name") as caught:
        from_openai(
            "https://a.example/v1", model="m", labels=["x", "y"], prompt="{row}", key_env=given
        )
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.evil.com", "localhost.evil.com", "10.0.0.1"])
def test_a_key_goes_to_no_other_machine_in_clear(host):
    with pytest.raises(InputError, match="must begin with https"):
        from_openai(
            f"http://{host}/v1", model="m", labels=["x", "y"], prompt="{row}", key_env="KEY"
        )


def test_each_row_asks_its_own_question():
    options = {"model": "m", "labels": ["x", "y"], "key_env": None}
    with pytest.raises(InputError, match="prompt must say where the example goes"):
        from_openai("https://a.example/v1", prompt="One of {labels}:", **options)
    asks = from_openai("https://a.example/v1", prompt="{text} of {labels}?", **options).module._asks
    assert asks.text({"text": "a", "labels": "the truth"}) == "a of x, y?"
    with pytest.raises(InputError, match=r"prompt names \{text\}, which is no field"):
        asks.text("a plain text")


@pytest.mark.parametrize("gap", [None, math.nan, np.float32("nan")])
def test_a_gap_is_refused_before_anybody_is_paid(gap):
    with StandIn() as server:
        stage = stage_of(server, prompt="Good or bad? {title}")
        with pytest.raises(InputError, match="a value for each field that the prompt names"):
            said(stage, [{"title": gap}])
        assert not server.bodies
