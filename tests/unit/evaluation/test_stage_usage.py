"""Which stages a candidate uses: every reason, with figures that a replay finds again."""

from dataclasses import replace

import pytest
import torch

from offramp._core.costs import Costs
from offramp._core.schema import to_json
from offramp._core.topology import Topology
from offramp.evaluation import evaluate, stage_usage
from offramp.fitting.baselines import fit_random
from offramp.fitting.learned import fit_learned, refit
from offramp.policy import Candidate
from offramp.trace.testing import make_trace


def two_heads(deep_cost, *, deep_gain=0.05):
    """One exit with a cheap and a deep head, another exit, and the end."""
    topology = Topology(
        names=("e1/cheap", "e1/deep", "e2", "end"),
        sources=(-1, -1, 0, 2),
        groups=("e1", "e1", "e2", "end"),
        edges=((0, 2), (1, 2), (2, 3)),
    )
    trace = make_trace(
        500, classes=4, accuracies=[0.7, 0.7 + deep_gain, 0.8, 0.93], topology=topology, seed=1
    )
    costs = Costs(
        unit="flops", segment=(1.0,) * 4, head=(0.01, deep_cost, 0.01, 0.01), decision=(0.0,) * 4
    )
    return replace(trace, costs=costs)


def learned(part, chain, *, cost_weight=0.1, combine="last", loss="negative_flips"):
    topologies = [part.topology.chain(chain)]
    (candidate,) = fit_learned(
        part, reference=part.stages[-1], cost_weights=[cost_weight], combines=[combine],
        topologies=topologies, loss=loss,
    )  # fmt: skip
    return candidate


def test_a_dear_alternative_head_is_named_with_the_one_in_its_place():
    part = two_heads(deep_cost=0.9)
    candidate = learned(part, ["e1/cheap", "end"], cost_weight=0.3)
    uses = {use.stage: use for use in stage_usage(part, candidate)}
    assert uses["e1/cheap"].kind == "used"
    deep = uses["e1/deep"]
    assert (deep.kind, deep.used) == ("alternative", False)
    assert "'e1/cheap' at the same point is cheaper in total" in deep.reason
    assert deep.numbers["objective_with"] >= deep.numbers["objective_without"]
    assert deep.numbers["head_cost_ratio"] == pytest.approx(0.9 / 3.01)


@pytest.mark.parametrize("loss", ["negative_flips", "error"])
def test_the_figures_of_a_stage_tried_are_those_of_a_replay(loss):
    part = two_heads(deep_cost=0.9)
    candidate = learned(part, ["e1/cheap", "end"], cost_weight=0.3, loss=loss)
    numbers = {use.stage: use.numbers for use in stage_usage(part, candidate)}["e2"]
    for chain, suffix in ((["e1/cheap", "end"], "without"), (["e1/cheap", "e2", "end"], "with")):
        (fit,) = refit(part, candidate, [part.topology.chain(chain)])
        found = evaluate(part, replace(candidate, policy=fit.policy), bootstrap=0)
        lost = found.negative_flips if loss == "negative_flips" else 1 - found.accuracy
        assert numbers[f"cost_ratio_{suffix}"] == pytest.approx(found.cost_ratio)
        assert numbers[f"loss_{suffix}"] == pytest.approx(lost)
        objective = lost + 0.3 * found.cost_ratio
        assert numbers[f"objective_{suffix}"] == pytest.approx(objective)
    assert numbers["share_leaving"] == found.exit_share[2]


def test_a_stage_that_is_never_right_would_never_fire():
    part = two_heads(deep_cost=0.9)
    logits = part.logits.clone()
    logits[:, 2] = 0.0
    logits[torch.arange(len(part)), 2, (part.labels + 1) % 4] = 5.0
    logits[torch.arange(len(part)), 3, part.labels] = 20.0  # the end is always right
    part = replace(part, logits=logits)
    candidate = learned(part, ["e1/cheap", "end"])
    uses = {u.stage: u for u in stage_usage(part, candidate)}
    assert uses["e2"].kind == "idle"
    assert uses["e2"].reason.startswith("would never fire: leaving there loses more")
    assert uses["e2"].numbers["share_leaving"] == 0


def test_a_stage_that_guesses_fires_for_a_lucky_few_and_says_so():
    part = two_heads(deep_cost=0.9)
    logits = part.logits.clone()
    logits[:, 2] = 0.0
    part = replace(part, logits=logits)
    use = {u.stage: u for u in stage_usage(part, learned(part, ["e1/cheap", "end"]))}["e2"]
    assert use.kind == "idle"
    assert 0 < use.numbers["share_leaving"] < 0.02
    assert "which may be luck" in use.reason


def test_a_head_that_costs_more_than_it_saves_is_dear():
    part = two_heads(deep_cost=0.9)
    costs = replace(part.costs, head=(0.01, 0.9, 0.6, 0.01))
    part = part.with_costs(costs)
    candidate = learned(part, ["e1/cheap", "end"], cost_weight=0.3)
    use = {u.stage: u for u in stage_usage(part, candidate)}["e2"]
    assert use.kind == "expensive"
    assert "would fire for" in use.reason
    assert "its head costs" in use.reason
    assert use.numbers["objective_with"] > use.numbers["objective_without"]


def test_a_stage_that_would_pay_is_said_to_pay():
    part = two_heads(deep_cost=0.9)
    candidate = learned(part, ["e1/deep", "end"], cost_weight=0.3)
    use = {u.stage: u for u in stage_usage(part, candidate)}["e1/cheap"]
    assert use.kind == "not chosen"
    assert use.reason.startswith("would pay on the examples fitted on")
    assert use.numbers["objective_with"] < use.numbers["objective_without"]


def test_a_policy_that_is_not_learned_says_only_which_stages_it_uses():
    part = two_heads(deep_cost=0.1)
    chain = part.topology.chain(["e2", "end"])
    (candidate,) = fit_random(part, reference="end", rates=[0.0], topologies=[chain])
    uses = {use.stage: use for use in stage_usage(part, candidate)}
    assert (uses["e2"].kind, uses["e2"].used) == ("kept", True)
    assert uses["end"].kind == "used"
    assert uses["e1/deep"].reason == "not among the chosen stages"
    assert to_json(uses["e1/deep"])["numbers"] == {"head_cost_ratio": 0.1 / 3.01}


def test_one_stage_alone_is_used_and_the_others_are_not():
    part = two_heads(deep_cost=0.1)
    alone = Candidate.single(part.topology, "e2", reference="end")
    assert [use.used for use in stage_usage(part, alone)] == [False, False, True, False]


def test_a_learned_policy_that_branches_says_only_which_stages_it_uses():
    part = make_trace(300, stages=3, seed=0)
    (candidate,) = fit_learned(
        part, reference="stage2", cost_weights=[0.1], combines=["last"], topologies=[part.topology]
    )
    assert len(stage_usage(part, candidate)) == 3
