"""A policy of labels with confidences met logits and decided otherwise; it knows its form now."""

import inspect
import json

import numpy as np
import pytest
import torch
from torch import nn

import offramp
from offramp import Adaptive, Candidate, Cascade, Policy, load, save
from offramp._core.errors import FileFormatError, InputError
from offramp._core.outputs import labels_with_confidence
from offramp._core.schema import from_json, to_json
from offramp.evaluation import evaluate
from offramp.evaluation.replay import replay
from offramp.fitting.registry import POLICIES
from offramp.models import ModelSpec
from offramp.policy import Agreement, Constant, Feature, Linear, Node
from offramp.trace import from_logits, from_predictions, make_trace

C, N = 4, 900
MADE = make_trace(N, stages=2, classes=C, seed=0)
NAMES = ("local", "paid")
PRICED = {"costs": {"local": 0.1, "paid": 1.0}, "unit": "usd"}
INPUTS = torch.arange(N)


class Stored(nn.Module):
    """A network that looks its answer up: the input is the number of the example."""

    def __init__(self, stage, form="logits"):
        super().__init__()
        self.register_buffer("logits", MADE.logits[:, stage])
        self.form = form

    def forward(self, x):
        logits = self.logits[x]
        confidence, labels = logits.softmax(dim=1).max(dim=1)
        if self.form == "pair":
            return labels, confidence
        return {"labels": labels, "confidence": confidence} if self.form == "named" else logits


def services():
    of = {name: MADE.logits[:, k].softmax(dim=1).max(dim=1) for k, name in enumerate(NAMES)}
    return from_predictions(
        {name: best.indices for name, best in of.items()},
        MADE.labels,
        confidences={name: best.values for name, best in of.items()},
        classes=C,
        **PRICED,
    ).split_into({"fit": 400, "calibrate": 250, "test": 250}, seed=0)


def networks():
    trace = from_logits(dict(zip(NAMES, MADE.logits.unbind(1), strict=True)), MADE.labels, **PRICED)
    return trace.split_into({"fit": 400, "calibrate": 250, "test": 250}, seed=0)


def fitted(trace):
    return offramp.fit(trace, "threshold", reference="paid", progress=False, combines=["last"])


@pytest.fixture(scope="module")
def of_services():
    return fitted(services()).cheapest(max_drop=0.02, delta=None)


@pytest.fixture(scope="module")
def of_networks():
    return fitted(networks()).cheapest(max_drop=0.02, delta=None)


def cascade(form="logits", **arguments):
    return Cascade.from_models(
        {name: Stored(k, form) for k, name in enumerate(NAMES)}, edges="full", **arguments
    )


def test_live_logits_are_refused_for_a_policy_of_confidences(of_services):
    with pytest.raises(InputError, match=r"fitted on labels with confidences, but stage 'local'"):
        Adaptive(cascade(), of_services)


@pytest.mark.parametrize("form", ["logits", "pair", "named"])
def test_a_declared_form_answers_live_as_in_replay(of_services, form):
    trace = services().subset("test")
    live = Adaptive(cascade(form, outputs="confidence", classes=C), of_services, costs=trace.costs)
    answer, said = live(INPUTS[trace.ids]), replay(trace, of_services.candidate.policy)
    assert answer.stage.tolist() == said.last.tolist()
    assert answer.labels.tolist() == said.labels[:, 0].tolist()
    np.testing.assert_allclose(answer.cost.numpy(), said.cost)
    assert 0.05 < (answer.stage == 1).float().mean() < 0.95


def test_streams_and_parts_of_batches_answer_alike(of_services):
    trace = services().subset("test")
    live = Adaptive(cascade("pair", outputs="confidence", classes=C), of_services)
    whole = live(INPUTS[trace.ids], ids=trace.ids)
    stage = dict(zip(trace.ids.tolist(), whole.stage.tolist(), strict=True))
    batches = [INPUTS[trace.ids[k : k + 40]] for k in range(0, len(trace), 40)]
    ids = [trace.ids[k : k + 40] for k in range(0, len(trace), 40)]
    for names, answer in live.stream(batches, ids, batch_size=16):
        assert [stage[i] for i in names.tolist()] == answer.stage.tolist()
    assert live(INPUTS[:1]).stage.tolist() == [int(live(INPUTS[:2]).stage[0])]


