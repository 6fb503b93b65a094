"""What watches over a served model: audits, late labels, drift, alarms, and what is kept."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import InputError, StorageError, UnknownNameError
from offramp._core.topology import Topology
from offramp.policy import Candidate, Feature, Linear, Node, Policy
from offramp.policy.gears import Gear, Gears
from offramp.policy.promise import Guarantee, Limit
from offramp.runtime import Adaptive, Executor, audit_mask
from offramp.serve import audit as audit_module
from offramp.serve.gears import all_gears
from offramp.serve.metrics import Metrics
from offramp.serve.observer import Observer
from offramp.serve.order import InOrder

SECONDS = 60
CLASSES = 3


class Small(nn.Module):
    """Says the class in the first column, as sure as the second column says."""

    def forward(self, x):
        return nn.functional.one_hot(x[:, 0].long(), CLASSES) * x[:, 1:2]


class Large(nn.Module):
    """Says the class in the third column; may be told to wait."""

    reentrant = True

    def __init__(self):
        super().__init__()
        self.gate, self.rows = None, 0

    def forward(self, x):
        if self.gate is not None:
            assert self.gate.wait(SECONDS)
        self.rows += len(x)
        return nn.functional.one_hot(x[:, 2].long(), CLASSES) * 9.0


def promised(risk, at_most):
    return Guarantee(
        limits=(Limit(risk=risk, at_most=at_most),),
        delta=0.1,
        p_value=0.01,
        tested=3,
        n=1000,
        split="calibrate",
        fingerprint="0" * 64,
        class_weights=None,
        assumptions=("None.",),
    )


def make(risk="disagreement", at_most=0.05, exits=(700, 300)):
    topology = Topology.of(["small", "large"])
    from offramp.stages import Cascade

    cascade = Cascade.from_models(
        {"small": Small(), "large": Large()}, class_names=["cat", "dog", "owl"]
    )
    for stage in cascade:
        stage.keeps_company = True
    node = Node(Linear.threshold(Feature("max_prob", 0), 0.6))
    fast = Candidate(policy=Policy(topology, {(0,): node}), method="threshold", reference="large")
    reference = Candidate.single(topology, "large", reference="large")
    gears = Gears(
        delta=0.1,
        held=(
            Gear(
                name="reference", candidate=reference, guarantee=None, sentence="", cost_ratio=1.0
            ),
            Gear(
                name="fast",
                candidate=fast,
                guarantee=promised(risk, at_most),
                sentence="",
                cost_ratio=0.4,
                exits=exits,
            ),
        ),
    )
    costs = Costs.simple("flops", [1.0, 4.0])
    model = Adaptive(cascade, gears["fast"], costs=costs, gears=gears)
    return model, cascade.stage(1).module


def rows(n, *, wrong=0.0, hard=0.3, seed=0):
    """Easy ones leave at once; the small network says something else than the large to some."""
    rng = np.random.default_rng(seed)
    small, large = rng.integers(0, CLASSES, (2, n))
    large = np.where(rng.random(n) < wrong, (small + 1) % CLASSES, small)
    sure = np.where(rng.random(n) < hard, 0.2, 5.0)
    return torch.from_numpy(np.stack([small, sure, large], axis=1)).float()


def ask(observer, executor, x, ids, gear=None):
    answer = executor.future(x, ids, gear=gear).result(SECONDS)
    observer.answered(x, ids, answer, 0.001, gear=gear)
    return answer


def names(begin, n):
    return [f"request-{k}" for k in range(begin, begin + n)]


class Watched:
    """A model, its executor and its observer, for one test."""

    def __init__(self, model, **arguments):
        self.model = model
        self.observer = Observer("m", model, **arguments)
        self.executor = Executor(model, gears=all_gears(model))
        self.observer.start(self.executor)
        self.count = 0

    def ask(self, n, gear=None, **of):
        ids = names(self.count, n)
        self.count += n
        x = rows(n, seed=self.count, **of)
        return x, ids, ask(self.observer, self.executor, x, ids, gear)

    def settle(self):
        self.observer.flush()
        assert self.observer._audits.wait(SECONDS)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.executor.close()
        self.observer.close()


def test_audits_are_those_that_are_drawn_and_count_for_their_gear():
    model, _ = make()
    metrics = Metrics()
    with Watched(model, audit=0.2, seed=3, metrics=metrics) as watched:
        ids = []
        for _ in range(20):
            ids += watched.ask(10, wrong=0.5)[1]
        watched.settle()
        status = watched.observer.status()
    drawn = int(audit_mask(np.array(ids), rate=0.2, seed=3).sum())
    assert 20 < drawn < 70
    assert status["audits"]["compared"] == drawn
    (promise,) = status["promises"]
    assert promise["n"] == drawn
    assert promise["alarm"]
    assert status["examples"] == 200
    assert status["cost"] < status["reference_cost"] == 800
    (alarm,) = watched.observer.alarms
    assert (alarm.kind, alarm.gear) == ("promise", "fast")
    assert "disagreement <= 0.05 of gear 'fast' is broken" in alarm.text
    text = metrics.text()
    assert 'offramp_alarm{kind="promise",model="m"} 1.0' in text
    agreed = status["audits"]["compared"] - status["audits"]["differ"]
    assert f'offramp_audits_total{{gear="fast",model="m",outcome="agrees"}} {agreed}.0' in text


def test_while_a_promise_holds_nothing_is_said():
    model, _ = make()
    with Watched(model, audit=1.0) as watched:
        for _ in range(30):
            watched.ask(20, wrong=0.02)
            watched.settle()
        assert watched.observer.alarms == ()
        assert watched.observer.gear("fast") == "fast"
        assert watched.observer.status()["promises"][0]["n"] == 600


@pytest.mark.parametrize(("on_alarm", "then"), [("reference", "reference"), ("keep", "fast")])
def test_an_alarm_decides_what_answers_from_then_on(on_alarm, then):
    model, _ = make()
    with Watched(model, audit=1.0, on_alarm=on_alarm) as watched:
        while not watched.observer.broken:
            watched.ask(20, wrong=0.6)
            watched.settle()
            assert watched.count < 2000
        assert watched.observer.gear("fast") == then
        assert watched.observer.gear(None) == (None if then == "fast" else "reference")


def test_late_labels_count_where_the_answer_was_audited():
    model, _ = make("accuracy_drop", 0.05)
    with Watched(model, audit=0.5, seed=1) as watched:
        x, ids, answer = watched.ask(200, wrong=0.5)
        watched.settle()
        drawn = audit_mask(np.array(ids), rate=0.5, seed=1)
        assert watched.observer.status()["audits"]["without_label"] == drawn.sum()
        right = [("cat", "dog", "owl")[int(k)] for k in x[:, 2]]
        half = watched.observer.feedback(ids[:100], right[:100])
        assert half == (int(drawn[:100].sum()), int((~drawn[:100]).sum()))
        assert watched.observer.feedback(ids[:100], right[:100]) == (0, 100)
        indices = [int(k) for k in x[100:, 2]]
        watched.observer.feedback(ids[100:], indices)
        (promise,) = watched.observer.status()["promises"]
        assert promise["n"] == drawn.sum()
        assert promise["alarm"]
        lost = (answer.labels.numpy() != x[:, 2].numpy())[drawn].mean()
        assert lost > 0.2


@pytest.mark.parametrize(
    ("ids", "labels", "error", "said"),
    [
        (["a"], [], InputError, "one for each id"),
        (["a"], ["cow"], UnknownNameError, "class 'cow'"),
        (["a"], [3], InputError, r"integers in \[0, 3\)"),
        (["a"], [-1], InputError, r"integers in \[0, 3\)"),
        (["a"], [True], InputError, "got True"),
        (["a"], [0.5], InputError, "got 0.5"),
    ],
)
def test_labels_that_are_none_are_refused(ids, labels, error, said):
    observer = Observer("m", make()[0])
    with pytest.raises(error, match=said):
        observer.feedback(ids, labels)
    observer.close()


def test_audits_wait_for_everybody_else_and_what_has_no_room_is_counted(monkeypatch):
    monkeypatch.setattr(audit_module, "MOST", 10)
    model, large = make()
    metrics = Metrics()
    with Watched(model, audit=1.0, metrics=metrics) as watched:
        large.gate = threading.Event()
        x = rows(60, hard=0.0)
        answer = watched.executor.future(x, names(0, 60)).result(SECONDS)  # needs small alone
        watched.observer.answered(x, names(0, 60), answer, 0.001)
        watched.observer.flush()
        text = metrics.text()
        large.gate.set()
        watched.settle()
        status = watched.observer.status()
    dropped = text.split('outcome="dropped"} ')[1].split()[0]
    assert 60 - 10 - 8 <= float(dropped) <= 50
    assert status["audits"]["compared"] == 60 - float(dropped)


def test_answers_that_were_cut_short_promise_nothing():
    model, _ = make()
    with Watched(model, audit=1.0) as watched:
        x, ids = rows(30, hard=1.0), names(0, 30)
        answer = watched.executor.future(x, ids, budget=1.5).result(SECONDS)
        assert set(answer.reasons) == {"budget"}
        watched.observer.answered(x, ids, answer, 0.001)
        watched.settle()
        assert watched.observer.status()["audits"]["compared"] == 0


def test_answers_of_the_reference_are_not_audited():
    model, _ = make()
    with Watched(model, audit=1.0) as watched:
        watched.ask(30, gear="reference")
        watched.settle()
        assert watched.observer.status()["audits"]["compared"] == 0


def test_an_example_that_the_reference_cannot_read_is_counted_as_failed():
    model, large = make()
    metrics = Metrics()
    with Watched(model, audit=1.0, metrics=metrics) as watched:
        large.forward = lambda x: 1 / 0
        watched.ask(5, hard=0.0)
        watched.settle()
    assert 'outcome="failed"} 5.0' in metrics.text()


def test_drift_of_exits_against_what_was_tested():
    model, _ = make()
    observer = Observer("m", model)
    for hard, expected in ((0.3, 0), (0.6, 1)):
        for k in range(20):
            x = rows(100, hard=hard, seed=k + int(100 * hard))
            observer.answered(x, np.arange(100), model(x), 0.001)
        observer.flush()
        assert sum(alarm.kind == "exits" for alarm in observer.alarms) == expected
    alarm = next(alarm for alarm in observer.alarms if alarm.kind == "exits")
    assert "left at small less often than in the baseline of 1000 examples" in alarm.text
    assert not observer.broken
    drift = {(d["gear"], d["kind"]): d for d in observer.status()["drift"]}
    assert drift["fast", "exits"]["n"] == 4000
    assert drift["fast", "scores"]["n"] == 2000, "the first 2000 were its baseline"
    assert drift["reference", "scores"]["learned"] == 0
    observer.close()


def test_answers_by_deadline_do_not_pass_for_early_exits():
    """Under overload the server cuts answers short; that is no change of what comes."""
    model, _ = make()
    observer = Observer("m", model)
    with Executor(model) as executor:
        for k in range(30):
            x = rows(100, seed=k)
            answer = executor.future(x, budget=1.5).result(SECONDS)
            observer.answered(x, np.arange(100), answer, 0.001)
    observer.flush()
    assert observer.alarms == ()
    observer.close()


def test_drift_sees_answers_in_the_order_of_their_requests():
    """Who leaves early is answered early, while the others wait in front of a slow stage."""
    model, large = make()
    times = iter(np.arange(0, 1e6, 0.01))
    with Executor(model, workers=1, batch_size={"small": 1, "large": 64}) as executor:
        observer = Observer("m", model, clock=lambda: next(times))
        observer.start(executor)
        large.gate = threading.Event()
        waiting = [(x, executor.future(x)) for x in rows(3, hard=1.0).split(1)]
        told = []
        drift = observer._drift["fast"]
        update = drift.update
        drift.update = lambda *given: told.append(given[0]) or update(*given)
        easy = rows(50, hard=0.0)
        observer.answered(easy, np.arange(50), model(easy), 0.001)
        observer.flush()
        assert told == [], "somebody came before them and is not answered"
        large.gate.set()
        for x, future in waiting:
            observer.answered(x, [0], future.result(SECONDS), 60.0)
        for _ in range(200):  # seconds go by
            observer.answered(easy[:1], [0], model(easy[:1]), 0.0)
        observer.flush()
        seen = np.concatenate(told)
        assert seen[:3].tolist() == [1, 1, 1]
        assert seen[3:53].tolist() == [0] * 50
        observer.close()


def test_after_a_restart_it_goes_on_where_it_was(tmp_path):
    model, _ = make("accuracy_drop", 0.05)
    with Watched(model, audit=1.0, folder=tmp_path) as watched:
        x, ids, _ = watched.ask(60, wrong=0.5)
        for _ in range(2):
            watched.settle()
            watched.ask(170)
        watched.settle()
        watched.observer.feedback(ids[:30], [int(k) for k in x[:30, 2]])
        before = watched.observer.status()
    again = Observer("m", make("accuracy_drop", 0.05)[0], folder=tmp_path)
    after = again.status()
    assert after["promises"] == before["promises"]
    assert after["audits"]["without_label"] == before["audits"]["without_label"] == 370
    assert again.feedback(ids, [int(k) for k in x[:, 2]]) == (30, 30)
    again.close()
    other = Observer("m", make("accuracy_drop", 0.01)[0], folder=tmp_path)
    assert other.status()["promises"][0]["n"] == 0, "another promise begins anew"
    assert other.feedback(["request-80"], ["cat"]) == (0, 1), "of answers of another bundle"
    other.close()


def test_an_alarm_is_still_there_after_a_restart(tmp_path):
    model, _ = make()
    with Watched(model, audit=1.0, folder=tmp_path) as watched:
        while not watched.observer.broken:
            watched.ask(20, wrong=0.6)
            watched.settle()
    again = Observer("m", make()[0], folder=tmp_path, on_alarm="reference")
    assert again.gear(None) == "reference"
    assert again.alarms == watched.observer.alarms
    again.close()


def test_those_who_share_a_folder_watch_one_promise_and_each_its_own_drift(tmp_path):
    arguments = {"audit": 1.0, "parts": 2, "folder": tmp_path, "on_alarm": "reference"}
    one = Watched(make("accuracy_drop", 0.05)[0], part=0, **arguments)
    two = Watched(make("accuracy_drop", 0.05)[0], part=1, **arguments)
    with one, two:
        x, ids, _ = one.ask(40, wrong=0.5)
        two.count = 1000
        y, others, _ = two.ask(40, wrong=0.5)
        for watched in (one, two):
            watched.settle()
        assert two.observer.status()["audits"]["without_label"] == 80
        assert two.observer.feedback(ids, [int(k) for k in x[:, 2]]) == (40, 0)
        assert one.observer.feedback(ids, [int(k) for k in x[:, 2]]) == (0, 40)
        assert one.observer.feedback(others, [int(k) for k in y[:, 2]]) == (40, 0)
        (promise,) = one.observer.status()["promises"]
        assert two.observer.status()["promises"] == [promise]
        assert promise["n"] == 80
        while not one.observer.broken:
            x, ids, _ = one.ask(40, wrong=0.9)
            one.settle()
            one.observer.feedback(ids, [int(k) for k in x[:, 2]])
        two.observer.flush()
        assert two.observer.broken
        assert two.observer.gear(None) == "reference"
        drift, others = (
            {(each["gear"], each["kind"]): each for each in w.observer.status()["drift"]}
            for w in (one, two)
        )
    alone = Observer("m", make()[0])
    whole = {(each["gear"], each["kind"]): each for each in alone.status()["drift"]}
    alone.close()
    at = ("fast", "exits")
    assert drift[at]["alarm_at"] == others[at]["alarm_at"] == 2 * whole[at]["alarm_at"]


def test_a_full_disk_costs_audits_and_no_answers(monkeypatch, caplog):
    model, _ = make("accuracy_drop", 0.05)
    with Watched(model, audit=1.0) as watched:
        watched.observer._state._db.execute("PRAGMA query_only = ON")
        watched.ask(300)
        watched.settle()
        assert watched.observer.status()["examples"] == 300
        with pytest.raises(StorageError, match="cannot be written"):
            watched.observer.feedback(["request-0"], ["cat"])
    assert len([one for one in caplog.records if "not counted any more" in one.message]) == 1


def test_settings_that_cannot_be_are_refused():
    model, _ = make()
    for arguments, said in (
        ({"audit": 1.5}, "audit"),
        ({"delta": 0}, "delta"),
        ({"on_alarm": "panic"}, "on_alarm"),
    ):
        with pytest.raises(InputError, match=said):
            Observer("m", model, **arguments)
    plain = Adaptive(model.cascade, model.policy)
    with pytest.raises(InputError, match="reference"):
        Observer("m", plain, audit=0.1)
    for arguments in ({"audit": 0.1}, {"on_alarm": "reference"}):
        observer = Observer("m", Adaptive(model.cascade, model.gears["fast"]), **arguments)
        with Executor(model, gears={"fast": model}) as executor, pytest.raises(UnknownNameError):
            observer.start(executor)
        observer.close()


def test_answers_of_any_form_are_taken(caplog):
    """Labels alone, no answer at all, several gears and kinds of ids in one block."""
    from offramp.runtime.prediction import joined

    model, _ = make("accuracy_drop")
    with Watched(model, audit=1.0, metrics=Metrics()) as watched:
        x = rows(6)
        answer = model(x)
        labels_alone = replace(answer, log_probs=None, confidence=None)
        nobody = joined(6, [(torch.tensor([0]), answer.take([0]))])
        for k, one in enumerate((answer, labels_alone, nobody)):
            ids = [f"{k}-{row}" for row in range(6)] if k else np.arange(6)
            watched.observer.answered(x, ids, one, 0.001, gear="fast")
        watched.observer.answered(x, np.arange(6, 12), model.reference(x), 0.001, gear="reference")
        watched.settle()
        status = watched.observer.status()
    assert status["examples"] == 24
    assert status["audits"]["compared"] == 13
    assert not caplog.records


def test_a_request_that_hangs_does_not_hold_the_others_back_for_ever():
    held = InOrder[int](most=3)
    for k in range(5):
        held.add(float(k), k)
    assert held.until(0.0) == [0, 1]
    assert len(held) == 3
