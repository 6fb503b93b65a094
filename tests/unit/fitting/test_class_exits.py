"""Equations (1) to (12) and the figures of a system, against slow and obvious counting."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.errors import InputError, UnknownNameError
from offramp.fitting.class_exits.data import (
    STAYS,
    Branch,
    ClassData,
    ClassExit,
    class_index,
    route,
    superclass_table,
    to_superclasses,
)
from offramp.fitting.class_exits.figures import as_json, paper_figures, system_figures
from offramp.fitting.class_exits.time import Timing, nested_time, nested_time_reference
from support.properties import examples

T, D, E = 10.0, 3.0, 0.5
TIMING = Timing(baseline=T, reached=D, branch=E, unit="flops")


def branch(target=0, reached=D, extra=E):
    timing = Timing(baseline=T, reached=reached, branch=extra, unit="flops")
    return Branch(point=f"at{reached}", keep_previous=False, target=target, timing=timing)


def make(seed, *, n=60, classes=3, columns=3, accuracy=0.8):
    """Labels, a baseline that is mostly right, and evidence that leans the right way, with ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    labels[:classes] = np.arange(classes)
    wrong = (labels + rng.integers(1, classes, n)) % classes
    baseline = np.where(rng.random(n) < accuracy, labels, wrong)
    baseline[:classes] = np.arange(classes)
    lean = np.where(labels[:, None] == np.arange(columns) % classes, 3.0, -1.0)
    evidence = np.round(lean + rng.normal(0, 2, (n, columns)), 1)  # rounded, so that there are ties
    evidence = evidence.astype(np.float32).astype(np.float64)
    evidence[rng.random((n, columns)) < 0.1] = -np.inf
    names = tuple(f"class{k}" for k in range(classes))
    return ClassData(labels=labels, baseline=baseline, class_names=names, evidence=evidence)


def leaf(column, log_odds, **kind):
    return ClassExit(column=column, branch=branch(**kind), log_odds=log_odds)


def walk(data, exits):
    """Prediction, time and exit of each example, one at a time."""
    found = []
    for i in range(len(data)):
        spent = 0.0
        for k, e in enumerate(exits):
            spent += e.branch.timing.branch
            if data.evidence[i, e.column] >= e.log_odds:
                found.append((e.branch.target, e.branch.timing.reached + spent, k))
                break
        else:
            found.append((int(data.baseline[i]), T + spent, STAYS))
    return found


def test_times_are_equations_1_to_3():
    assert TIMING.staying == T + E == (T - D) + D + E
    assert TIMING.mean(0.0) == TIMING.staying
    assert TIMING.mean(1.0) == TIMING.leaving == D + E
    assert TIMING.mean(0.25) == pytest.approx(0.75 * (T - D) + D + E)


def test_two_exits_are_equation_11_with_times_between_the_exits():
    first = Timing(baseline=T, reached=2.0, branch=0.5, unit="flops")
    second = Timing(baseline=T, reached=6.0, branch=0.25, unit="flops")
    g_i, g_j, d_i, d_j, e_i, e_j = 0.3, 0.6, 2.0, 4.0, 0.5, 0.25
    written = (1 - g_i) * ((1 - g_j) * ((T - d_i) - d_j) + d_j + e_j) + d_i + e_i
    assert nested_time([first, second], [g_i, g_j]) == pytest.approx(written)
    assert nested_time([first], [g_i]) == pytest.approx(first.mean(g_i))