def test_a_policy_of_logits_is_refused_where_stages_declare_confidences(of_networks):
    with pytest.raises(InputError, match="fitted on logits, but stage 'local' gives labels with"):
        Adaptive(cascade(outputs="confidence"), of_networks)


def test_replay_and_evaluation_refuse_another_form_both_ways(of_services, of_networks):
    for choice, other in ((of_services, networks()), (of_networks, services())):
        for look in (
            lambda c, o: evaluate(o.subset("test"), c.candidate),
            lambda c, o: replay(o, c.candidate.policy),
        ):
            with pytest.raises(InputError, match="but the trace gives"):
                look(choice, other)
    frontier = fitted(services())
    with pytest.raises(InputError, match="but the trace gives logits"):
        frontier.calibrated_on(networks().subset("test"), fit=services().subset("fit"))


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"agreement"}))
def test_every_fitter_says_on_which_form_it_looked(name):
    options = {"stopping": {"epochs": 1, "cost_weights": [0.5]}, "learned": {"cost_weights": [0.5]}}
    for trace in (services(), networks()):
        found = POLICIES[name](
            trace.take(torch.arange(120)), reference="paid", **options.get(name, {})
        )
        forms = {candidate.policy.outputs for candidate in found}
        assert forms == ({"labels"} if name == "random" else {trace.outputs})


def test_what_looks_at_labels_alone_runs_on_every_form():
    labels = make_trace(300, stages=3, kind="labels", seed=1)
    (candidate, *_) = POLICIES["agreement"](labels, reference="stage2", options=[(1, 1)])
    bare = from_predictions(
        {name: labels.ranked[:, k, 0] for k, name in enumerate(labels.stages)},
        labels.labels,
        costs=labels.costs,
        classes=labels.classes,
    )
    logits = make_trace(300, stages=3, seed=1)
    each = [evaluate(t, candidate, bootstrap=0).exit_share for t in (labels, bare, logits)]
    assert each[0] == each[1] == each[2]


def test_a_policy_made_by_hand_says_nothing_and_runs_on_both():
    topology = cascade().topology
    policy = Policy(topology, {(0,): Node(Linear.threshold(Feature("max_prob", 0), 0.8))})
    assert policy.outputs is None
    assert "outputs" not in to_json(policy)
    Adaptive(cascade(), policy)
    Adaptive(cascade(outputs="confidence"), policy)


def test_the_form_is_stored_and_older_files_have_none(of_services):
    stored = json.loads(json.dumps(to_json(of_services.candidate)))
    assert from_json(Candidate, stored).policy.outputs == "confidence"
    del stored["policy"]["outputs"]
    assert from_json(Candidate, stored).policy.outputs is None
    stored["policy"]["outputs"] = "scores"
    with pytest.raises(FileFormatError, match="scores"):
        from_json(Candidate, stored)


def small(outputs="logits", classes=None):
    nets = {}
    for k, name in enumerate(NAMES):
        spec = ModelSpec(name="torch.nn:Linear", arguments={"in_features": 3, "out_features": C})
        nets[name] = (nn.Linear(3, C).eval(), spec)
        nets[name][0].weight.data = torch.linspace(-3, 3, 3 * C).reshape(C, 3) * (k + 1)
    return Cascade.from_models(
        {name: net for name, (net, _) in nets.items()},
        specs={name: spec for name, (_, spec) in nets.items()},
        outputs=outputs,
        classes=classes,
    )


def test_a_bundle_keeps_the_declared_form(of_services, tmp_path):
    declared = small("confidence")
    save(Adaptive(declared, of_services), tmp_path / "b")
    loaded = load(tmp_path / "b", allow_import=True)
    batch = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    before = Adaptive(declared, of_services)(batch)
    after = loaded(batch)
    assert before.log_probs is None
    assert torch.equal(before.labels, after.labels)
    assert torch.equal(before.confidence, after.confidence)
    assert torch.equal(loaded.reference(batch).labels, after_of_f(declared, batch))


def after_of_f(declared, batch):
    return declared.stage("paid").module(batch).argmax(1)


