import contextlib
import http.server
import json
import threading

import pytest
from rich.console import Console

from offramp.cli import main
from offramp.cli.top import shown
from offramp.serve.scrape import Scrape

TEXT = """
# TYPE offramp_examples_total counter
offramp_examples_total{gear="drop-1",model="digits",reason="policy",stage="small"} 750.0
offramp_examples_total{gear="drop-1",model="digits",reason="last",stage="large"} 250.0
# TYPE offramp_request_duration_seconds histogram
offramp_request_duration_seconds_bucket{le="0.01",model="digits"} 90.0
offramp_request_duration_seconds_bucket{le="0.1",model="digits"} 100.0
offramp_request_duration_seconds_bucket{le="+Inf",model="digits"} 100.0
offramp_request_duration_seconds_count{model="digits"} 100.0
offramp_request_duration_seconds_sum{model="digits"} 0.7
# TYPE offramp_stage_batch_size histogram
offramp_stage_batch_size_count{model="digits",stage="small"} 40.0
offramp_stage_batch_size_sum{model="digits",stage="small"} 1000.0
offramp_stage_batch_size_count{model="digits",stage="large"} 5.0
offramp_stage_batch_size_sum{model="digits",stage="large"} 250.0
# TYPE offramp_stage_batch_fill_ratio histogram
offramp_stage_batch_fill_ratio_sum{model="digits",stage="small"} 16.0
offramp_stage_batch_fill_ratio_sum{model="digits",stage="large"} 4.0
# TYPE offramp_stage_duration_seconds histogram
offramp_stage_duration_seconds_sum{model="digits",stage="small"} 0.08
offramp_stage_duration_seconds_sum{model="digits",stage="large"} 0.3
# TYPE offramp_queue_examples gauge
offramp_queue_examples{model="digits",stage="small"} 3.0
offramp_queue_examples{model="digits",stage="large"} 17.0
# TYPE offramp_cost_total counter
offramp_cost_total{model="digits",unit="flops"} 410.0
# TYPE offramp_reference_cost_total counter
offramp_reference_cost_total{model="digits",unit="flops"} 1000.0
# TYPE offramp_refused_total counter
offramp_refused_total{model="digits",why="full"} 2.0
# TYPE offramp_audits_total counter
offramp_audits_total{gear="drop-1",model="digits",outcome="agrees"} 9.0
# TYPE offramp_audit_capital gauge
offramp_audit_capital{gear="drop-1",model="digits",risk="disagreement"} 0.7
# TYPE offramp_audit_capital_alarm gauge
offramp_audit_capital_alarm{gear="drop-1",model="digits",risk="disagreement"} 20.0
# TYPE offramp_alarm gauge
offramp_alarm{kind="promise",model="digits"} 0.0
offramp_alarm{kind="exits",model="digits"} 1.0
# TYPE offramp_gear gauge
offramp_gear{gear="drop-1",model="digits"} 1.0
offramp_gear{gear="reference",model="digits"} 0.0
"""


def printed(renderable):
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_everything_that_matters_is_shown():
    text = printed(shown(Scrape.of(TEXT), None, 0.0))
    for part in (
        "digits",
        "gear drop-1 | 1000 examples | 100 requests",
        "p50 <= 10 ms, p99 <= 100 ms",
        "cost 41 % of the reference's",
        "2 refused",
        "9 audits; capital against drop-1, disagreement: 0.70 of 20",
        "ALARM: exits",
    ):
        assert part in " ".join(text.replace("│", " ").split()), part
    rows = {line.split()[1]: line.split()[2:-1] for line in text.splitlines() if "%" in line}
    assert rows["small"] == ["75.0", "%", "#########", "3", "25.0", "40", "%", "2", "ms"]
    assert rows["large"] == ["25.0", "%", "###", "17", "50.0", "80", "%", "60", "ms"]


def test_a_second_look_shows_what_happened_since():
    later = TEXT.replace('stage="small"} 750.0', 'stage="small"} 950.0')
    text = printed(shown(Scrape.of(later), Scrape.of(TEXT), 4.0))
    assert "50 examples/s" in text
    assert "100.0 %" in text
    assert "cost" not in text, "nothing was spent since"


def test_a_server_that_has_answered_nothing_is_shown_too():
    assert "answered nothing yet" in printed(shown(Scrape.of(""), None, 0.0))


@contextlib.contextmanager
def serving(text, token=None):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = token is None or self.headers.get("Authorization") == f"Bearer {token}"
            self.send_response((200 if self.path == "/metrics" else 404) if known else 401)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("end", ["", "/", "/metrics"])
def test_it_looks_at_a_server(end, capsys):
    with serving(TEXT) as url:
        assert main(["top", url + end, "--once"]) == 0
    assert "ALARM: exits" in capsys.readouterr().out


def test_json_is_every_number_once(capsys):
    with serving(TEXT) as url:
        assert main(["top", url, "--json"]) == 0
    samples = json.loads(capsys.readouterr().out)["samples"]
    assert {
        "name": "offramp_alarm",
        "labels": {"model": "digits", "kind": "exits"},
        "value": 1,
    } in (samples)


def test_a_token_is_shown_where_one_is_named(monkeypatch, capsys):
    monkeypatch.setenv("TOP_TOKEN", "secret")
    with serving(TEXT, token="secret") as url:
        assert main(["top", url, "--once"]) == 2
        assert "Unauthorized" in capsys.readouterr().err
        assert main(["top", url, "--once", "--token-env", "TOP_TOKEN"]) == 0
        assert "ALARM: exits" in capsys.readouterr().out
        assert main(["top", url, "--once", "--token-env", "TOP_NONE"]) == 2
    assert "TOP_NONE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:8000", "url must be that of a server"),
        ("file:///etc/passwd", "url must be that of a server"),
        ("http://127.0.0.1:9", "cannot be read"),
    ],
)
def test_no_server_is_an_error_with_its_repair(url, said, capsys):
    assert main(["top", url, "--once"]) == 2
    assert said in capsys.readouterr().err


def test_another_server_than_ours_is_an_error(capsys):
    with serving("<html>{</html>") as url:
        assert main(["top", url, "--once"]) != 0
    assert "no metrics" in capsys.readouterr().err
