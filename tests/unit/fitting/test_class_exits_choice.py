"""Scans of all thresholds against judging them one by one; what is chosen, what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from offramp._core.errors import InputError
from offramp._core.schema import from_json, to_json
from offramp.fitting.class_exits.choice import ClassExitPlan, NoViableExit, choose_exits, fulfils
from offramp.fitting.class_exits.data import Branch, ClassData, ClassExit
from offramp.fitting.class_exits.figures import as_json, paper_figures, system_figures
from offramp.fitting.class_exits.scan import (
    CONSTRAINTS,
    SELECTIONS,
    Requirements,
    Standing,
    allowed,
    allowed_reference,
    scan,
)
from offramp.fitting.class_exits.time import Timing
from offramp.fitting.class_exits.together import SharedExitPlan, choose_together
from support.properties import examples

T = 10.0
WIDE = (0.05, 1.0)
DEPTHS = (2.0, 4.0, 6.0)


def branch(target, reached, extra=0.1):
    timing = Timing(baseline=T, reached=reached, branch=extra, unit="flops")
    return Branch(point=f"at{reached}", keep_previous=False, target=target, timing=timing)


def make(seed, *, n=80, classes=3, noise=2.0, accuracy=0.8, targets=None):
    """One branch of each target at each depth; deeper ones know more."""
    rng = np.random.default_rng(seed)
    targets = range(classes) if targets is None else targets
    labels = rng.integers(0, classes, n)
    labels[:classes] = np.arange(classes)
    wrong = (labels + rng.integers(1, classes, n)) % classes
    baseline = np.where(rng.random(n) < accuracy, labels, wrong)
    baseline[:classes] = np.arange(classes)
    branches, columns = [], []
    for depth in DEPTHS:
        for target in targets:
            lean = np.where(labels == target, 1.0, -1.0) * depth / 2
            branches.append(branch(target, depth))
            columns.append(np.round(lean + rng.normal(0, noise, n), 1))
    evidence = np.stack(columns, axis=1).astype(np.float32).astype(np.float64)
    names = tuple(f"class{k}" for k in range(classes))
    data = ClassData(labels=labels, baseline=baseline, class_names=names, evidence=evidence)
    return data, branches


@examples(25)
@given(
    seed=st.integers(0, 5000),
    constraints=st.sampled_from(["strict", "paper"]),
    tolerance=st.sampled_from([0.0, 0.02, 0.1]),
    floor=st.sampled_from([0.0, 0.8]),
    nested=st.booleans(),
)
@example(seed=187, constraints="paper", tolerance=0.0, floor=0.0, nested=True)  # a time of zero
def test_the_scan_allows_what_judging_each_threshold_allows(
    seed, constraints, tolerance, floor, nested
):
    data, branches = make(seed, n=40)
    requirements = Requirements(
        constraints=constraints, thresholds=WIDE, tolerance=tolerance, precision_floor=floor
    )
    column = 3  # of class 0, at the second depth
    before = [ClassExit(column=0, branch=branches[0], log_odds=2.5)] if nested else []
    standing = Standing.of(data, before, T)
    cuts = scan(data, column, branches[column], standing, WIDE)
    holds, _ = allowed(data, branches[column], standing, cuts, requirements)
    slow = allowed_reference(data, column, branches[column], standing, requirements)
    values = np.unique(data.evidence[standing.alive, column])
    fast = [float(values[values >= cut].min()) for cut in cuts.log_odds[holds]]
    assert fast == slow


def test_counting_without_impostors_would_be_caught(monkeypatch):
    """(5) with the impostors left in the denominator is another constraint."""
    data, branches = make(3, n=200, noise=1.0, accuracy=0.7)
    requirements = Requirements(constraints="paper", thresholds=WIDE)
    standing = Standing.of(data, [], T)
    cuts = scan(data, 0, branches[0], standing, WIDE)
    slow = allowed_reference(data, 0, branches[0], standing, requirements)
    honest, _ = allowed(data, branches[0], standing, cuts, requirements)
    own = np.arange(data.classes) == 0
    without = dataclasses.replace(cuts, claimed=np.where(own, cuts.claimed, 0.0))
    broken, _ = allowed(data, branches[0], standing, without, requirements)
    assert int(honest.sum()) == len(slow)
    assert not np.array_equal(honest, broken)


@examples(15)
@given(seed=st.integers(0, 5000), nested=st.booleans())
def test_the_scan_counts_what_each_cut_does_to_the_system(seed, nested):
    data, branches = make(seed, n=40)
    before = [ClassExit(column=1, branch=branches[1], log_odds=2.0)] if nested else []
    standing = Standing.of(data, before, T)
    cuts = scan(data, 3, branches[3], standing, WIDE)
    assert len(cuts)
    assert (np.diff(cuts.log_odds) < 0).all()
    for row in range(len(cuts)):
        leaf = ClassExit(column=3, branch=branches[3], log_odds=cuts.log_odds[row])
        system = system_figures(data, (*standing.exits, leaf))
        np.testing.assert_allclose(cuts.times[row], system.times)
        right = standing.answers == data.labels
        after = data.per_class(right) - cuts.lost[row] + cuts.claimed_right[row]
        np.testing.assert_allclose(after / data.sizes, system.recalls)


@examples(12)
@given(seed=st.integers(0, 5000), tolerance=st.sampled_from([0.0, 0.01, 0.05]))
def test_strict_choices_keep_accuracy_and_every_recall_on_fit(seed, tolerance):
    data, branches = make(seed, n=120)
    found = choose_exits(
        data, branches, target=1, requirements=Requirements(thresholds=WIDE, tolerance=tolerance)
    )
    if isinstance(found, NoViableExit):
        assert "No branch makes the class 'class1' faster on 'fit'" in found.reason
        return
    assert found.fit.accuracy >= data.right.mean() - tolerance - 1e-9
    drops = np.array(found.fit.recalls_baseline) - np.array(found.fit.recalls)
    assert drops.max() <= tolerance + 1e-9
    assert found.fit.gain(1) > 1
    assert found.calibrate is None


@examples(12)
@given(seed=st.integers(0, 5000), select=st.sampled_from(SELECTIONS))
def test_the_choice_is_the_best_of_all_branches_and_thresholds(seed, select):
    data, branches = make(seed, n=60)
    requirements = Requirements(thresholds=WIDE, tolerance=0.05, select=select)
    found = choose_exits(data, branches, target=0, requirements=requirements)
    best = -np.inf
    for column, b in enumerate(branches):
        if b.target == 0:
            standing = Standing.of(data, [], T)
            for value in allowed_reference(data, column, b, standing, requirements):
                system = system_figures(data, [ClassExit(column=column, branch=b, log_odds=value)])
                score = requirements.score(system.times[0], T, b.timing.staying)
                best = max(best, score)
    if isinstance(found, NoViableExit):
        assert best == -np.inf
    else:
        own = requirements.score(found.fit.times[0], T, found.exits[0].branch.timing.staying)
        assert own == pytest.approx(best)


def test_under_the_paper_s_constraints_the_largest_rate_is_taken():
    data, branches = make(11, n=300, noise=1.0, accuracy=0.7)
    requirements = Requirements(constraints="paper", thresholds=(0.5, 1.0), select="saved")
    data = dataclasses.replace(data, evidence=data.evidence[:, :1])
    found = choose_exits(data, branches[:1], target=0, requirements=requirements)
    assert isinstance(found, ClassExitPlan)
    standing = Standing.of(data, [], T)
    slow = allowed_reference(data, 0, branches[0], standing, requirements)
    paper = found.paper(data)
    least = ClassExit(column=0, branch=branches[0], log_odds=min(slow))
    assert paper.rates == paper_figures(data, [least]).rates
    assert paper.holds


def test_candidates_hold_the_best_of_each_branch_and_the_front_is_marked():
    data, branches = make(2, n=400, noise=1.0)
    found = choose_exits(
        data, branches, target=0, requirements=Requirements(thresholds=WIDE, tolerance=0.02)
    )
    columns = [c.exits[0].column for c in found.candidates]
    assert len(set(columns)) == len(columns) > 1
    best = min(found.candidates, key=lambda c: c.time)
    assert best.on_front
    assert best.exits == found.exits


def test_what_calibrate_refutes_is_not_chosen():
    fit, branches = make(7, n=400, noise=1.0)
    other, _ = make(8, n=400, noise=1.0)
    requirements = Requirements(thresholds=WIDE, tolerance=0.004)
    found = choose_exits(fit, branches, target=0, requirements=requirements, calibrate=other)
    alone = choose_exits(fit, branches, target=0, requirements=requirements)
    assert isinstance(found, ClassExitPlan)
    assert fulfils(other, found.exits, requirements)
    assert found.calibrate.gain(0) > 1
    assert found.fit.gain(0) <= alone.fit.gain(0)
    assert (found.refuted == 0) == (found.exits == alone.exits)


def test_if_every_choice_is_refuted_the_answer_says_so():
    fit, branches = make(7, n=400, noise=1.0)
    upside_down = dataclasses.replace(fit, evidence=-fit.evidence, split="calibrate")
    found = choose_exits(
        fit,
        branches,
        target=0,
        requirements=Requirements(thresholds=WIDE, tolerance=0.01),
        calibrate=upside_down,
    )
    assert isinstance(found, NoViableExit)
    assert found.refuted > 0
    assert "none of them keeps the constraints 'strict' on other examples" in found.reason
    assert as_json(found)["refuted"] == found.refuted


def test_a_second_exit_is_deeper_and_only_taken_if_it_pays():
    better = 0
    for seed in range(8):
        data, branches = make(seed, n=300, noise=1.2)
        requirements = Requirements(thresholds=WIDE, tolerance=0.03)
        one, two = (
            choose_exits(data, branches, target=0, requirements=requirements, exits=k)
            for k in (1, 2)
        )
        assert two.fit.times[0] <= one.fit.times[0] + 1e-12
        assert two.fit.keeps_accuracy(0.03)
        depths = [e.branch.timing.reached for e in two.exits]
        assert depths == sorted(set(depths))
        better += len(two.exits) == 2
    assert better


def test_a_precision_floor_is_kept():
    data, branches = make(4, n=400)
    loose, tight = (
        choose_exits(
            data,
            branches,
            target=0,
            requirements=Requirements(
                constraints="paper", thresholds=(0.3, 1.0), precision_floor=floor
            ),
        )
        for floor in (0.0, 0.97)
    )
    assert loose.paper(data).precision < 0.97
    assert isinstance(tight, NoViableExit) or tight.paper(data).precision >= 0.97


def test_an_exit_of_all_classes_answers_its_own_labels():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    own = np.where(rng.random(300) < 0.8, labels, (labels + 1) % 3)
    margin = np.where(own == labels, 3.0, 1.0) + rng.normal(0, 0.5, 300)
    data = ClassData(
        labels=labels,
        baseline=labels,
        class_names=("a", "b", "c"),
        evidence=margin.astype(np.float32).astype(np.float64)[:, None],
        own=own[:, None],
    )
    found = choose_exits(
        data, [branch(None, 3.0)], target=None, requirements=Requirements(tolerance=0.02)
    )
    assert isinstance(found, ClassExitPlan)
    assert 1 < found.fit.gain_all < T / 3
    assert found.fit.accuracy >= 0.98
    with pytest.raises(InputError, match="'strict' for an exit of all classes, got 'paper'"):
        choose_exits(
            data,
            [branch(None, 3.0)],
            target=None,
            requirements=Requirements(constraints="paper"),
        )


@examples(15)
@given(seed=st.integers(0, 5000))
def test_exits_of_several_classes_keep_the_accuracy_together(seed):
    data, branches = make(seed, n=300, noise=1.2)
    requirements = Requirements(thresholds=WIDE, tolerance=0.03)
    found = choose_together(data, branches, targets=[0, 2], requirements=requirements)
    if isinstance(found, NoViableExit):
        return
    assert found.fit.keeps_accuracy(0.03)
    assert min(found.fit.gain(k) for k in found.targets) > 0.99
    depths = [e.branch.timing.reached for e in found.exits]
    assert depths == sorted(depths)
    assert {e.branch.target for e in found.exits} == set(found.targets)


def test_exits_of_several_classes_are_confirmed():
    fit, branches = make(7, n=400, noise=1.0)
    other, _ = make(8, n=400, noise=1.0)
    requirements = Requirements(thresholds=WIDE, tolerance=0.02)
    found = choose_together(
        fit, branches, targets=[0, 1], requirements=requirements, calibrate=other
    )
    assert isinstance(found, SharedExitPlan)
    assert found.calibrate.keeps_accuracy(0.02)
    assert as_json(found)["targets"] == list(found.targets)
    refuted = choose_together(
        fit,
        branches,
        targets=[0, 1],
        requirements=requirements,
        calibrate=dataclasses.replace(fit, evidence=-fit.evidence, split="calibrate"),
    )
    assert isinstance(refuted, NoViableExit)
    assert "faster on 'fit' and keeps the accuracy on 'calibrate'" in refuted.reason


def test_an_exit_that_does_harm_on_calibrate_is_left_out():
    fit, branches = make(7, n=400, noise=1.0)
    of_two = np.array([b.target == 2 for b in branches])
    other = dataclasses.replace(
        fit, evidence=np.where(of_two, -fit.evidence, fit.evidence), split="calibrate"
    )
    requirements = Requirements(thresholds=WIDE, tolerance=0.01)
    found = choose_together(
        fit, branches, targets=[0, 1, 2], requirements=requirements, calibrate=other
    )
    assert isinstance(found, SharedExitPlan)
    assert 2 not in found.targets


def test_an_exit_survives_json():
    leaf = ClassExit(column=3, branch=branch(1, 4.0), log_odds=2.5)
    assert from_json(ClassExit, json.loads(json.dumps(to_json(leaf)))) == leaf


def test_thresholds_stay_in_their_range_and_part_the_examples():
    data, branches = make(0, n=200)
    standing = Standing.of(data, [], T)
    cuts = scan(data, 0, branches[0], standing, (0.6, 0.9))
    low, high = np.log(0.6 / 0.4), np.log(0.9 / 0.1)
    assert len(cuts)
    assert cuts.log_odds.min() >= low
    assert cuts.log_odds.max() <= high
    assert np.array_equal(cuts.log_odds, cuts.log_odds.astype(np.float32))
    empty = scan(data, 0, branches[0], standing, (1.0, 1.0))
    assert len(empty) == 0


def test_nothing_fires_at_a_threshold_of_one():
    data, branches = make(0)
    found = choose_exits(data, branches, target=0, requirements=Requirements(thresholds=(1.0, 1.0)))
    assert isinstance(found, NoViableExit)


@pytest.mark.parametrize("thresholds", [(0.0, 1.0), (0.5, 1.1), (0.9, 0.5), (-0.1, 0.5)])
def test_a_threshold_range_outside_its_domain_is_refused(thresholds):
    with pytest.raises(InputError, match=r"within \(0, 1\], got \(" + str(thresholds[0])):
        Requirements(thresholds=thresholds)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("constraints", "lax"),
        ("select", "most"),
        ("tolerance", 1.5),
        ("precision_floor", -0.1),
    ],
)
def test_requirements_outside_their_domain_are_refused(field, value):
    with pytest.raises(InputError, match=f"{field} must be .*got {value!r}"):
        Requirements(**{field: value})


def test_a_class_without_branches_and_wrong_shapes_are_refused():
    data, branches = make(0, targets=[0, 1])
    with pytest.raises(InputError, match="at least one of class 2, got none"):
        choose_exits(data, branches, target=2)
    with pytest.raises(InputError, match=r"evidence must have shape \(80, 1\), got \(80, 6\)"):
        choose_exits(data, branches[:1], target=0)
    with pytest.raises(InputError, match=r"targets must be different classes.*got \[0, 0\]"):
        choose_together(data, branches, targets=[0, 0])
    with pytest.raises(InputError, match=r"got 'paper' and 0\.0"):
        choose_together(data, branches, targets=[0], requirements=Requirements(constraints="paper"))


def test_the_selections_rank_as_the_paper_s_tables_do():
    slow_cheap, fast_dear = (8.0, 10.1), (4.0, 14.0)
    ratio, over, saved = (Requirements(select=s) for s in SELECTIONS)
    assert ratio.score(*_args(fast_dear)) > ratio.score(*_args(slow_cheap))
    assert over.score(*_args(slow_cheap)) > over.score(*_args(fast_dear))
    assert saved.score(*_args(fast_dear)) == 6.0
    assert over.score(5.0, T, T) == np.inf


def _args(pair):
    time, staying = pair
    return time, T, staying


def test_every_selection_is_named():
    assert set(SELECTIONS) == {"ratio", "saved_over_inflicted", "saved"}
    assert CONSTRAINTS == ("strict", "paper")
