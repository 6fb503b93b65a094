"""Every fitter, rule and feature keeps what `offramp.testing` says they promise.

Each suite is shown members that are broken on purpose, so that it is seen to fail.
"""

import inspect

import pytest
import torch

from offramp._core.errors import InputError, UnknownNameError
from offramp._core.topology import Topology
from offramp.evaluation import fit
from offramp.fitting.registry import POLICIES
from offramp.policy import Candidate, Evidence, Feature, Linear, Node, Policy
from offramp.policy.features import FEATURES
from offramp.policy.rules import RULES, Agreement, ClassThreshold, Constant, Random, Stopping
from offramp.testing import check_feature, check_policy, check_rule, random_policy
from offramp.trace import make_trace

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
#: One of each kind of rule, for the first of two stages with four classes.
RULES_MADE = {
    "constant": lambda: Constant(True),
    "linear": lambda: Linear.threshold(Feature("max_prob", 0), 0.6),
    "random": lambda: Random(0.4, 3, 0),
    "agreement": lambda: Agreement((0, 0)),
    "class_threshold": lambda: ClassThreshold(0, 1, 0.4),
    "stopping": lambda: made_stopping(),
}

# Before any test adds to it.
RULE_KINDS, FEATURE_NAMES, POLICY_NAMES = set(RULES), sorted(FEATURES), sorted(POLICIES)


def made_stopping():
    part = make_trace(60, stages=2, classes=4, seed=2)
    found = POLICIES["stopping"](part, reference="stage1", **QUICK["stopping"])
    rules = [node.leave for one in found for node in one.policy.nodes.values()]
    return next(rule for rule in rules if isinstance(rule, Stopping))


def test_the_sweeps_are_not_empty():
    assert {"random", "threshold", "agreement", "learned"} <= set(POLICY_NAMES)
    assert set(RULE_KINDS) == set(RULES_MADE), "give an example of each rule"
    assert {"max_prob", "log_prob_1"} <= set(FEATURE_NAMES)


@pytest.mark.parametrize("kind", ["logits", "labels"])
@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_policy_keeps_what_policies_promise(name, kind):
    check_policy(name, kind=kind, **QUICK.get(name, {}))


@pytest.mark.parametrize("kind", sorted(RULES_MADE))
def test_every_rule_keeps_what_rules_promise(kind):
    check_rule(RULES_MADE[kind]())


@pytest.mark.parametrize("name", FEATURE_NAMES)
def test_every_feature_keeps_what_features_promise(name):
    check_feature(name)


# Broken on purpose.


class AboveAverage(torch.nn.Module):
    """Compares an example with the others of its batch."""

    free = False

    def score(self, at):
        sure = at.distribution(0).max_prob
        return sure - sure.mean()


class FirstInLine(torch.nn.Module):
    """Whoever stands first in the batch leaves."""

    free = False

    def score(self, at):
        return 0.5 - torch.arange(len(at.ids), dtype=torch.float32)


class Doubled(torch.nn.Module):
    """Computes in another precision than a decision is taken in."""

    free = False

    def score(self, at):
        return at.distribution(0).max_prob.double()


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        (AboveAverage(), "AboveAverage: nothing depends on the rest of the batch"),
        (FirstInLine(), "FirstInLine: nothing depends on the rest of the batch"),
        (Doubled(), "Doubled: a score is float32"),
    ],
)
def test_a_broken_rule_is_found(rule, broken):
    with pytest.raises(AssertionError, match=broken):
        check_rule(rule)


def altered(change):
    """The fitter of random policies, and what it gives changed."""

    def fitter(part, *, reference, top=1):
        return change(POLICIES["random"](part, reference=reference, top=top), part)

    fitter.__doc__ = inspect.getdoc(POLICIES["random"])
    return fitter


def peeking(candidates, part):
    """Policies whose thresholds are those of the labels that happened to come."""
    draw = float(torch.rand(()))
    rule = Linear.threshold(Feature("max_prob", 0), draw)
    policy = Policy(part.topology.chain(["stage0", "stage2"]), {(0,): Node(rule)})
    return [Candidate(policy=policy, method="m", reference="stage2", parameters={"draw": draw})]


def relative(candidates, part):
    return [
        Candidate(
            policy=Policy(part.topology.chain(["stage0", "stage2"]), {(0,): Node(AboveAverage())}),
            method="relative",
            reference="stage2",
            parameters={"which": which},
        )
        for which in range(2)
    ]


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (lambda found, part: [], "it finds a candidate"),
        (lambda found, part: found[:1] * 2, "its candidates differ"),
        (peeking, "its candidates differ|fitting twice gives the same"),
        (lambda found, part: [*found, *peeking(found, part)], "fitting twice gives the same"),
    ],
)
def test_a_broken_fitter_is_found(change, broken):
    with pytest.raises(AssertionError, match=broken):
        check_policy(altered(change))


def test_a_fitter_that_cannot_be_written_down_is_found():
    with pytest.raises((AssertionError, TypeError)):
        check_policy(altered(relative))


def test_a_fitter_without_words_is_found():
    def silent(part, *, reference, top=1):
        return POLICIES["random"](part, reference=reference, top=top)

    with pytest.raises(AssertionError, match="the docstring begins with a sentence"):
        check_policy(silent)


@pytest.mark.parametrize(
    ("feature", "broken"),
    [
        (lambda d: d.max_prob - d.max_prob.mean(), "does not depend on the rest"),
        (lambda d: d.log_probs, "one number for each example"),
        (lambda d: d.max_prob.double(), "it is float32"),
        (lambda d: d.log_probs.amin(dim=1).exp().log(), "it is finite where a class is all but"),
    ],
)
def test_a_broken_feature_is_found(feature, broken):
    with pytest.raises(AssertionError, match=broken):
        check_feature(feature)


# What no member can do, whoever writes it.


def test_no_label_is_in_sight_of_a_decision():
    assert list(inspect.signature(Policy.decide).parameters) == ["self", "at"]
    assert list(inspect.signature(Policy.answer).parameters) == ["self", "at"]
    assert "label" not in " ".join([*inspect.signature(Evidence).parameters, *dir(Evidence)])


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_an_option_that_does_not_exist_is_refused_by_name(name):
    with pytest.raises(InputError, match="nonsense"):
        fit(make_trace(30), name, nonsense=1, progress=False)


def test_a_policy_that_does_not_exist_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'learned'"):
        fit(make_trace(30), "leanred", progress=False)


def test_drawn_policies_are_those_of_their_seed():
    topology = Topology.of(["a", "b", "c"])
    one, other = (random_policy(topology, seed=4, classes=3) for _ in range(2))
    assert repr(one) == repr(other)