@given(
    rates=st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_nested_times_equal_the_shares_that_leave_times_their_own_times(rates, seed):
    rng = np.random.default_rng(seed)
    depths = np.sort(rng.uniform(0, T, len(rates)))
    timings = [
        Timing(baseline=T, reached=float(d), branch=float(rng.random()), unit="flops")
        for d in depths
    ]
    assert nested_time(timings, rates) == pytest.approx(nested_time_reference(timings, rates))


def test_exits_out_of_order_and_rates_that_do_not_fit_are_refused():
    late = dataclasses.replace(TIMING, reached=5.0)
    with pytest.raises(InputError, match=r"in the order of its exits, got depths \[5.0, 3.0\]"):
        nested_time([late, TIMING], [0.1, 0.1])
    with pytest.raises(InputError, match=r"one entry for each exit \(1, at least 1\), got 2"):
        nested_time([TIMING], [0.1, 0.1])


@pytest.mark.parametrize(
    ("field", "value"), [("baseline", 0.0), ("reached", -1.0), ("branch", float("nan"))]
)
def test_times_outside_their_domain_are_refused(field, value):
    with pytest.raises(InputError, match=f"{field} must be .*got {value}"):
        dataclasses.replace(TIMING, **{field: value})


@examples(60)
@given(seed=st.integers(0, 5000), threshold=st.floats(-3, 6), later=st.floats(-3, 6))
def test_the_paper_s_figures_are_what_a_loop_counts(seed, threshold, later):
    data = make(seed)
    exits = [leaf(0, threshold), leaf(1, later, reached=6.0)]
    exits = [dataclasses.replace(e, log_odds=float(np.float32(e.log_odds))) for e in exits]
    found, k = paper_figures(data, exits), 0
    tp = fp = tp_b = fn_b = rest_right = rest = binary = 0
    claims = [0, 0]
    for i, (answer, _, at) in enumerate(walk(data, exits)):
        own, right = data.labels[i] == k, data.baseline[i] == data.labels[i]
        early = at != STAYS
        if early:
            assert answer == k
            claims[at] += 1
        tp, fp = tp + (early and own), fp + (early and not own)
        tp_b, fn_b = tp_b + (not early and own and right), fn_b + (not early and own and not right)
        rest += not early and not own
        rest_right += not early and not own and right
        binary += early == own
    size = int((data.labels == k).sum())
    assert (found.size, found.claimed, found.claimed_right) == (size, tp + fp, tp)
    assert found.rates[0] == pytest.approx(claims[0] / size)
    left_of_k = size - claims[0]
    assert found.rates[1] == pytest.approx(claims[1] / left_of_k if left_of_k > 0 else 0.0)
    # (5): everything right at B less k's, over everything less what was claimed less k's at B
    written = len(data) - (tp + fp) - (tp_b + fn_b)
    assert written == rest
    assert found.accuracy_rest == pytest.approx(rest_right / rest if rest else 0.0)
    assert found.accuracy_exit == pytest.approx(binary / len(data))
    assert found.accuracy_class == pytest.approx((tp + tp_b) / (tp + tp_b + fn_b))
    assert found.time == pytest.approx(nested_time([e.branch.timing for e in exits], found.rates))
    assert found.loss == pytest.approx((T + 2 * E) / T)


@examples(60)
@given(seed=st.integers(0, 5000), threshold=st.floats(-3, 6), later=st.floats(-3, 6))
def test_the_system_s_figures_are_what_a_loop_counts(seed, threshold, later):
    data = make(seed)
    exits = [leaf(0, threshold), leaf(1, later, reached=6.0, target=1)]
    exits = [dataclasses.replace(e, log_odds=float(np.float32(e.log_odds))) for e in exits]
    found, walked = system_figures(data, exits), walk(data, exits)
    right = np.array([answer == y for (answer, _, _), y in zip(walked, data.labels, strict=True)])
    times = np.array([time for _, time, _ in walked])
    assert found.accuracy == pytest.approx(right.mean())
    for k in range(data.classes):
        own = data.labels == k
        assert found.recalls[k] == pytest.approx(right[own].mean())
        assert found.times[k] == pytest.approx(times[own].mean())
        assert found.gain(k) == pytest.approx(T / times[own].mean())
    assert found.loss([0, 1]) == pytest.approx(times[data.labels == 2].mean() / T)
    assert found.gain_all == pytest.approx(T / times.mean())
    stays = np.array([at == STAYS for _, _, at in walked])
    missed = [int((stays & ~data.right & (data.labels == k)).sum()) for k in range(3)]
    assert list(found.missed) == missed
    assert sum(found.missed_baseline) == int((~data.right).sum())


@given(seed=st.integers(0, 5000), low=st.floats(-4, 6), high=st.floats(-4, 6))
def test_a_higher_threshold_never_claims_more_and_gains_no_more(seed, low, high):
    data, (low, high) = make(seed), sorted((low, high))
    few, many = (paper_figures(data, [leaf(0, x)]) for x in (high, low))
    assert few.claimed <= many.claimed
    assert few.claimed_right <= many.claimed_right
    assert few.rates[0] <= many.rates[0]
    assert few.time >= many.time - 1e-12
    inner = route(data, [leaf(0, high)]) != STAYS
    assert not (inner & (route(data, [leaf(0, low)]) == STAYS)).any()


def test_impostors_raise_the_paper_s_gain_and_not_the_true_one():
    """Ten of the class stay, thirty impostors leave: (4) makes a rate of 3, and t'' negative."""
    labels = np.repeat([0, 1], [10, 90])
    evidence = np.where(np.arange(100) >= 70, 5.0, -5.0)[:, None]
    data = ClassData(labels=labels, baseline=labels, class_names=("cat", "dog"), evidence=evidence)
    exits = [leaf(0, 3.0)]
    paper, system = paper_figures(data, exits), system_figures(data, exits)
    assert paper.rates == (3.0,)
    assert paper.time < 0
    assert paper.gain == np.inf
    assert as_json(paper)["gain"] is None
    assert system.gain(0) == pytest.approx(T / (T + E))
    assert paper.accuracy_rest == 1.0  # (5) does not see the 30 dogs that are called cats
    assert system.accuracy == pytest.approx(0.7)
    assert not system.keeps_accuracy(0.005)


def test_nobody_left_for_the_baseline_fails_5():
    data = make(1)
    everyone = dataclasses.replace(data, evidence=np.full((len(data), 1), 9.0))
    assert paper_figures(everyone, [leaf(0, 3.0)]).accuracy_rest == 0.0


def test_the_paper_s_figures_are_for_one_class():
    with pytest.raises(InputError, match=r"exits must be of one class, got \['0', '1'\]"):
        paper_figures(make(0), [leaf(0, 1.0), leaf(1, 1.0, target=1)])


def test_recalls_of_absent_classes_are_not_a_number_and_not_in_the_way():
    data = dataclasses.replace(make(0), class_names=("a", "b", "c", "absent"))
    found = system_figures(data, [leaf(0, 30.0)])
    assert np.isnan(found.recalls[3])
    assert found.keeps_accuracy(0.0)
    assert as_json(found)["recalls"][3] is None


def test_superclasses_are_mapped_for_labels_and_predictions():
    names = ["cat", "car", "dog", "ship"]
    table = superclass_table(names, {"animal": ["cat", "dog"], "vehicle": ["car", "ship"]})
    assert table.tolist() == [0, 1, 0, 1]
    assert to_superclasses(np.array([3, 2, -7, 4]), table).tolist() == [1, 0, -1, -1]


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ({"a": ["cat"], "b": ["car"]}, InputError, r"\['dog'\] are in none of \['a', 'b'\]"),
        ({"a": ["cat", "dog"], "b": ["car", "cat"]}, InputError, "'cat' is in 'a' and in 'b'"),
        ({"a": ["cat", "dgo"], "b": ["car"]}, UnknownNameError, "'dgo'. Did you mean 'dog'"),
        ({"a": ["cat", "dog", "car"]}, InputError, r"at least two superclasses, got \['a'\]"),
    ],
)
def test_a_superclass_map_that_is_no_partition_is_refused(groups, error, message):
    with pytest.raises(error, match=message):
        superclass_table(["cat", "dog", "car"], groups)


