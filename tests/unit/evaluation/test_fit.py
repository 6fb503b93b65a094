"""From a trace to a frontier: splits, reference, options, warnings."""

from dataclasses import replace

import pytest

from offramp._core.errors import InputError, UnknownNameError
from offramp.evaluation import fit
from offramp.fitting.registry import POLICIES
from offramp.trace import Trace, make_trace

QUICK = {"combines": ["last"], "confidences": ["margin"], "progress": False}


def test_a_trace_without_splits_is_halved_by_the_seed():
    trace = make_trace(900, stages=2)
    first, same, other = (fit(trace, "threshold", seed=s, **QUICK) for s in (1, 1, 2))
    assert first.points[0].fit.n == 450
    assert first.pareto[0].calibrate.n == 450
    assert [p.fit.cost for p in first.points] == [p.fit.cost for p in same.points]
    assert [p.fit.cost for p in first.points] != [p.fit.cost for p in other.points]


def test_only_fit_and_calibrate_are_looked_at():
    trace = make_trace(900, stages=2)
    split = trace.split_into({"fit": 400, "calibrate": 200, "test": 300}, seed=0)
    spoiled = split.logits.clone()
    spoiled[split.split == 3] = 0.0  # a look at `test` would change what is found
    first = fit(split, "threshold", **QUICK)
    second = fit(replace(split, logits=spoiled), "threshold", **QUICK)
    assert [p.fit.cost for p in first.points] == [p.fit.cost for p in second.points]
    assert first.points[0].fit.n == 400
    assert first.pareto[0].calibrate.n == 200


def test_f_is_the_most_accurate_stage_on_fit_and_not_the_last():
    trace = make_trace(900, accuracies=[0.7, 0.95, 0.8])
    assert fit(trace, "random", progress=False).reference == "stage1"
    assert fit(trace, "random", reference="stage2", progress=False).reference == "stage2"


def test_several_policies_share_a_frontier_and_get_the_options_they_know():
    trace = make_trace(600, stages=2)
    both = fit(trace, ["threshold", "random"], rates=[0.5], **QUICK)
    assert {p.candidate.method for p in both.points} == {"threshold", "random"}
    assert sum(p.candidate.method == "random" for p in both.points) == 1


def test_every_registered_policy_fits_a_trace_with_scores():
    trace = make_trace(400, stages=3)
    assert {"random", "threshold", "agreement", "learned"} <= set(POLICIES)
    for name in POLICIES:
        found = fit(trace, name, progress=False)
        assert found.points
        assert found.pareto or name in ("random", "agreement")


def test_an_option_that_no_policy_knows_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"got 'rate'. Did you mean 'rates'\?"):
        fit(make_trace(100, stages=2), "random", rate=[0.5])


def test_an_unknown_policy_is_named_with_the_nearest():
    with pytest.raises(
        UnknownNameError, match=r"no policy 'threshhold'. Did you mean 'threshold'\?"
    ):
        fit(make_trace(100, stages=2), "threshhold")


def test_an_unknown_reference_is_named():
    with pytest.raises(UnknownNameError, match="no stage 'large'"):
        fit(make_trace(100, stages=2), "random", reference="large")


def test_a_trace_without_a_fit_part_is_refused():
    trace = make_trace(100, stages=2).split_into({"calibrate": 0.5, "test": 0.5}, seed=0)
    with pytest.raises(InputError, match="No example of this trace is in the split 'fit'"):
        fit(trace, "random")


def test_examples_that_the_networks_were_trained_on_give_a_warning():
    trace = replace(make_trace(100, stages=2), seen_in_training=True)
    with pytest.warns(UserWarning, match="biased towards the expensive stages"):
        fit(trace, "random", rates=[0.5], progress=False)


def test_labels_with_confidences_can_be_fitted():
    trace = make_trace(1200, stages=2, kind="labels", seed=3)
    found = fit(trace, "threshold", progress=False).cheapest(max_drop=0.02, delta=None)
    assert found.judged.accuracy_drop <= 0.02
    assert found.judged.cost_ratio < 1


def test_rankings_are_fitted_by_agreement_at_top_m_and_by_nothing_that_needs_scores():
    base = make_trace(600, stages=3, classes=8, kind="labels", seed=3)
    trace = Trace(
        topology=base.topology,
        labels=base.labels,
        classes=8,
        costs=base.costs,
        ranked=base.ranked,
    )
    found = fit(trace, "agreement", top=5, progress=False)
    assert found.points[0].candidate.top == 5
    part = trace.split_into({"fit": 0.5, "calibrate": 0.5}, seed=0).subset("fit")
    for k in range(3):
        assert found.singles[k].fit.accuracy == pytest.approx(part.accuracy(k, top=5))
    with pytest.raises(InputError, match="rankings without logits or confidences"):
        fit(trace, "threshold", progress=False)
