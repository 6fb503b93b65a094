"""What services say reaches the caller as they said it, from a recording to a bundle."""

import asyncio

import numpy as np
import pytest
import torch
from torch import nn

import offramp
from offramp import Adaptive, Cascade, Policy, load, save
from offramp._core.errors import InputError
from offramp.evaluation.replay import replay
from offramp.models import ModelSpec
from offramp.policy import Agreement, Constant, Feature, Linear, Node
from offramp.runtime import Executor
from offramp.stages import given_costs
from offramp.trace import make_trace

C, N = 4, 600
MADE = make_trace(N, stages=3, classes=C, seed=3)
NAMES = ("cheap", "middle", "dear")
INPUTS = torch.arange(N)
FORMS = ("logits", "probabilities", "confidence", "labels")


class Lookup(nn.Module):
    """Answers by the number of an example, in one form; every seventh label is no class."""

    def __init__(self, stage, form):
        super().__init__()
        self.logits, self.form = MADE.logits[:, stage], form

    def forward(self, x):
        logits = self.logits[x.long()]
        sure, labels = logits.softmax(1).max(1)
        labels = torch.where(x % 7 == 3, 100 + x.long() % 2, labels)
        if self.form == "probabilities":
            return logits.softmax(1)
        return {"logits": logits, "confidence": (labels, sure * 0.2), "labels": labels}[self.form]


def cascade(form, classes=C):
    models = {name: Lookup(k, form) for k, name in enumerate(NAMES)}
    return Cascade.from_models(models, outputs=form, classes=classes, edges="chain")


def recorded(form, **options):
    made = cascade(form)
    costs = given_costs(made, "usd", {"cheap": 1.0, "middle": 2.0, "dear": 9.0})
    batches = [
        (INPUTS[k : k + 100], MADE.labels[k : k + 100], list(range(k, k + 100)))
        for k in range(0, N, 100)
    ]
    if made.outputs == "logits":
        return made, offramp.record(made, batches, costs=costs, progress=False, **options)
    trace = offramp.record(made, batches, costs=costs, progress=False, **options)
    assert any("gave a label that is no class" in note for note in trace.notes)
    return made, trace


def fitted(trace):
    name = "agreement" if trace.outputs == "labels" else "threshold"
    divided = trace.split_into({"fit": 300, "calibrate": 300}, seed=0)
    frontier = offramp.fit(divided, name, reference="dear", progress=False)
    return frontier.cheapest(max_drop=0.05, delta=None)


@pytest.mark.parametrize("form", FORMS)
def test_a_recording_holds_what_was_said(form, tmp_path):
    _, trace = recorded(form)
    assert trace.outputs == ("logits" if form == "probabilities" else form)
    if trace.logits is not None:
        wanted = MADE.logits.log_softmax(2) if form == "probabilities" else MADE.logits
        torch.testing.assert_close(trace.logits, wanted, atol=1e-4, rtol=1e-4)
    else:
        assert set(trace.ranked[3::7].flatten().tolist()) <= {100, 101}
    _, stored = recorded(form, path=tmp_path / "t.trace")
    for name in ("logits", "ranked", "confidence", "labels"):
        have, want = getattr(stored, name), getattr(trace, name)
        assert (have is None) == (want is None)
        assert have is None or torch.equal(have, want)


@pytest.mark.parametrize("form", ["confidence", "labels"])
def test_an_interrupted_recording_goes_on(form, tmp_path):
    made, whole = recorded(form)
    costs = given_costs(made, "usd", dict.fromkeys(NAMES, 1.0))

    def batches(stop):
        for k in range(0, N, 100):
            if k == stop:
                raise KeyboardInterrupt
            yield INPUTS[k : k + 100], MADE.labels[k : k + 100]

    with pytest.raises(KeyboardInterrupt):
        offramp.record(made, batches(300), path=tmp_path / "t", costs=costs, progress=False)
    again = offramp.record(made, batches(None), path=tmp_path / "t", costs=costs, progress=False)
    assert any("gave a label that is no class" in note for note in again.notes)
    assert torch.equal(again.ranked, whole.ranked)
    assert (again.confidence is None) == (form == "labels")
    assert not (tmp_path / "t.partial").exists()


@pytest.mark.parametrize("form", FORMS)
def test_from_recording_to_answers_replay_is_what_runs(form):
    made, trace = recorded(form)
    choice = fitted(trace)
    model, said = Adaptive(made, choice, costs=trace.costs), replay(trace, choice.candidate.policy)
    answer = model(INPUTS)
    assert answer.stage.tolist() == said.last.tolist()
    assert answer.labels.tolist() == said.labels[:, 0].tolist()
    np.testing.assert_allclose(answer.cost.numpy(), said.cost)
    if trace.outputs == "logits":
        assert answer.log_probs.shape == (N, C)
        return
    assert answer.log_probs is None
    assert bool((answer.labels[3::7] >= 100).all())
    if form == "labels":
        assert answer.confidence is None
    else:
        stage, rows = answer.stage, torch.arange(N)
        assert torch.equal(answer.confidence, trace.confidence[rows, stage])
    clone = answer.clone()
    assert torch.equal(clone.labels, answer.labels)
    assert torch.equal(answer.take([5, 3]).labels, answer.labels[[5, 3]])
    nobody = model(INPUTS[:0])
    assert len(nobody) == 0
    assert (nobody.confidence is None) == (form == "labels")


