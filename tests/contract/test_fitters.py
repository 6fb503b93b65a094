"""One suite for every policy that `fit` knows by name; a new one is swept as soon as it is listed.

What may differ between policies is how they are fitted. What they are afterwards may not: a policy
decides by what it is shown, each example on its own, and never by a label.
"""

import inspect
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from offramp._core.errors import InputError, UnknownNameError
from offramp._core.keys import example_keys
from offramp._core.schema import from_json, to_json
from offramp.evaluation import fit, replay
from offramp.fitting.registry import POLICIES
from offramp.policy import Candidate, Evidence, Node, Policy
from offramp.trace import make_trace
from reference.replay import replay_reference

NAMES = sorted(POLICIES)
KINDS = ("logits", "labels")
CASES = [(name, kind) for name in NAMES for kind in KINDS]
SWEPT = 4  # candidates of each sweep that are looked at
#: Smaller sweeps where the full one is slow; a policy that is not listed is fitted as it comes.
QUICK = {
    "learned": {"cost_weights": [0.0, 0.03, 0.3]},
    "threshold": {"confidences": ["max_prob", "entropy"], "grid": 8},
    "stopping": {
        "cost_weights": [0.003, 0.1, 0.5],
        "epochs": 20,
        "width": 16,
        "combines": ["stopping"],
    },
}


