"""Joint training: it reaches a known optimum, survives interruption, and refuses what is wrong."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import offramp.train.joint.training as training_module
from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.schema import to_json
from offramp.data import arrays
from offramp.evaluation import evaluate, replay
from offramp.models import small_cnn
from offramp.recording import record
from offramp.runtime import Adaptive
from offramp.stages import Cascade, measure_flops
from offramp.train import sweep_joint, train_joint
from offramp.train.joint.plan import JointPlan
from offramp.train.joint.problem import make_problem
from offramp.train.joint.rollout import freeze_statistics
from offramp.train.state import generator_for

COSTS = Costs.simple("usd", [1.0, 4.0])
QUICK = {"epochs": 3, "seed": 0, "batch_size": 16, "costs": COSTS, "progress": False}


class Pick(nn.Module):
    """Reads some columns of the input."""

    def __init__(self, columns, inner):
        super().__init__()
        self.columns, self.inner = columns, inner

    def forward(self, x):
        return self.inner(x[:, self.columns])


def hard_and_easy(n=400, seed=0):
    """Half are easy: columns 0 and 1 show the label. Half are hard: only columns 3 and 4 do."""
    rng = np.random.default_rng(seed)
    label, hard = rng.integers(2, size=n), rng.random(n) < 0.5
    x = np.zeros((n, 5), dtype=np.float32)
    rows = np.arange(n)
    x[rows, np.where(hard, 2, label)] = 1.0
    x[rows, 3 + label] = 1.0
    return arrays(x, label)


def pair(seed=0, norm=False):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        bn = [nn.BatchNorm1d(3), nn.BatchNorm1d(5)] if norm else [nn.Identity(), nn.Identity()]
        small = Pick([0, 1, 2], nn.Sequential(bn[0], nn.Linear(3, 2)))
        large = nn.Sequential(bn[1], nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
        return Cascade.from_models({"small": small.eval(), "large": large.eval()})


def weights(cascade):
    return {k: v.clone() for k, v in cascade.state_dict().items()}


@pytest.mark.parametrize(  # from other weights as well: make test-slow
    "seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2))]
)
@pytest.mark.parametrize(
    ("estimator", "warm_up", "answers"),
    [("supervised", 0, "best"), ("supervised", 0, "combined"), ("exact", 15, "best")],
)
def test_the_known_optimum_is_reached_from_scratch(seed, estimator, warm_up, answers):
    """The easy half stops, the hard half goes on: no error, cost (1/4 + 5/4) / 2.

    Tolerance: 0.02 of error + cost_weight * cost, which a constant policy misses by 0.05 and more.
    """
    cost_weight = 0.1
    optimum = cost_weight * (0.25 + 1.25) / 2
    cascade = pair(seed)
    trained = train_joint(
        cascade,
        hard_and_easy(seed=seed),
        cost_weight=cost_weight,
        **{**QUICK, "epochs": 30, "seed": seed},
        estimator=estimator,
        answers=answers,
        warm_up=warm_up,
        supervision=0.5,
        schedule="cosine",
    )
    fresh = hard_and_easy(1000, seed=50 + seed)
    trace = record(cascade, fresh, costs=trained.costs, progress=False)
    found = evaluate(trace, trained.candidate(reference="large"), bootstrap=0)
    reached = 1 - found.accuracy + cost_weight * found.cost_ratio
    assert reached == pytest.approx(optimum, abs=0.02)
    constant = min(cost_weight * 1.25, 0.25 + cost_weight * 0.25)
    assert constant > optimum + 0.049


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"estimator": "reinforce", "answers": "drawn", "warm_up": 1},
        {"estimator": "exact", "detached": True},
        {"estimator": "reinforce", "rollouts": "visited", "answers": "best"},
        {"estimator": "reinforce", "rollouts": "visited", "answers": "combined"},
        {"frozen": True},
    ],
)
def test_the_same_call_gives_the_same_weights_and_leaves_the_random_state(options):
    part = hard_and_easy(80)
    state = torch.get_rng_state()
    first, second = pair(norm=True), pair(norm=True)
    one = train_joint(first, part, cost_weight=0.1, **QUICK, **options)
    other = train_joint(second, part, cost_weight=0.1, **QUICK, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.history == other.history
    assert to_json(one.candidate()) == to_json(other.candidate())
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not first.training


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"estimator": "reinforce", "answers": "drawn", "warm_up": 1, "patience": 5},
        {"frozen": True},
        {"augment": lambda x, g: x + 0.1 * torch.rand(x.shape, generator=g)},
    ],
)
def test_a_training_that_goes_on_equals_one_without_interruption(tmp_path, options):
    part = hard_and_easy(80)
    given = {**QUICK, "epochs": 5, **options}
    whole, broken = pair(norm=True), pair(norm=True)
    wanted = train_joint(whole, part, cost_weight=0.1, **given)

    def stop(_epoch, seen=[]):  # noqa: B006
        seen.append(1)
        if len(seen) == 3:
            raise Stop

    path = tmp_path / "joint.safetensors"
    with pytest.raises(Stop):
        train_joint(broken, part, cost_weight=0.1, checkpoint=path, on_epoch=stop, **given)
    again = pair(seed=9, norm=True)
    if options.get("frozen"):
        again = pair(norm=True)
    found = train_joint(again, part, cost_weight=0.1, checkpoint=path, **given)
    assert found.history == wanted.history
    assert to_json(found.candidate()) == to_json(wanted.candidate())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    finished = train_joint(pair(norm=True), part, cost_weight=0.1, checkpoint=path, **given)
    assert finished.history == wanted.history


def test_nan_stops_with_a_message_and_keeps_the_last_good_checkpoint(tmp_path):
    part, path = hard_and_easy(80), tmp_path / "joint.safetensors"
    good = []
    cascade = pair()

    def spoil(_epoch):
        good.append(path.read_bytes())
        if len(good) == 2:
            with torch.no_grad():
                cascade.stage(1).module[1].weight[0, 0] = torch.nan

    with pytest.raises(
        InputError,
        match=r"loss became nan in epoch 3, with learning_rate=0\.1.*"
        r"joint\.safetensors holds the epoch before",
    ):
        train_joint(cascade, part, cost_weight=0.1, checkpoint=path, on_epoch=spoil, **QUICK)
    assert path.read_bytes() == good[-1]


def test_evaluation_while_training_is_what_replay_and_runtime_say():
    part = hard_and_easy(200)
    judged = hard_and_easy(100, seed=3)
    cascade = pair()
    given = {**QUICK, "epochs": 10}
    trained = train_joint(cascade, part, cost_weight=0.1, validation=judged, **given)
    trace = record(cascade, judged, costs=trained.costs, progress=False)
    for candidate in (
        trained.candidate(reference="large"),
        trained.candidate(seed=3, reference="large"),
    ):
        found = evaluate(trace, candidate, bootstrap=0)
        answer = Adaptive(cascade, candidate, costs=trained.costs)(judged.inputs, ids=judged.ids)
        assert torch.equal(answer.stage, torch.from_numpy(replay(trace, candidate.policy).last))
        assert float(answer.cost.mean()) == pytest.approx(found.cost)
        if "threshold" in candidate.parameters:
            assert trained.best.cost_ratio == pytest.approx(found.cost_ratio)
            assert trained.best.error == pytest.approx(1 - found.accuracy)
    assert trained.best_epoch == 10
    assert sum(trained.best.exit_share) == pytest.approx(1.0)


def test_frozen_classifiers_stay_as_they_are_with_and_without_augmentation():
    for augment in (None, lambda x, _generator: x):
        cascade = pair(norm=True)
        before = weights(cascade)
        trained = train_joint(
            cascade, hard_and_easy(80), cost_weight=0.1, frozen=True, augment=augment, **QUICK
        )
        for name, value in cascade.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert len(trained.rules) == 1


def plan(**changes):
    given = {
        "cost_weight": 0.1,
        "epochs": 1,
        "seed": 0,
        "warm_up": 0,
        "estimator": "reinforce",
        "answers": "drawn",
        "rollouts": "all",
        "detached": False,
        "supervision": 0.0,
        "frozen": False,
        "top": 1,
        "width": 8,
        "batch_size": 16,
        "learning_rate": 0.1,
        "policy_learning_rate": 0.1,
        "weight_decay": 0.0,
        "schedule": "steps",
        "clip_norm": 5.0,
        "patience": None,
        "augment": None,
        "bfloat16": False,
        "checkpoint": None,
        "device": torch.device("cpu"),
    }
    return JointPlan(**{**given, **changes})


def gradients(rollouts, *, frozen_statistics=True, detached=False, estimator="reinforce"):
    cascade = pair(norm=True)
    given = plan(rollouts=rollouts, detached=detached, estimator=estimator)
    problem = make_problem(cascade, hard_and_easy(64), given, None, COSTS, 0.25, None)
    problem.model.train()
    if frozen_statistics:
        freeze_statistics(problem.model)
    rows = problem.batches(generator_for(given.seed, "order"))[0]
    numbers = torch.rand(len(rows), 2, generator=generator_for(given.seed, "b"))
    loss = training_module._loss(
        problem, given, rows, numbers, generator_for(given.seed, "a"), warm=False
    )
    loss.backward()
    return (
        loss,
        {n: None if p.grad is None else p.grad for n, p in problem.model.named_parameters()},
        problem,
    )


def test_running_only_visited_stages_changes_no_gradient():
    one, whole, _ = gradients("all")
    other, visited, _ = gradients("visited")
    torch.testing.assert_close(one, other)
    assert whole.keys() == visited.keys()
    for name, value in whole.items():
        torch.testing.assert_close(value, visited[name], msg=name)


def test_visited_rollouts_run_a_stage_on_survivors_alone():
    cascade = pair()
    seen = []
    cascade.stage(1).module.register_forward_hook(lambda _m, args, _out: seen.append(len(args[0])))
    problem = make_problem(
        cascade, hard_and_easy(64), plan(rollouts="visited"), None, COSTS, 0.25, None
    )
    seen.clear()
    numbers = torch.rand(48, 1, generator=torch.Generator().manual_seed(0))
    _, odds, stopped = problem.model.visited(problem.part.inputs[:48], numbers)
    assert seen == [int((stopped == 1).sum())]
    assert 0 < seen[0] < 48
    assert torch.equal(stopped == 0, numbers[:, 0] < odds[:, 0].sigmoid())


def test_survivors_do_not_reach_the_statistics_of_batch_normalization():
    """Only the hard half survives; a broken twin, in training mode, learns its statistics."""
    part = hard_and_easy(200)

    def after(rollouts, break_it, monkeypatch):
        with monkeypatch.context() as patched:
            if break_it:
                patched.setattr(training_module, "freeze_statistics", lambda module: None)
            cascade = pair(norm=True)
            train_joint(
                cascade, part, cost_weight=0.1, estimator="reinforce", rollouts=rollouts, **QUICK
            )
            return cascade.stage(1).module[0].running_mean

    monkeypatch = pytest.MonkeyPatch()
    kept = after("visited", False, monkeypatch)
    assert torch.equal(kept, torch.zeros(5))
    assert not torch.equal(after("visited", True, monkeypatch), kept)
    assert float(after("all", False, monkeypatch)[0]) > 0.05  # those of all examples


def test_detached_stops_send_no_gradient_into_the_classifiers():
    _, attached, _ = gradients("all", estimator="exact")
    _, detached, problem = gradients("all", estimator="exact", detached=True)
    name = "cascade.stages.0.module.inner.1.weight"
    assert not torch.equal(attached[name], detached[name])
    logits = torch.randn(4, 2, 2, requires_grad=True)
    problem.model.odds(logits).sum().backward()
    assert logits.grad is None


def test_the_paper_counts_costs_to_the_stopping_stage_networks_included():
    images = torch.zeros(12, 1, 8, 8)
    nets = {k: small_cnn(width=w, depth=2, classes=3).eval() for k, w in (("a", 2), ("b", 8))}
    cascade = Cascade.from_models(nets)
    flops = measure_flops(cascade, images[:1]).segment
    given = plan(width=16)
    problem = make_problem(cascade, arrays(images, [0, 1, 2] * 4), given, None, None, 0.25, None)
    stop = 2.0 * (3 * 16 + 16 * 16 + 2 * 16)
    wanted = [0.1 * (flops[0] + stop) / flops[1], 0.1 * (flops[0] + stop + flops[1]) / flops[1]]
    assert problem.objective.stage_cost.tolist() == pytest.approx(wanted, rel=1e-6)


def test_the_policy_rate_falls_by_a_tenth_every_four_epochs_and_the_other_twice_to_a_tenth():
    given = plan(epochs=20)
    stepper = given.stepper(nn.Linear(2, 2), nn.Linear(2, 2))
    rates = []
    for epoch in range(20):
        given.set_rates(stepper, epoch, epoch / 20)
        rates.append([group["lr"] for group in stepper.param_groups])
    assert [r[1] for r in rates] == pytest.approx([0.1 * 0.9 ** (e // 4) for e in range(20)])
    assert [r[0] for r in rates] == pytest.approx([0.1] * 10 + [0.01] * 5 + [0.001] * 5)


def test_early_stopping_takes_the_best_epoch_of_the_joint_phase():
    part = hard_and_easy(120)
    trained = train_joint(
        pair(),
        part,
        cost_weight=0.1,
        patience=2,
        warm_up=2,
        **{**QUICK, "epochs": 60, "learning_rate": 0.3},
    )
    scores = [epoch.objective(0.1) for epoch in trained.history]
    assert len(scores) < 60
    assert len(scores) == trained.best_epoch + 2
    assert trained.best_epoch > 2
    assert scores[trained.best_epoch - 1] == min(scores[2:])
    assert [e.phase for e in trained.history[:3]] == ["warm-up", "warm-up", "joint"]


def test_a_sweep_starts_from_its_neighbor_goes_on_and_leaves_the_cascade_as_it_was(tmp_path):
    part, cascade = hard_and_easy(120), pair()
    before = weights(cascade)
    given = {**QUICK, "cost_weights": [0.3, 0.01, 0.1], "work": tmp_path, "epochs_next": 2}
    sweep = sweep_joint(cascade, part, **given)
    assert [t.cost_weight for t in sweep] == [0.01, 0.1, 0.3]
    assert [len(t.history) for t in sweep] == [3, 2, 2]
    assert len(list(tmp_path.glob("cost_weight_*.safetensors"))) == len(sweep) == 3
    for name, value in cascade.state_dict().items():
        assert torch.equal(value, before[name]), name
    (tmp_path / "cost_weight_0.3.safetensors").unlink()
    again = sweep_joint(cascade, part, **given)
    assert again.frontier == sweep.frontier
    middle = sweep.trainings[1]
    middle.load_into(cascade)
    assert all(torch.equal(v, middle.state[k]) for k, v in cascade.state_dict().items())
    alone = train_joint(
        pair(),
        part,
        cost_weight=0.1,
        start=sweep.trainings[0],
        **{**QUICK, "epochs": 2, "learning_rate": 0.01},
    )
    assert alone.history == middle.history


def test_exits_of_one_network_are_trained_jointly_too():
    torch_net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    part = hard_and_easy(80)
    cascade = Cascade.from_network(
        torch_net, ["1"], head={"1": nn.Linear(6, 2)}, example=part.inputs[:1]
    )
    given = {**QUICK, "costs": None}
    for rollouts in ("all", "visited"):
        trained = train_joint(
            cascade, part, cost_weight=0.1, estimator="reinforce", rollouts=rollouts, **given
        )
        assert trained.topology.describe() == "1 -> last"


def one_hot_loader():
    return [(torch.zeros(4, 5), torch.eye(2)[[0, 1, 0, 1]])]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cost_weight": -0.1}, r"cost_weight must be finite and at least 0, got -0\.1"),
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"warm_up": 4}, r"warm_up must be in \[0, epochs = 3\], got 4"),
        ({"estimator": "reinforced"}, "estimator must be one of .*'reinforced'.*'reinforce'"),
        ({"answers": "drawn", "top": 2}, "answers='drawn' draws one label, so top .* got 2"),
        ({"rollouts": "visited"}, "take estimator='reinforce', not 'supervised'"),
        ({"clip_norm": 0.0}, r"clip_norm must be finite and greater than 0, got 0\.0"),
        ({"patience": 0}, "patience must be an integer of at least 1, got 0"),
        ({"stages": ["small"]}, r"at least two stages, got 1 \(\['small'\]\)"),
        ({"validation": 5.0}, r"validation must be in \(0, 1\), got 5\.0"),
        ({"costs": Costs.simple("usd", [1.0])}, r"one entry per stage \(2\), got 1"),
        ({"on_epoch": "each"}, "on_epoch must be a function, got str"),
        ({"part": []}, "at least one example, got 0 batches"),
        ({"part": one_hot_loader()}, r"one integer for each example.*shape \(4, 2\).*argmax"),
    ],
)
def test_what_is_wrong_is_named_with_its_value(changes, said):
    given = {"part": hard_and_easy(40), "cost_weight": 0.1, **QUICK, **changes}
    with pytest.raises(InputError, match=said):
        train_joint(pair(), given.pop("part"), **given)


def test_cascades_that_cannot_be_trained_are_refused():
    part = hard_and_easy(40)
    one = Cascade.from_models({"only": nn.Linear(5, 2)})
    with pytest.raises(InputError, match=r"at least two stages, got 1 \(\['only'\]\)"):
        train_joint(one, part, cost_weight=0.1, **{**QUICK, "costs": None})
    uneven = Cascade.from_models({"small": nn.Linear(5, 2), "large": nn.Linear(5, 3)})
    with pytest.raises(InputError, match="same classes; 'small' gives 2, 'large' gives 3"):
        train_joint(uneven, part, cost_weight=0.1, **QUICK)
    many = arrays(torch.zeros(6, 5), [0, 1, 2, 0, 1, 2])
    with pytest.raises(InputError, match=r"at least 3 logits, .* got 2"):
        train_joint(pair(), many, cost_weight=0.1, **QUICK)


def test_a_checkpoint_of_a_training_that_started_from_other_weights_is_refused(tmp_path):
    part, path = hard_and_easy(40), tmp_path / "joint.safetensors"
    first = train_joint(pair(), part, cost_weight=0.1, **QUICK)
    other = train_joint(pair(), part, cost_weight=0.1, **{**QUICK, "seed": 1})
    done = train_joint(pair(), part, cost_weight=0.1, start=first, checkpoint=path, **QUICK)
    again = train_joint(pair(1), part, cost_weight=0.1, start=first, checkpoint=path, **QUICK)
    assert all(torch.equal(again.state[name], value) for name, value in done.state.items())
    with pytest.raises(InputError, match="belongs to a training with other start"):
        train_joint(pair(), part, cost_weight=0.1, start=other, checkpoint=path, **QUICK)
    frozen = {**QUICK, "frozen": True, "checkpoint": tmp_path / "frozen.safetensors"}
    train_joint(pair(), part, cost_weight=0.1, **frozen)
    with pytest.raises(InputError, match="belongs to a training with other start"):
        train_joint(pair(1), part, cost_weight=0.1, **frozen)


def test_a_checkpoint_or_a_start_of_another_cascade_is_refused(tmp_path):
    part, path = hard_and_easy(40), tmp_path / "joint.safetensors"
    trained = train_joint(pair(), part, cost_weight=0.1, checkpoint=path, **QUICK)
    other = Cascade.from_models({"tiny": nn.Linear(5, 2), "huge": nn.Linear(5, 2)})
    with pytest.raises(InputError, match="belongs to a training with other shapes, stages"):
        train_joint(other, part, cost_weight=0.1, checkpoint=path, **QUICK)
    with pytest.raises(InputError, match="belongs to a training with other cost_weight"):
        train_joint(pair(), part, cost_weight=0.2, checkpoint=path, **QUICK)
    with pytest.raises(InputError, match=r"names \('small', 'large'\), but the cascade"):
        train_joint(other, part, cost_weight=0.1, start=trained, **QUICK)
    wider = Cascade.from_models({"small": nn.Linear(5, 2), "large": nn.Linear(5, 2)})
    with pytest.raises(InputError, match=r"of another cascade: 'stages.* has shape"):
        train_joint(wider, part, cost_weight=0.1, start=trained, **QUICK)
    with pytest.raises(InputError, match=r"layers of the sizes \[\(8, 2\), .* got \[\(64, 2\)"):
        train_joint(pair(), part, cost_weight=0.1, start=trained, width=8, **QUICK)


def test_a_sweep_refuses_what_is_its_own():
    part = hard_and_easy(40)
    with pytest.raises(InputError, match=r"all different, got \[0\.1, 0\.1\]"):
        sweep_joint(pair(), part, cost_weights=[0.1, 0.1], **QUICK)
    with pytest.raises(InputError, match="cost_weight, start and checkpoint are the sweep's own"):
        sweep_joint(pair(), part, cost_weight=0.1, **QUICK)


def test_a_loader_is_read_once_and_gives_what_examples_give():
    part = hard_and_easy(80)
    loader = [(part.inputs[k : k + 30], part.labels[k : k + 30]) for k in (0, 30, 60)]
    one = train_joint(pair(), part, cost_weight=0.1, **QUICK)
    other = train_joint(pair(), iter(loader), cost_weight=0.1, **QUICK)
    assert one.history == other.history


def test_bfloat16_trains_float32_weights():
    with warnings.catch_warnings():
        cascade = pair()
        trained = train_joint(cascade, hard_and_easy(80), cost_weight=0.1, bfloat16=True, **QUICK)
    assert all(p.dtype == torch.float32 for p in cascade.parameters())
    assert np.isfinite(trained.best.loss)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("steps", [1.0, 1.0, 0.1, 0.01]),
        ("cosine", [0.01, 0.497, 0.5, 0.0]),
        ("constant", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_learning_rates_follow_the_schedule(schedule, shares):
    made = plan(schedule=schedule, learning_rate=0.2, policy_learning_rate=0.3, epochs=9)
    stepper = made.stepper(nn.Linear(2, 2), nn.Linear(2, 2))
    found = []
    for progress in (0.0, 0.049, 0.5, 0.9999):
        made.set_rates(stepper, epoch=8, progress=progress)
        found.append(stepper.param_groups[0]["lr"] / 0.2)
        assert stepper.param_groups[1]["lr"] == pytest.approx(0.3 * 0.9**2)
    assert found == pytest.approx(shares, abs=0.011)