def test_saving_another_form_is_refused_and_leaves_nothing(of_services, tmp_path):
    with pytest.raises(InputError, match="fitted on labels with confidences"):
        save(Adaptive(small(), of_services), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_of_logits_has_no_new_fields(of_networks, tmp_path):
    save(Adaptive(small(), of_networks), tmp_path / "b")
    stages = json.loads((tmp_path / "b" / "manifest.json").read_text())["stages"]
    assert all(set(stage) == {"name", "model", "transform", "weights"} for stage in stages)


def test_an_export_is_refused_with_the_way_out(of_services, tmp_path):
    pytest.importorskip("onnx")
    from offramp.bundle import export_onnx

    example = torch.zeros(1, 3)
    with pytest.raises(InputError, match="fitted on labels with confidences"):
        export_onnx(Adaptive(small(), of_services), tmp_path / "e", example=example, folder=True)
    with pytest.raises(InputError, match="answers with labels; stages that answer"):
        export_onnx(
            Adaptive(small("confidence"), of_services), tmp_path / "e", example=example, folder=True
        )


def test_all_stages_answer_in_one_form():
    with pytest.raises(InputError, match="outputs must be one form for all stages"):
        cascade(outputs={"local": "confidence"})
    with pytest.raises(InputError, match="outputs must name only networks of the cascade"):
        cascade(outputs={"lokal": "confidence"})


def test_labels_without_a_number_of_classes_are_refused(of_services):
    live = Adaptive(cascade("pair", outputs="confidence"), of_services)
    with pytest.raises(InputError, match="the number of classes must be given"):
        live(INPUTS[:4])
    names = tuple("pqrs")
    live = Adaptive(cascade("pair", outputs="confidence", class_names=names), of_services)
    assert live(INPUTS[:4]).log_probs is None
    assert live(INPUTS[:0]).labels.shape == live(INPUTS[:0]).confidence.shape == (0,)
    assert cascade(outputs="confidence", class_names=names).check(INPUTS[:2]) == C


def test_a_refusal_goes_on_and_a_percentage_is_refused(of_services):
    class Service(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x), torch.where(x == 0, torch.nan, self.confidence)

    local, paid = Service(), Stored(1, "pair")
    local.confidence = torch.tensor(0.999)
    models = {"local": local, "paid": paid}
    live = Adaptive(Cascade.from_models(models, outputs="confidence", classes=C), of_services)
    answer = live(INPUTS[:5])
    assert answer.stage.tolist() == [1, 0, 0, 0, 0]  # no answer at all: the next stage is asked
    assert answer.valid.all()
    local.confidence = torch.tensor(83.0)
    with pytest.raises(InputError, match=r"confidence must be in \[0, 1\], got 83\.0"):
        live(INPUTS[:5])


def test_two_labels_outside_the_classes_agree_only_if_they_are_one():
    class Service(nn.Module):
        def __init__(self, labels):
            super().__init__()
            self.labels = torch.tensor(labels)

        def forward(self, x):
            return self.labels[x], torch.full((len(x),), 0.9)

    said = {"local": [105, 105, 1], "paid": [105, 207, 1], "other": [0, 0, 0]}
    trace = from_predictions(
        said,
        [0, 0, 0],
        confidences=dict.fromkeys(said, [0.9] * 3),
        classes=C,
        costs={"local": 1, "paid": 2, "other": 4},
        unit="usd",
    )
    models = {name: Service(labels) for name, labels in said.items()}
    live = Cascade.from_models(models, edges="chain", outputs="confidence", classes=C)
    nodes = {(0,): Node(Constant(False)), (0, 1): Node(Agreement((0, 1)))}
    policy = Policy(live.topology, nodes, outputs="labels")
    answer, wanted = Adaptive(live, policy)(torch.arange(3)), replay(trace, policy)
    assert answer.stage.tolist() == wanted.last.tolist() == [1, 2, 1]


def test_a_label_outside_the_classes_is_an_answer_of_its_own():
    said = labels_with_confidence(torch.tensor([7, -2, 1]), torch.tensor([0.9, 0.9, 0.9]), C)
    assert said.top(1)[:, 0].tolist() == [7, -2, 1]
    assert said.scores().argmax(dim=1).tolist() == [C, C, 1]
    assert said.scores().shape == (3, said.width)
    bare = inspect.unwrap(labels_with_confidence)  # the tests' type checker would be first
    with pytest.raises(InputError, match="must give whole numbers"):
        bare(torch.tensor([0.5]), torch.tensor([0.9]), C)