@pytest.mark.parametrize("form", ["confidence", "labels"])
def test_streams_and_executors_say_the_same(form):
    made, trace = recorded(form)
    model = Adaptive(made, fitted(trace))
    whole = model(INPUTS)
    found = torch.full((N,), -9)
    batches = [INPUTS[k : k + 50] for k in range(0, N, 50)]
    for ids, answer in model.stream(batches, batch_size=32):
        assert (answer.confidence is None) == (form == "labels")
        found[torch.from_numpy(ids)] = answer.labels
    assert torch.equal(found, whole.labels)

    async def ask():
        with Executor(model) as executor:
            return await asyncio.gather(*(executor.submit(batch) for batch in batches))

    answers = asyncio.run(ask())
    assert torch.equal(torch.cat([answer.labels for answer in answers]), whole.labels)
    one = [int(model(INPUTS[k : k + 1]).labels) for k in range(20)]
    assert one == whole.labels[:20].tolist()


def test_labels_alone_refuse_a_policy_that_needs_scores():
    made = cascade("labels")
    on = {(0,): Node(Linear.threshold(Feature("max_prob", 0), 0.5)), (0, 1): Node(Constant(False))}
    with pytest.raises(InputError, match="rule Linear after stage 'cheap' needs logits"):
        Adaptive(made, Policy(made.topology, on))
    chain = {(0,): Node(Constant(False)), (0, 1): Node(Constant(False))}
    with pytest.raises(InputError, match="combine='mean' needs logits"):
        Adaptive(made, Policy(made.topology, chain, combine="mean"))
    fine = {(0,): Node(Constant(False)), (0, 1): Node(Agreement((0, 1)))}
    Adaptive(made, Policy(made.topology, fine))
    _, trace = recorded("confidence")
    with pytest.raises(InputError, match="but stage 'cheap' gives labels alone"):
        Adaptive(made, fitted(trace))


def test_combined_answers_of_services_are_probabilities():
    made, trace = recorded("confidence")
    nodes = {(0,): Node(Constant(False)), (0, 1): Node(Constant(False))}
    policy = Policy(made.topology, nodes, combine="mean")
    answer, said = Adaptive(made, policy)(INPUTS), replay(trace, policy)
    assert answer.log_probs.shape == (N, C + 1)
    assert answer.labels.tolist() == said.labels[:, 0].tolist()


class Sick(nn.Module):
    """Gives no answer for some examples."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def forward(self, x):
        sick = (x[:, None] == torch.tensor(self.bad)).any(1)
        return x.long() % C, torch.where(sick, torch.nan, 0.9)


def test_who_is_not_answered_gets_the_last_answer_there_was():
    made = Cascade.from_models(
        {"a": Sick([1]), "b": Sick([0, 1, 2])}, outputs="confidence", classes=C
    )
    never = Policy(made.topology, {(0,): Node(Constant(False))})
    for answer in (
        Adaptive(made, never)(torch.arange(4)),
        *[a for _, a in Adaptive(made, never).stream([torch.arange(4)])],
    ):
        assert answer.labels.tolist() == [0, -1, 2, 3]
        assert answer.valid.tolist() == [True, False, True, True]
        assert answer.confidence.tolist() == pytest.approx([0.9, 0.0, 0.9, 0.9])
        assert answer.nonfinite.tolist() == [1, 2, 1, 0]
    costs = given_costs(made, "usd", {"a": 1.0, "b": 2.0})
    data = [(torch.arange(6), torch.arange(6) % C)]
    with pytest.raises(InputError, match="example 0, stage 'b'"):
        offramp.record(made, data, costs=costs, progress=False)
    with pytest.warns(UserWarning, match="counted as wrong"):
        trace = offramp.record(made, data, costs=costs, progress=False, nonfinite="wrong")
    assert trace.ranked[:, 1, 0].tolist() == [1, 2, 3, 3, 0, 1]
    with pytest.warns(UserWarning, match="left out"):
        assert len(offramp.record(made, data, costs=costs, progress=False, nonfinite="skip")) == 3


@pytest.mark.parametrize("outputs", ["probabilities", "labels"])
def test_a_bundle_keeps_every_form(outputs, tmp_path):
    spec = ModelSpec(name="torch.nn:Linear", arguments={"in_features": 3, "out_features": C})
    nets = {name: nn.Sequential(nn.Linear(3, C), nn.Softmax(1)) for name in NAMES}
    if outputs == "labels":
        nets = {name: nn.Linear(3, C) for name in NAMES}
    specs = dict.fromkeys(NAMES, spec)
    if outputs == "probabilities":
        specs = {}
    made = Cascade.from_models(nets, outputs=outputs, specs=specs, classes=C)
    nodes = {path: Node(Constant(False)) for path in [(0,), (0, 1)]}
    policy = Policy(made.topology.chain(list(NAMES)), nodes)
    model, x = Adaptive(made, policy), torch.randn(9, 3)
    if outputs == "probabilities":
        torch.testing.assert_close(model(x).log_probs, nets["dear"](x).log(), atol=1e-5, rtol=1e-5)
        return
    assert model(x).labels.tolist() == nets["dear"](x).argmax(1).tolist()
    candidate = offramp.Candidate(policy=policy, method="mine", reference="dear")
    save(Adaptive(made, candidate), tmp_path / "b")
    assert torch.equal(load(tmp_path / "b", allow_import=True)(x).labels, model(x).labels)


def test_probabilities_that_are_none_are_refused_by_stage():
    made = Cascade.from_models({"a": nn.Identity()}, outputs="probabilities", classes=C)
    model = Adaptive.single(made, "a")
    with pytest.raises(InputError, match="stage 'a' must sum to 1"):
        model(torch.ones(2, C))
    with pytest.raises(InputError, match=r"stage 'a' must be in \[0, 1\]"):
        model(torch.full((2, C), torch.nan))
    zeros = torch.eye(C)
    assert model(zeros).labels.tolist() == [0, 1, 2, 3]
    assert bool(model(zeros).log_probs.isfinite().all())
