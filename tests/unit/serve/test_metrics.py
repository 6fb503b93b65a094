import asyncio
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from offramp import __version__
from offramp._core.costs import Costs
from offramp._core.errors import FileFormatError
from offramp.policy import Candidate
from offramp.runtime import Adaptive, Executor, Ran
from offramp.serve.hub import Hub
from offramp.serve.metrics import REFUSED, Metrics
from offramp.serve.scrape import Scrape
from offramp.stages import Cascade

SECONDS = 60


def model():
    cascade = Cascade.from_models({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    candidate = Candidate.single(cascade.topology, "a", reference="b")
    return Adaptive(cascade, candidate, costs=Costs.simple("flops", [1.0, 4.0]))


def scrape(metrics):
    return Scrape.of(metrics.text())


def test_answers_are_counted_by_stage_and_reason_with_their_cost():
    metrics, one = Metrics(), model()
    for n in (1, 3):
        answer = one(torch.zeros(n, 4))
        metrics.answered("m", "fast", [(answer, 0.02)], unit="flops", reference_cost=4.0)
    found = scrape(metrics)
    of = {"model": "m", "gear": "fast", "stage": "a", "reason": "last"}
    assert found.total("offramp_examples_total", **of) == 4
    assert found.total("offramp_examples_total") == 4
    assert found.total("offramp_cost_total", unit="flops") == 4
    assert found.total("offramp_reference_cost_total", unit="flops") == 16
    assert found.total("offramp_request_duration_seconds_count", model="m") == 2
    assert found.total("offramp_request_duration_seconds_sum", model="m") == 0.04
    assert found.quantile("offramp_request_duration_seconds", 0.5, model="m") == 0.025
    assert found.total("offramp_build_info", version=__version__) == 1


def test_batches_of_stages_and_queues_are_those_of_the_executor():
    metrics, one = Metrics(), model()
    with Executor(one, batch_size=8, observer=metrics.ran("m")) as executor:
        metrics.queue("m", executor)
        executor.future(torch.zeros(6, 4)).result(SECONDS)
        found = scrape(metrics)
    of = {"model": "m", "stage": "a"}
    assert found.total("offramp_stage_batch_size_sum", **of) == 6
    assert found.total("offramp_stage_batch_fill_ratio_sum", **of) == 0.75
    assert found.total("offramp_stage_duration_seconds_count", **of) == 1
    assert found.values("stage", "offramp_queue_examples") == ["a", "b"]
    assert found.total("offramp_queue_examples") == 0
    metrics.ran("m")(Ran("a", 9, 8, 0.1, True))
    assert scrape(metrics).total("offramp_stage_failures_total", **of) == 1


def everything():
    """Metrics in which each was told something."""
    metrics, one = Metrics(), model()
    answer = one(torch.tensor([[torch.nan] * 4, [0.0] * 4]))
    metrics.answered("m", "fast", [(answer, 0.01)], unit="flops", reference_cost=4.0)
    metrics.ran("m")(Ran("a", 2, 8, 0.1, True))
    for why in REFUSED:
        metrics.refused("m", why)
    metrics.audited("m", "fast", "agrees")
    metrics.labeled("m", 1, 2)
    metrics.capital("m", "fast", "disagreement", 0.5, 20.0)
    metrics.drift("m", "fast", "exits", 0.5, 80.0)
    metrics.alarm("m", "promise", on=False)
    metrics.gear("m", "fast", ["reference", "fast"])
    with Executor(one) as executor:
        metrics.queue("m", executor)
        metrics.text()
    return metrics


def test_names_are_in_base_units_and_labels_have_bounds():
    metrics = everything()
    for family in metrics.registry.collect():
        assert family.name.startswith("offramp_")
        assert not re.search(r"_(ms|us|percent|millis\w*|kb|mb)(_|$)", family.name)
        assert family.documentation
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith(("_total", "_created"))
            labels = set(sample.labels) - {"le"}
            assert labels <= {
                *("model", "gear", "stage", "reason", "why", "unit", "outcome"),
                *("risk", "kind", "version"),
            }
    metrics.refused("m", "a text of a client")
    assert scrape(metrics).values("why") == list(REFUSED)


def test_a_model_that_is_gone_is_not_shown_any_more():
    metrics = everything()
    metrics.alarm("other", "promise", on=True)
    assert "m" in scrape(metrics).values("model")
    metrics.forget("m")
    assert scrape(metrics).values("model") == ["other"]


def test_two_servers_do_not_share_their_numbers():
    first, second = Metrics(), Metrics()
    first.refused("m", "full")
    assert scrape(second).total("offramp_refused_total") == 0


def test_scrapes_are_compared_by_their_counters():
    before = Scrape.of('a_total{x="1"} 3\nb{x="1"} 5\n')
    after = Scrape.of('a_total{x="1"} 7\na_total{x="2"} 1\nb{x="1"} 2\n')
    found = after.since(before)
    assert (found.total("a_total"), found.total("a_total", x="2"), found.total("b")) == (5, 1, 2)
    assert np.isnan(found.quantile("c", 0.5))
    with pytest.raises(FileFormatError, match="no metrics"):
        Scrape.of("<html>{</html>")


# ---- what is built on the names

DEPLOY = Path(__file__).parents[3] / "deploy"
OURS = re.compile(r"\bofframp_\w+")


def known():
    workers = asyncio.run(Hub({}, print, within=1.0).metrics())
    return {name for text in (everything().text(), workers) for name, _ in Scrape.of(text).samples}


def test_the_board_asks_for_metrics_that_there_are():
    board = json.loads((DEPLOY / "grafana" / "offramp.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    places = [panel["gridPos"] for panel in panels]
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    names = {name for text in asked for name in OURS.findall(text)}
    assert names <= known()
    assert all(text.count("(") == text.count(")") for text in asked)


def test_alerts_ask_for_metrics_that_there_are():
    yaml = pytest.importorskip("yaml")
    path = DEPLOY / "prometheus" / "offramp-alerts.yml"
    rules = [r for g in yaml.safe_load(path.read_text())["groups"] for r in g["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        names = set(OURS.findall(rule["expr"]))
        assert names
        assert names <= known()
        page, anchor = rule["annotations"]["runbook"].split("#")
        titles = re.findall(r"^#+ (.*)$", (DEPLOY.parent / page).read_text(), re.MULTILINE)
        assert anchor in [title.lower().replace(" ", "-") for title in titles]