def fitted(name, kind, *, seed=0, n=160):
    part = make_trace(n, stages=3, classes=4, seed=seed, kind=kind)
    return part, POLICIES[name](part, reference="stage2", **QUICK.get(name, {}))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request):
    """A fitted sweep, some candidates of it, and examples that it has not seen."""
    _, candidates = fitted(*request.param)
    some = candidates[:: max(1, len(candidates) // SWEPT)]
    return request.param, some, make_trace(60, stages=3, classes=4, seed=1, kind=request.param[1])


def views(trace, policy):
    """For each path a view of the examples that come by it, as a function of who is in it."""
    done = replay(trace, policy)
    outputs = [trace.output(k) for k in range(len(trace.topology))]
    keys = example_keys(trace.ids)
    went = [done.paths[i] for i in done.path]
    for path in policy.topology.paths():
        found = [row for row, way in enumerate(went) if way[: len(path)] == path]
        if found:
            yield path, len(found), partial(view_of, policy, path, outputs, keys, found)


def view_of(policy, path, outputs, keys, found, which):
    rows = torch.tensor(found)[which]
    return Evidence(policy, path, outputs, keys[rows], rows)


def test_the_sweep_is_not_empty():
    assert {"random", "threshold", "agreement", "learned"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_fitter_has_the_arguments_that_all_share_and_says_what_it_does(name):
    parameters = inspect.signature(POLICIES[name]).parameters
    assert list(parameters)[:3] == ["part", "reference", "top"]
    assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters.values())[1:])
    documentation = inspect.getdoc(POLICIES[name])
    assert "Args:" in documentation
    assert ">>> " in documentation
    for option in parameters:
        assert f"{option}: " in documentation, f"{name} does not explain {option}"


def test_settings_say_what_they_are(case):
    (name, _), candidates, _ = case
    assert candidates
    for candidate in candidates:
        assert candidate.method == name
        assert candidate.reference == "stage2"
        assert candidate.parameters
        assert candidate.label.startswith(name)
    assert len({repr(to_json(s.policy)) for s in candidates}) > 1


def test_the_policies_of_a_sweep_leave_at_different_stages(case):
    """Else the other tests of this file would look at one kind of decision only."""
    _, candidates, trace = case
    exits = np.concatenate([replay(trace, s.policy).last for s in candidates])
    assert len(np.unique(exits)) >= 2


def depends_on_the_rest(policy, trace):
    """Stages at which an example is treated otherwise in a batch than on its own."""
    for path, count, view in views(trace, policy):
        whole = view(torch.arange(count))
        alone = [view(torch.tensor([k])) for k in range(count)]
        for act in acts(policy, path[-1], trace):
            one_by_one = [torch.cat(parts) for parts in zip(*map(act, alone), strict=True)]
            pairs = zip(act(whole), one_by_one, strict=True)
            if not all(torch.equal(one, other) for one, other in pairs):
                yield path[-1]


def depends_on_the_order(policy, trace):
    """Stages at which shuffling the batch does more than shuffle the outcome."""
    for path, count, view in views(trace, policy):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        plain, shuffled = view(torch.arange(count)), view(order)
        for act in acts(policy, path[-1], trace):
            pairs = zip(act(plain), act(shuffled), strict=True)
            if not all(torch.equal(one[order], other) for one, other in pairs):
                yield path[-1]


def test_decisions_and_answers_do_not_depend_on_the_rest_of_the_batch(case):
    _, candidates, trace = case
    few = trace.take(torch.arange(30))
    for candidate in candidates:
        assert list(depends_on_the_rest(candidate.policy, few)) == [], candidate.label


def test_decisions_and_answers_do_not_depend_on_the_order(case):
    _, candidates, trace = case
    for candidate in candidates:
        assert list(depends_on_the_order(candidate.policy, trace)) == [], candidate.label


class _AboveAverage(torch.nn.Module):
    """Broken on purpose: compares an example with the others of its batch."""

    free = False

    def score(self, at):
        sure = at.distribution(0).max_prob
        return sure - sure.mean()


class _FirstInLine(torch.nn.Module):
    """Broken on purpose: whoever stands first in the batch leaves."""

    free = False

    def score(self, at):
        return 0.5 - torch.arange(len(at.ids), dtype=torch.float32)


def test_the_checks_above_can_fail():
    trace = make_trace(30, stages=2, seed=0)
    relative, first = (
        Policy(trace.topology, {(0,): Node(r)}) for r in (_AboveAverage(), _FirstInLine())
    )
    assert 0 in depends_on_the_rest(relative, trace)
    assert 0 in depends_on_the_rest(first, trace)
    assert 0 in depends_on_the_order(first, trace)


def acts(policy, stage, trace):
    """What a policy does with a view: decide, answer where there are scores, predict."""
    yield policy.decide
    if trace.output(stage).scored:
        yield lambda view: (policy.answer(view),)
    yield lambda view: (policy.predict(view, top=2),)


def test_a_setting_survives_json_bit_by_bit(case):
    _, candidates, trace = case
    for candidate in candidates:
        again = from_json(Candidate, json.loads(json.dumps(to_json(candidate), allow_nan=False)))
        assert to_json(again) == to_json(candidate)
        one, other = replay(trace, candidate.policy), replay(trace, again.policy)
        for name in ("path", "labels", "closest", "path_cost"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), candidate.label


def test_no_label_is_in_sight_of_a_decision():
    assert list(inspect.signature(Policy.decide).parameters) == ["self", "at"]
    assert list(inspect.signature(Policy.answer).parameters) == ["self", "at"]
    assert "label" not in " ".join([*inspect.signature(Evidence).parameters, *dir(Evidence)])


def test_other_labels_change_no_decision_and_no_answer(case):
    _, candidates, trace = case
    swapped = replace(trace, labels=trace.labels.flip(0))
    assert not torch.equal(swapped.labels, trace.labels)
    for candidate in candidates:
        one, other = replay(trace, candidate.policy), replay(swapped, candidate.policy)
        for name in ("path", "labels", "closest"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), candidate.label


def test_replay_is_what_walking_each_example_on_its_own_gives(case):
    _, candidates, trace = case
    few = trace.take(torch.arange(25))
    for candidate in candidates:
        fast, slow = replay(few, candidate.policy), replay_reference(few, candidate.policy)
        for name in ("path", "labels", "wrong", "closest", "path_cost"):
            assert np.array_equal(getattr(fast, name), getattr(slow, name)), candidate.label


def test_one_example_is_treated_as_it_is_among_others(case):
    _, candidates, trace = case
    for candidate in candidates:
        whole = replay(trace, candidate.policy)
        for row in (0, len(trace) - 1):
            one = replay(trace.take(torch.tensor([row])), candidate.policy)
            assert one.path.tolist() == [whole.path[row]]
            assert one.labels.tolist() == [whole.labels[row].tolist()]


@pytest.mark.parametrize("name", NAMES)
def test_fitting_twice_gives_the_same_and_changes_nothing_it_was_given(name):
    part, first = fitted(name, "logits", n=40)
    before = part.logits.clone()
    second = POLICIES[name](part, reference="stage2", **QUICK.get(name, {}))
    assert [to_json(s) for s in first] == [to_json(s) for s in second]
    assert torch.equal(part.logits, before)


@pytest.mark.parametrize("name", NAMES)
def test_one_example_is_enough_to_fit_on(name):
    part, candidates = fitted(name, "logits", n=1)
    for candidate in candidates[:3]:
        assert len(replay(part, candidate.policy).path) == 1


@pytest.mark.parametrize("name", NAMES)
def test_an_option_that_does_not_exist_is_refused_by_name(name):
    with pytest.raises(InputError, match="nonsense"):
        fit(make_trace(30), name, nonsense=1, progress=False)


def test_a_policy_that_does_not_exist_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'learned'"):
        fit(make_trace(30), "leanred", progress=False)
