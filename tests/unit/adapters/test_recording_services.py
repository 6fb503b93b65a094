"""Recording services: each answer is paid for once, whatever happens, and within a ceiling."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import FileFormatError, InputError, SpendingError
from offramp.adapters import Limits, from_openai
from offramp.recording import record
from offramp.stages import Cascade, Stage
from offramp.trace import load_trace
from support.openai_server import Faults, StandIn

LABELS = ("good", "bad")
PRICES = {"input": 1.0, "output": 2.0}
ROWS = [f"{'good' if k % 3 else 'rain'} {k}" for k in range(60)]
TRUE = torch.tensor([0 if k % 3 else 1 for k in range(60)])


class Guess(nn.Module):
    """A local function that says good."""

    reads_rows = True

    def forward(self, rows):
        return torch.zeros(len(rows), dtype=torch.int64), torch.full((len(rows),), 0.6)


def cascade_of(server, **others):
    given = {
        "key_env": None,
        "prices": PRICES,
        "limits": Limits(attempts=3, longest_wait=0.02),
        **others,
    }
    asked = {"labels": LABELS, "prompt": "{row}", "model": "m", **given}
    local = Stage("local", Guess(), outputs="confidence", class_names=asked["labels"])
    stages = {"local": local, "paid": from_openai(server.url, **asked)}
    return Cascade.from_models(stages, class_names=asked["labels"])


def loader(size=20, rows=ROWS):
    labels = TRUE[: len(rows)]
    return [(rows[k : k + size], labels[k : k + size]) for k in range(0, len(rows), size)]


def recorded(cascade, *, rows=ROWS, **arguments):
    costs = Costs.simple("usd", [0.5, 0.0])
    try:
        return record(cascade, loader(rows=rows), progress=False, **{"costs": costs} | arguments)
    finally:
        cascade.stage("paid").module.close()


def test_the_trace_has_the_price_of_each_answer(tmp_path):
    with StandIn() as server:
        trace = recorded(cascade_of(server), path=tmp_path / "a.trace")
        again = recorded(cascade_of(server))
    assert trace.ranked[:, 1, 0].tolist() == TRUE.tolist()
    assert trace.prices[:, 0].tolist() == [0.5] * 60
    assert trace.prices[:, 1].sum().item() == pytest.approx(server.spent)
    assert trace.costs.segment == pytest.approx(trace.prices.mean(dim=0).tolist())
    assert torch.equal(again.prices, trace.prices)
    assert load_trace(tmp_path / "a.trace").prices is not None
    assert [file.name for file in tmp_path.iterdir()] == ["a.trace"]


def test_prices_in_another_unit_than_the_costs_are_not_mixed_in():
    with StandIn() as server:
        trace = recorded(cascade_of(server), costs=Costs.simple("seconds", [1.0, 2.0]))
    assert trace.prices is None
    assert trace.costs.segment == (1.0, 2.0)


def test_what_the_others_cost_has_to_be_said():
    with StandIn() as server, pytest.raises(InputError, match=r"costs must say what \['local'\]"):
        recorded(cascade_of(server), costs="flops")
    assert not server.attempts


def test_a_ceiling_is_never_exceeded_and_what_was_paid_is_kept(tmp_path):
    path = tmp_path / "a.trace"
    with StandIn(latency=0.001) as server:
        with pytest.raises(SpendingError, match="max_spend was reached"):
            recorded(cascade_of(server), path=path, max_spend=0.0008)
        assert 0.0003 < server.spent <= 0.0008
        with pytest.raises(SpendingError):  # what was paid before counts
            recorded(cascade_of(server), path=path, max_spend=0.0008)
        assert server.spent <= 0.0008
        trace = recorded(cascade_of(server), path=path, max_spend=1.0)
    assert len(trace) == 60
    assert set(server.charges.values()) == {1}
    assert trace.prices[:, 1].sum().item() == pytest.approx(server.spent)


def test_what_could_not_be_read_counts_when_the_recording_goes_on(tmp_path):
    path = tmp_path / "a.trace"
    body = b'{"usage": {"prompt_tokens": 400, "completion_tokens": 0}}'
    with StandIn(fixed=(200, {}, body)) as server:
        for most, calls in ((0.001, 2), (0.001, 2), (0.0014, 3)):
            cascade = cascade_of(server, limits=Limits(attempts=1, concurrency=1))
            with pytest.raises(SpendingError, match="max_spend was reached"):
                recorded(cascade, path=path, max_spend=most)
            assert server.statuses["200"] == calls


def test_after_an_answer_above_its_highest_price_no_call_begins_beyond_the_ceiling():
    choice = {"message": {"content": "good"}, "logprobs": {"content": [{"logprob": -0.1}]}}
    said = {"choices": [choice], "usage": {"prompt_tokens": 5000, "completion_tokens": 0}}
    with StandIn(fixed=(200, {}, json.dumps(said).encode()), latency=0.01) as server:
        cascade = cascade_of(server, limits=Limits(concurrency=1))
        with pytest.raises(SpendingError, match="max_spend was reached"):
            recorded(cascade, max_spend=0.012)
    assert server.statuses["200"] <= 3


def test_a_ceiling_needs_prices():
    with StandIn() as server, pytest.raises(InputError, match="max_spend must be finite"):
        recorded(cascade_of(server), max_spend=-1.0)
    with StandIn() as server, pytest.raises(InputError, match="max_spend needs the prices"):
        recorded(cascade_of(server, prices=None), max_spend=1.0)


def test_refusals_and_foreign_labels_are_kept_as_what_they_are():
    answers = {"good": ("good", 0.9), "rain": ("Tuesday", 0.8), "none": (" ", 0.5)}
    rows = ["good", "rain", "none"]
    with StandIn(say=lambda text: answers[text]) as server:
        trace = recorded(cascade_of(server), rows=rows)
    good, foreign, refused = trace.ranked[:, 1, 0].tolist()
    assert good == 0
    assert foreign >= 2
    assert refused < 0
    assert trace.confidence[2, 1] == 0
    assert len(trace.notes) == 2
    assert "'paid' refused 1 times" in trace.notes[0]


def test_what_failed_for_good_is_asked_again_when_the_recording_goes_on(tmp_path):
    path = tmp_path / "a.trace"
    with StandIn() as server:
        cascade = cascade_of(server)
        server.faults = Faults(broken=1.0)
        with pytest.raises(InputError, match="'paid' has not answered example 0"):
            recorded(cascade, path=path)
        server.faults = Faults()
        assert len(recorded(cascade_of(server), path=path)) == 60
        server.faults = Faults(broken=0.8)
        with pytest.warns(UserWarning, match="left out"):
            trace = recorded(cascade_of(server), nonfinite="skip")
    assert 0 < len(trace) < 60


def test_answers_of_another_prompt_are_not_taken(tmp_path):
    path = tmp_path / "a.trace"
    with StandIn() as server:
        with pytest.raises(SpendingError):
            recorded(cascade_of(server), path=path, max_spend=0.0005)
        others = ({"max_tokens": 3}, {"prompt": "Or {row}?"}, {"labels": LABELS[::-1]})
        before = sum(server.attempts.values())
        for other in others:
            with pytest.raises(InputError, match="begun with other functions"):
                recorded(cascade_of(server, **other), path=path)
        assert sum(server.attempts.values()) == before
        journal = next((tmp_path / "a.trace.partial").glob("answers-*.jsonl"))
        lines = journal.read_text().splitlines()
        odd = [
            *(lines[1][:20], "[" * 100_000, "5", '{"unread": -1}', '{"asked": "x", "label": 1}'),
            '{"asked": "x", "label": 1, "confidence": 2.0}',
            '{"asked": "x", "label": 1, "confidence": NaN}',
            f'{{"asked": "x", "label": 1{"0" * 400}, "confidence": 0.5}}',
            '{"asked": "x", "label": 1, "confidence": 0.5, "price": "1"}',
        ]
        for line in odd:
            journal.write_text("\n".join([lines[0], line, *lines[2:], ""]))
            with pytest.raises(FileFormatError, match="damaged"):
                recorded(cascade_of(server), path=path)


RUN = """
import sys, warnings
sys.path[:0] = {paths!r}
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location("recording_of_services", {file!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
class Server: url = {url!r}
module.recorded(module.cascade_of(Server, limits=module.Limits(concurrency=4)), path=Path({path!r}))
"""


def run(server, path):
    src, tests = Path(sys.modules["offramp"].__file__).parents[1], Path(__file__).parents[2]
    code = RUN.format(paths=[str(src), str(tests)], file=__file__, url=server.url, path=str(path))
    environment = {**os.environ, "PYTHONPATH": str(src)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


@pytest.mark.parametrize("idempotent", [True, False])
def test_a_kill_loses_no_answer_and_none_is_paid_for_twice(tmp_path, idempotent):
    path = tmp_path / "a.trace"
    with StandIn(latency=0.03, idempotent=idempotent) as server:
        process = run(server, path)
        until = time.monotonic() + 60
        while len(server.charges) < 26 and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        while server.running and time.monotonic() < until:
            time.sleep(0.005)  # what was on its way is charged as well
        journal = next((tmp_path / "a.trace.partial").glob("answers-*.jsonl")).read_text()
        kept = len(journal[: journal.rfind("\n") + 1].splitlines()) - 1
        before = sum(server.charges.values())
        assert before - 8 <= kept <= before < 60  # but for those on their way
        trace = recorded(cascade_of(server), path=path)
        again = sum(server.charges.values()) - before
    assert len(trace) == 60
    assert again == (60 - before if idempotent else 60 - kept)
    if idempotent:
        assert set(server.charges.values()) == {1}
        assert trace.prices[:, 1].sum().item() == pytest.approx(server.spent)


def test_no_key_is_written(tmp_path, monkeypatch):
    key = "sk-very-secret-7131"
    monkeypatch.setenv("TINY_KEY", key)
    with StandIn(key=key, say=lambda text: (key, 0.5)) as server:
        cascade = cascade_of(server, key_env="TINY_KEY")
        with pytest.raises(SpendingError):
            recorded(cascade, path=tmp_path / "a.trace", max_spend=0.0005)
        assert "no class" in recorded(cascade, path=tmp_path / "b.trace").notes[0]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.suffix == ".jsonl" for file in files)
    assert not any(key.encode() in file.read_bytes() for file in files)
    assert json.loads((tmp_path / "b.trace" / "trace.json").read_text())
