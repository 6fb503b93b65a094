"""The whole design on real digits: choose, build, record, run, save; figures equal the replay."""

import dataclasses

import numpy as np
import pytest
import torch

from offramp._core.errors import InputError, UnknownNameError
from offramp.bundle import load, save
from offramp.data import digits
from offramp.evaluation import replay
from offramp.fitting.class_exits.choice import ClassExitPlan, NoViableExit
from offramp.fitting.class_exits.figures import as_json
from offramp.fitting.class_exits.scan import Requirements
from offramp.fitting.class_exits.together import SharedExitPlan
from offramp.models import ModelSpec, build, head_arguments
from offramp.policy import Candidate
from offramp.recording import record
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Normalize, cut_points
from offramp.train import train_classifier, train_heads
from offramp.train.class_exits import (
    BranchSpec,
    Recipe,
    attachment_points,
    choose_class_exits,
    choose_class_exits_together,
    exit_row,
    importance,
    sweep_branches,
    with_pruned,
)

MODEL = ModelSpec(name="small_cnn", arguments={"width": 8, "depth": 3, "classes": 10})
NORMALIZE = Normalize(scale=1 / 255, mean=(0.3,), std=(0.4,))
LOOSE = Requirements(thresholds=(0.5, 1.0), tolerance=0.02)
RECIPE = Recipe(epochs=12, batch_size=128)
GROUPS = {"small": ["0", "1", "2", "3", "4"], "large": ["5", "6", "7", "8", "9"]}


@pytest.fixture(scope="module")
def examples():
    shares = {"train": 900, "fit": 350, "calibrate": 250, "test": 297}
    return digits().split_into(shares, seed=0, stratified=True)


@pytest.fixture(scope="module")
def net(examples):
    made = build(MODEL)
    train_classifier(
        made, examples.subset("train"), epochs=6, seed=0, transform=NORMALIZE, progress=False
    )
    return made.eval()