@pytest.mark.parametrize(
    ("which", "error", "message"),
    [
        ("automobil", UnknownNameError, "no class 'automobil'. Did you mean 'automobile'"),
        (2, InputError, r"must be in \[0, 2\), got 2"),
        (-1, InputError, r"must be in \[0, 2\), got -1"),
    ],
)
def test_a_class_that_does_not_exist_is_refused(which, error, message):
    with pytest.raises(error, match=message):
        class_index(which, ["cat", "automobile"])


def test_a_class_without_examples_or_without_right_answers_is_refused():
    data = make(0)
    absent = dataclasses.replace(data, class_names=("a", "b", "c", "absent"), split="calibrate")
    with pytest.raises(InputError, match=r"'absent' has no examples in the split 'calibrate'"):
        absent.require(3)
    hopeless = dataclasses.replace(data, baseline=np.where(data.labels == 1, 0, data.baseline))
    with pytest.raises(InputError, match=r"on the class 'class1' is 0.0 in the split 'fit'"):
        hopeless.require(1)
    with pytest.raises(InputError, match=r"must be a class in \[0, 3\), got 3"):
        data.require(3)


def test_broken_data_are_refused():
    data = make(0)
    with pytest.raises(InputError, match=r"labels must be in \[0, 2\), got 2"):
        dataclasses.replace(data, class_names=("a", "b"))
    with pytest.raises(InputError, match=r"evidence must have shape \(60, any\), got \(3, 3\)"):
        dataclasses.replace(data, evidence=data.evidence[:3])