def run(net, examples, folder, **options):
    candidates = {"recipe": RECIPE, "transform": NORMALIZE, "spec": MODEL, "progress": False}
    return sweep_branches(net, examples, folder, **{**candidates, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def sweep(net, examples, folder):
    return run(net, examples, folder)


@pytest.fixture(scope="module")
def branches(sweep):
    return sweep.branches()


@pytest.fixture(scope="module")
def shared(sweep, branches):
    found = choose_class_exits_together(sweep, range(10), requirements=LOOSE, branches=branches)
    assert isinstance(found, SharedExitPlan)
    assert len(found.exits) >= 2
    return found


def kept_previous(sweep, branches):
    """A design whose exit keeps the maps before, whatever is best."""
    only = [
        dataclasses.replace(b, target=b.target if len(sweep.reads(k)) > 1 else 99)
        for k, b in enumerate(branches)
    ]
    found = choose_class_exits(sweep, 2, requirements=LOOSE, branches=only)
    assert isinstance(found, ClassExitPlan)
    return found


def test_there_is_a_branch_for_each_point_connection_and_class(sweep, branches):
    points = len(sweep.attachment.points)
    assert points == 3
    assert len(sweep.specs) == points * 2 * 10
    every = [b for b in branches if b.target is None]
    assert len(every) == 2 * points - 1  # behind the first point both are the same
    assert len(branches) == sweep.data("fit").evidence.shape[1]
    assert max(sweep.parts[0].accuracies) > 0.98


def test_features_that_float16_cannot_hold_are_kept_in_float32(examples, tmp_path):
    large = build(MODEL).eval()
    with torch.no_grad():
        large.get_parameter("features.0.1.weight").mul_(1e7)
    some = examples.take(torch.arange(0, len(examples), 9))
    quick = {"targets": ["1"], "recipe": Recipe(epochs=1)}
    with pytest.raises(InputError, match="pass cache_dtype='float32'"):
        run(large, some, tmp_path / "a", **quick)
    found = run(large, some, tmp_path / "b", cache_dtype="float32", **quick)
    assert len(found.specs) == 6


def test_strict_designs_hold_on_fit_and_on_calibrate(sweep, branches):
    found = [choose_class_exits(sweep, k, requirements=LOOSE, branches=branches) for k in range(10)]
    viable = [d for d in found if isinstance(d, ClassExitPlan)]
    assert len(viable) >= 8
    for design in viable:
        assert design.fit.keeps_accuracy(0.02)
        assert design.calibrate.keeps_accuracy(0.02)
        assert design.fit.gain(design.target) > 1
        row = exit_row(sweep.data("test"), design.exits)
        assert row.gains.keys() == {str(design.target)}
        assert row.loss_interval[0] <= row.loss <= row.loss_interval[1]


@pytest.mark.parametrize("split", ["fit", "calibrate", "test"])
def test_replay_of_the_recorded_cascade_gives_the_figures_of_the_sweep(
    sweep, shared, examples, split
):
    cascade, policy = sweep.cascade(shared.exits)
    trace = record(cascade, examples.subset(split), progress=False)
    done, row = replay(trace, policy), exit_row(sweep.data(split), shared.exits)
    assert 1 - done.wrong.mean() == pytest.approx(row.system.accuracy)
    for k in range(10):
        own = trace.labels.numpy() == k
        assert done.cost[own].mean() == pytest.approx(row.system.times[k])
    assert trace.accuracy(len(trace.stages) - 1) == pytest.approx(row.system.accuracy_baseline)
    assert len(np.unique(done.path)) == len(shared.exits) + 1


def test_the_cascade_runs_and_is_saved_like_any_other(sweep, shared, examples, tmp_path):
    cascade, policy = sweep.cascade(shared.exits)
    part = examples.subset("test")
    trace = record(cascade, part, progress=False)
    wanted = replay(trace, policy)
    sure = wanted.closest > 1e-4
    assert sure.mean() > 0.95
    candidate = Candidate(policy=policy, method="class_exits", reference="last")
    save(Adaptive(cascade, candidate, costs=trace.costs), tmp_path / "bundle")
    loaded = load(tmp_path / "bundle")
    for model in (Adaptive(cascade, policy, costs=trace.costs), loaded):
        answers = [model(x, ids=i) for x, _, i in part.loader(64)]
        stage = torch.cat([a.stage for a in answers]).numpy()
        labels = torch.cat([a.labels for a in answers]).numpy()
        cost = torch.cat([a.cost for a in answers]).numpy()
        assert np.array_equal(stage[sure], wanted.last[sure])
        assert np.array_equal(labels[sure], wanted.labels[sure, 0])
        np.testing.assert_allclose(cost[sure], wanted.cost[sure])


def test_an_exit_that_keeps_previous_layers_replays_as_designed(sweep, branches, examples):
    design = kept_previous(sweep, branches)
    assert len(sweep.reads(design.exits[0].column)) > 1
    cascade, policy = sweep.cascade(design.exits)
    trace = record(cascade, examples.subset("test"), progress=False)
    row = exit_row(sweep.data("test"), design.exits)
    done = replay(trace, policy)
    assert 1 - done.wrong.mean() == pytest.approx(row.system.accuracy)
    own = trace.labels.numpy() == 2
    assert done.cost[own].mean() == pytest.approx(row.system.times[2])
    assert trace.costs.head[0] == design.exits[0].branch.timing.branch


def test_an_exit_of_all_classes_stands_beside_them(sweep, branches, examples):
    design = choose_class_exits(sweep, None, requirements=LOOSE, branches=branches)
    assert isinstance(design, ClassExitPlan)
    assert design.fit.gain_all > 1
    cascade, policy = sweep.cascade(design.exits)
    assert cascade.topology.names == ("exits.all", "last")
    done = replay(record(cascade, examples.subset("fit"), progress=False), policy)
    assert 1 - done.wrong.mean() == pytest.approx(design.fit.accuracy)
    assert done.cost.mean() == pytest.approx(design.fit.time_baseline / design.fit.gain_all)
    assert exit_row(sweep.data("test"), design.exits).paper is None


def test_the_paper_s_design_is_shown_with_the_honest_columns(sweep, branches):
    paper = Requirements(constraints="paper", thresholds=(0.5, 1.0))
    found = choose_class_exits(sweep, 8, requirements=paper, branches=branches, confirm=False)
    if isinstance(found, NoViableExit):
        assert "constraints 'paper'" in found.reason
        return
    row = exit_row(sweep.data("fit"), found.exits)
    assert row.paper.holds
    assert row.paper.gain >= row.gains["8"]
    assert as_json(row)["paper"]["holds"]


def test_intervals_enclose_what_was_measured(sweep, shared):
    row = exit_row(sweep.data("test"), shared.exits)
    for name, gain in row.gains.items():
        low, high = row.gain_intervals[name]
        assert low <= gain <= high
    if row.loss is not None:  # None where every class has an exit
        assert row.loss_interval[0] <= row.loss <= row.loss_interval[1]
    assert row.accuracy_change_interval[0] <= row.accuracy_change <= row.accuracy_change_interval[1]
    assert row.worst_recall_interval[0] <= row.worst_recall <= row.worst_recall_interval[1]
    again = row.system
    drops = np.array(again.recalls_baseline) - np.array(again.recalls)
    assert row.worst_recall == pytest.approx(drops.max())


def test_pruning_trains_branches_that_read_less_and_never_chooses_worse(sweep, branches):
    design = kept_previous(sweep, branches)
    by_point = importance(sweep, design.exits[0].column)
    assert list(by_point) == list(sweep.reads(design.exits[0].column))
    assert min(by_point.values()) > 0
    pruned = with_pruned(sweep, [design], progress=False)
    fresh = pruned.specs[len(sweep.specs) :]
    assert all(spec.point == sweep.specs[design.exits[0].column].point for spec in fresh)
    assert all(0 < len(spec.reads) < len(by_point) for spec in fresh)
    if len(by_point) == 2:  # the other choice is KP=Off, which is there already
        assert pruned is sweep
    again = pruned.branches()
    assert pruned.data("fit").evidence.shape[1] == len(again)
    before, after = (
        choose_class_exits(s, 2, requirements=LOOSE, branches=b, confirm=False)
        for s, b in ((sweep, branches), (pruned, again))
    )
    assert after.fit.times[2] <= before.fit.times[2] + 1e-9


def test_pruned_branches_run(sweep, examples):
    spec = BranchSpec(reads=(0, 2), target=2, keep_previous=True)
    more = sweep.with_branches([spec], progress=False)
    column = len(sweep.specs)
    branch = more.branches()[column]
    assert more.reads(column) == (more.attachment.points[0].name, more.attachment.points[2].name)
    only = [
        dataclasses.replace(b, target=b.target if k == column else 99)
        for k, b in enumerate(more.branches())
    ]
    design = choose_class_exits(more, 2, requirements=LOOSE, branches=only, confirm=False)
    if isinstance(design, NoViableExit):  # so late that nothing is saved
        assert branch.timing.reached + branch.timing.branch > 0.9 * branch.timing.baseline
        return
    cascade, policy = more.cascade(design.exits)
    done = replay(record(cascade, examples.subset("fit"), progress=False), policy)
    assert 1 - done.wrong.mean() == pytest.approx(design.fit.accuracy)


@pytest.fixture(scope="module")
def headed(net, examples, sweep):
    given = NORMALIZE(examples.batch(0, 1).inputs)
    points = [p for p in cut_points(net, given) if len(p.shape) == 3][1:3]
    heads = {
        p.name: ModelSpec(
            name="pool_mlp", arguments=head_arguments("pool_mlp", p.shape, 10, hidden=16)
        )
        for p in points
    }
    cascade = Cascade.from_network(
        net,
        list(heads),
        head=heads,
        example=examples.batch(0, 1).inputs,
        transform=NORMALIZE,
        spec=MODEL,
    )
    train_heads(
        cascade, examples.subset("train"), epochs=8, seed=0, learning_rate=0.03, progress=False
    )
    return cascade, sweep.with_heads(cascade, examples, progress=False)


def only_heads(sweep, target):
    return [
        b
        if sweep.label(k) != "branch" and b.target == target
        else dataclasses.replace(b, target=99)
        for k, b in enumerate(sweep.branches())
    ]


@pytest.mark.parametrize(  # of all classes: make test-slow
    "target", [3, pytest.param(None, marks=pytest.mark.slow)]
)
def test_heads_of_all_classes_stand_beside_the_branches(headed, sweep, examples, tmp_path, target):
    cascade, found = headed
    more = len(found.branches()) - len(sweep.branches())
    assert more == 2 * 11
    data = found.data("calibrate")
    assert np.array_equal(
        data.evidence[:, :-more], sweep.data("calibrate").evidence
    )  # the old columns stay where they are
    loose = dataclasses.replace(LOOSE, tolerance=0.1)
    design = choose_class_exits(
        found, target, requirements=loose, branches=only_heads(found, target)
    )
    assert isinstance(design, ClassExitPlan)
    assert found.label(design.exits[0].column) in cascade.topology.names
    made, policy = found.cascade(design.exits)
    trace = record(made, examples.subset("test"), progress=False)
    done, row = replay(trace, policy), exit_row(found.data("test"), design.exits)
    assert 1 - done.wrong.mean() == pytest.approx(row.system.accuracy)
    for k in range(10):
        own = trace.labels.numpy() == k
        assert done.cost[own].mean() == pytest.approx(row.system.times[k])
    candidate = Candidate(policy=policy, method="class_exits", reference="last")
    save(Adaptive(made, candidate, costs=trace.costs), tmp_path / "bundle")
    loaded = load(tmp_path / "bundle")
    answered = torch.cat(
        [loaded(x, ids=i).labels for x, _, i in examples.subset("test").loader(64)]
    )
    sure = done.closest > 1e-4
    assert np.array_equal(answered.numpy()[sure], done.labels[sure, 0])


def test_branches_and_heads_may_follow_each_other(headed, examples):
    _, found = headed
    design = choose_class_exits(found, 2, requirements=LOOSE, confirm=False, exits=2)
    branches = found.branches()
    of_heads = [k for k, b in enumerate(branches) if found.label(k) != "branch" and b.target == 2]
    first = next(k for k, b in enumerate(branches) if b.target == 2)
    exits = [
        dataclasses.replace(design.exits[0], column=k, branch=branches[k], log_odds=3.0)
        for k in (first, of_heads[-1])
    ]
    made, policy = found.cascade(exits)
    done = replay(record(made, examples.subset("fit"), progress=False), policy)
    assert 1 - done.wrong.mean() == pytest.approx(
        exit_row(found.data("fit"), exits).system.accuracy
    )


def test_heads_of_another_network_are_refused(headed, sweep, examples):
    other = build(dataclasses.replace(MODEL, arguments={**MODEL.arguments, "seed": 5}))
    cascade, _ = headed
    strange = Cascade.from_network(
        other,
        [cascade.topology.groups[0]],
        head={
            cascade.topology.groups[0]: torch.nn.Sequential(
                torch.nn.Flatten(), torch.nn.LazyLinear(10)
            )
        },
        example=examples.batch(0, 1).inputs,
        transform=NORMALIZE,
    )
    with pytest.raises(InputError, match="of the same network"):
        sweep.with_heads(strange, examples, progress=False)
    alone = Cascade.from_models({"net": other}, transform=NORMALIZE)
    with pytest.raises(InputError, match="with heads; got the stages"):
        sweep.with_heads(alone, examples, progress=False)


def test_superclasses_are_designed_and_run(net, examples, tmp_path):
    sweep = run(net, examples, tmp_path, groups=GROUPS, targets=["small"])
    assert len(sweep.specs) == 6
    found = choose_class_exits(sweep, "small", requirements=LOOSE, confirm=False)
    assert isinstance(found, ClassExitPlan)
    cascade, policy = sweep.cascade(found.exits)
    data = sweep.data("test")
    part = examples.subset("test")
    done = replay(
        record(cascade, [(part.inputs, torch.from_numpy(data.labels))], progress=False), policy
    )
    assert 1 - done.wrong.mean() == pytest.approx(found.system(data).accuracy)
    assert set(np.unique(data.labels)) == {0, 1}


def test_a_sweep_that_is_done_is_only_read(net, sweep, examples, folder, monkeypatch):
    def computed(*arguments):
        raise AssertionError("the network runs again")

    monkeypatch.setattr("offramp.train.cache.Computed.carries", computed)
    again = run(net, examples, folder)
    assert torch.equal(again.parts[0].weights, sweep.parts[0].weights)


def test_a_folder_of_another_sweep_is_refused(net, sweep, examples, folder):
    with pytest.raises(InputError, match="begun with other"):
        run(net, examples, folder, grid=1)
    with pytest.raises(InputError, match="training with other"):
        run(net, examples, folder, recipe=Recipe(epochs=3))


def test_seconds_are_measured_for_every_branch(sweep):
    found = sweep.branches("seconds", batch_size=4, rounds=2)
    assert len(found) == sweep.data("fit").evidence.shape[1]
    assert {b.timing.unit for b in found} == {"seconds"}
    assert len({b.timing.baseline for b in found}) == 1
    for k, spec in enumerate(sweep.specs):
        timing = found[k].timing
        alone = [found[j].timing for j, s in enumerate(sweep.specs) if s.reads == spec.reads]
        assert all(t == timing for t in alone)
        assert 0 < timing.branch < 1
        assert timing.reached <= timing.baseline


def test_flops_of_a_branch_are_two_for_each_weight(sweep, branches):
    widths = [p.shape[0] * 4 for p in sweep.attachment.points]
    for column, spec in enumerate(sweep.specs):
        assert branches[column].timing.branch == 2 * sum(widths[j] for j in spec.reads)
        assert branches[column].timing.reached == sweep.attachment.points[spec.point].flops


def test_points_are_those_of_the_network_that_reads_prepared_images(net, sweep):
    names = [p.name for p in attachment_points(net, sweep.attachment.given)]
    assert names == [p.name for p in sweep.attachment.points]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": ["eleven"]}, UnknownNameError, "no class 'eleven'"),
        ({"targets": [10]}, InputError, r"must be in \[0, 10\), got 10"),
        ({"groups": {"a": ["0"], "b": ["1"]}}, InputError, r"\['2', .* are in none"),
        ({"validation": 1.0}, InputError, r"validation must be in \(0, 1\), got 1.0"),
        ({"cache_dtype": None}, InputError, r"cache_dtype must be one of .*'float32'.* got None"),
        ({"cache_dtype": "float64"}, InputError, r"cache_dtype must be one of .* got 'float64'"),
    ],
)
def test_bad_input_is_named(net, examples, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        run(net, examples, tmp_path, **options)


def test_missing_splits_are_named(net, examples, sweep, tmp_path):
    fit_only = examples.split_into({"train": 900, "fit": 300}, seed=0)
    small = run(net, fit_only, tmp_path, recipe=Recipe(epochs=1), targets=[0])
    with pytest.raises(UnknownNameError, match="no split 'calibrate'"):
        choose_class_exits(small, 0)
    with pytest.raises(InputError, match=r"No example .* is in the split 'fit'"):
        run(net, examples.subset("train"), tmp_path)
    with pytest.raises(UnknownNameError, match="no class '11'"):
        choose_class_exits(sweep, "11")
