"""The learned policy against exhaustive search, against replay, and its own promises."""

import itertools

import numpy as np
import pytest
import torch

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp.fitting import learned
from offramp.fitting.learned import fit_learned
from offramp.fitting.tables import Tables
from offramp.fitting.temperature import fit_temperatures
from offramp.fitting.weighted import TreeFit, fit_topology
from offramp.testing.slow import replay_slow
from offramp.trace import Trace
from offramp.trace.testing import make_trace


def tree_fit(part: Trace, topology: Topology, *, combine="last", loss="negative_flips", **options):
    reference = len(part.topology) - 1
    tables = Tables(
        part,
        temperatures=fit_temperatures(part),
        combine=combine,
        reference=reference,
        loss=loss,
    )
    return TreeFit(tables, topology, part.costs.relative_to(part.topology, reference), **options)


def objective_by_replay(
    part: Trace, policy, cost_weight: float, loss: str = "negative_flips"
) -> float:
    reference = len(part.topology) - 1
    result = replay_slow(part, policy)
    own = part.costs.alone(part.topology, reference)
    losses = result.wrong.astype(float)
    if loss == "negative_flips":
        losses = np.maximum(0, losses - part.wrong(reference))
    return float((losses + cost_weight * result.cost / own).mean())


def with_decision_costs(part: Trace, cost: float) -> Trace:
    costs = Costs(
        unit="flops",
        segment=part.costs.segment,
        head=(0.25,) * len(part.topology),
        decision=(cost,) * len(part.topology),
    )
    return part.with_costs(costs)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("combine", ["last", "mean", "log_linear"])
@pytest.mark.parametrize("edges", ["chain", "full"])
def test_the_objective_it_reports_is_what_a_replay_finds(seed, combine, edges):
    part = with_decision_costs(make_trace(n=120, stages=3, seed=seed), 0.5)
    topology = Topology.of(part.stages, edges=edges)
    for loss, cost_weight in (("negative_flips", 0.03), ("error", 0.3)):
        fit = tree_fit(part, topology, combine=combine, loss=loss)
        found = fit.fit(cost_weight)
        replayed = objective_by_replay(part, found.policy, cost_weight, loss)
        assert found.objective == pytest.approx(replayed, abs=1e-9)


def every_threshold_policy(part: Trace, fit: TreeFit, cost_weight: float):
    """All chains of one-feature thresholds and constants: the action sets, tried one by one."""
    paths = fit.topology.paths()
    inner = paths[:-1]
    options = []
    for path in inner:
        masks = {tuple([True] * len(part)), tuple([False] * len(part))}
        for feature, sign in fit.tables.confidences(path):
            scores = sign * fit.tables.column(feature, path)
            masks |= {tuple((scores >= cut).tolist()) for cut in scores}
        options.append([np.array(mask) for mask in masks])
    for masks in itertools.product(*options):
        going = fit.tables.loss_of_leaving(paths[-1])
        for path, mask in reversed(list(zip(inner, masks, strict=True))):
            child = path[-1] + 1
            cost = cost_weight * fit.costs.visit(fit.topology, path, child)
            going = np.where(mask, fit.tables.loss_of_leaving(path), going + cost)
        yield going.mean() + cost_weight * fit.costs.visit(fit.topology, (), paths[0][-1])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("cost_weight", [0.0, 0.05, 0.4])
def test_two_stages_are_solved_exactly(seed, cost_weight):
    part = make_trace(n=8, stages=2, seed=seed)
    fit = tree_fit(part, part.topology, families=("constant", "threshold"))
    objective = fit.fit(cost_weight).objective
    assert objective == pytest.approx(min(every_threshold_policy(part, fit, cost_weight)), abs=1e-9)


def test_three_stages_are_never_better_than_exhaustive_search_and_mostly_as_good():
    hits, gaps = 0, []
    cases = [(seed, cost_weight) for seed in range(15) for cost_weight in (0.02, 0.2)]
    for seed, cost_weight in cases:
        part = make_trace(n=8, stages=3, seed=seed)
        chain = Topology.of(part.stages, edges="chain")
        fit = tree_fit(part, chain, families=("constant", "threshold"), passes=3)
        objective = fit.fit(cost_weight).objective
        best = min(every_threshold_policy(part, fit, cost_weight))
        assert objective >= best - 1e-9
        gaps.append(objective - best)
        hits += objective <= best + 1e-9
    # Stage by stage is a heuristic: what a decision trains on is not yet who will reach it.
    assert hits >= 0.8 * len(cases), f"{hits} of {len(cases)}, mean gap {np.mean(gaps):.4f}"


@pytest.mark.parametrize("seed", range(3))
def test_a_coordinate_pass_never_raises_the_objective(seed):
    part = make_trace(n=200, stages=4, seed=seed)
    topology = Topology.of(part.stages, edges="full")
    for cost_weight in (0.01, 0.1):
        values = [tree_fit(part, topology, passes=p).fit(cost_weight).objective for p in (0, 1, 3)]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("seed", range(5))
def test_no_constant_policy_beats_the_learned_one(seed):
    part = make_trace(n=300, stages=3, seed=seed)
    chain = Topology.of(part.stages, edges="chain")
    fit = tree_fit(part, chain)
    for cost_weight in (0.003, 0.03, 0.3):
        objective = fit_topology(fit, cost_weight).objective
        for k in range(3):
            loss = fit.tables.loss_of_leaving(tuple(range(k + 1))).mean()
            cost = sum(fit.costs.visit(chain, tuple(range(i)), i) for i in range(k + 1))
            assert objective <= loss + cost_weight * cost + 1e-9


def test_a_dear_trade_off_leaves_at_once_and_a_free_one_loses_nothing():
    part = make_trace(n=400, stages=3, seed=1)
    fit = tree_fit(part, part.topology)
    expensive = fit_topology(fit, 100.0).policy
    assert replay_slow(part, expensive).cost.mean() == part.costs.segment[0]
    free = fit_topology(fit, 0.0)
    assert free.objective == 0.0
    assert replay_slow(part, free.policy).cost.mean() < sum(part.costs.segment)


def test_a_stage_that_does_not_pay_vanishes_with_its_cost():
    part = make_trace(n=500, accuracies=[0.7, 0.7001, 0.95], seed=2)
    assert part.logits is not None
    part.logits[:, 1] = torch.tensor([1.0, 0, 0, 0])  # always says class 0, always as surely
    chain = Topology.of(part.stages, edges="chain")
    found = fit_topology(tree_fit(part, chain), 0.02)
    assert found.policy.topology.describe() == "stage0 -> stage2"
    replayed = objective_by_replay(part, found.policy, 0.02)
    assert found.objective == pytest.approx(replayed, abs=1e-9)
    assert found.objective < tree_fit(part, chain).fit(0.02).objective


def test_a_decision_that_costs_more_than_it_saves_is_not_taken():
    part = make_trace(n=300, stages=2, seed=4)
    cheap = with_decision_costs(part, 0.0)
    expensive = with_decision_costs(part, 1000.0)
    assert not fit_topology(tree_fit(cheap, part.topology), 0.02).policy.node((0,)).free
    policy = fit_topology(tree_fit(expensive, part.topology), 0.02).policy
    inner = [p for p in policy.topology.paths() if policy.topology.children(p[-1])]
    assert all(policy.node(path).free for path in inner)


def test_what_the_fit_believes_the_policy_does():
    """Float32 scores: the rows that the fit counted as leaving are those that do."""
    part = make_trace(n=400, stages=3, seed=9)
    candidates = fit_learned(part, reference="stage2", cost_weights=[0.01, 0.05, 0.3])
    for candidate in candidates:
        result = replay_slow(part.take(torch.arange(40)), candidate.policy)
        assert set(np.unique(result.last)) <= set(candidate.policy.topology.active)
    assert len({s.policy.combine for s in candidates}) == 3


def sure_but_wrong_of_class_0(n):
    """Stage 0 is right unless it says class 0, and its confidence says nothing."""
    labels = torch.arange(n) % 3
    first = torch.where(labels == 1, 0, labels)
    return Trace(
        topology=Topology.of(["small", "large"]),
        classes=3,
        labels=labels,
        ranked=torch.stack([first, labels], dim=1)[:, :, None],
        confidence=torch.full((n, 2), 0.8),
        costs=Costs.simple("usd", [1.0, 4.0]),
    )


def test_class_features_find_a_class_that_a_stage_gets_wrong():
    part = sure_but_wrong_of_class_0(600)
    options = {"reference": "large", "cost_weights": [0.2], "combines": ["last"]}
    (plain,) = fit_learned(part, **options, topologies=[part.topology], class_features=False)
    (knowing,) = fit_learned(part, **options, topologies=[part.topology], class_features=True)
    assert replay_slow(part, plain.policy).cost.mean() in (1.0, 4.0, 5.0)  # all alike
    result = replay_slow(part, knowing.policy)
    assert not result.wrong.any()
    assert result.cost.mean() == pytest.approx(1.0 + 4.0 * 2 / 3)


def test_with_many_classes_what_the_fit_believes_is_what_the_policy_does():
    """Of 40 classes stage 0 mistakes ten, and by itself `learned` looks at which it predicts."""
    labels = torch.arange(2400) % 40
    part = Trace(
        topology=Topology.of(["small", "large"]),
        classes=40,
        labels=labels,
        ranked=torch.stack([torch.where(labels < 10, labels + 10, labels), labels], 1)[:, :, None],
        confidence=torch.full((2400, 2), 0.8),
        costs=Costs.simple("usd", [1.0, 4.0]),
    )
    (candidate,) = fit_learned(part, reference="large", cost_weights=[0.2], combines=["last"])
    assert candidate.parameters["features"] == "with class"
    result = replay_slow(part.take(torch.arange(80)), candidate.policy)
    assert not result.wrong.any()
    np.testing.assert_array_equal(result.last == 0, np.arange(80) % 40 >= 20)


@pytest.mark.parametrize("most", [200_000, 200])
def test_of_many_examples_some_tell_whether_the_class_helps(most, monkeypatch):
    """And the policies are fitted on all of them."""
    monkeypatch.setattr(learned, "_TRIAL_EXAMPLES", most)
    part = sure_but_wrong_of_class_0(600)
    options = {"reference": "large", "cost_weights": [0.2], "combines": ["last"]}
    (found,) = fit_learned(part, **options)
    (told,) = fit_learned(part, **options, class_features=True)
    assert found.parameters["features"] == told.parameters["features"]
    same = (candidate.policy.state_dict() for candidate in (found, told))
    assert all(map(torch.equal, *(state.values() for state in same)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost_weights": [-0.1]}, r"cost_weights must be finite and at least 0, got -0\.1"),
        ({"cost_weights": []}, "must each hold at least one entry"),
        ({"loss": "eror"}, "loss must be one of .*'eror'.*Did you mean 'error'"),
        ({"families": ["linaer"]}, "families must be one of .*Did you mean 'linear'"),
        ({"families": []}, "families must name at least one"),
    ],
)
def test_a_wrong_option_is_named_with_its_repair(options, message):
    with pytest.raises(InputError, match=message):
        fit_learned(make_trace(n=50, stages=2), reference="stage1", **options)


def test_a_free_reference_is_refused():
    part = make_trace(n=50, stages=2)
    free = part.with_costs(Costs.simple("flops", [0.0, 0.0]))
    with pytest.raises(InputError, match=r"'stage1'.*greater than 0, got 0\.0"):
        fit_learned(free, reference="stage1")


@pytest.mark.parametrize("cost_weight", [0.02, 0.3])
def test_held_out_is_a_fit_on_the_others_replayed_on_what_was_left_out(cost_weight):
    part = make_trace(n=300, stages=3, seed=4)
    topology = part.topology.chain([0, 1, 2])
    temperatures = fit_temperatures(part)
    costs = part.costs.relative_to(part.topology, 2)

    def tree(rows):
        tables = Tables(rows, temperatures=temperatures, combine="last", reference=2)
        return TreeFit(tables, topology, costs, ("constant", "threshold"), passes=0)

    folds = np.random.default_rng(1).permutation(300) % 3
    total = 0.0
    for fold in range(3):
        policy = tree(part.take(torch.from_numpy(folds != fold))).fit(cost_weight).policy
        left_out = part.take(torch.from_numpy(folds == fold))
        result = replay_slow(left_out, policy)
        negative_flips = result.wrong & ~left_out.wrong(2)
        total += (
            negative_flips + cost_weight * result.cost / part.costs.alone(part.topology, 2)
        ).sum()
    assert tree(part).held_out(cost_weight, folds) == pytest.approx(total / 300, abs=1e-9)
    assert tree(part).held_out(cost_weight, folds) > tree(part).fit(cost_weight).objective


def test_features_of_classes_are_taken_where_they_help_on_left_out_examples():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    unsure = torch.where(labels == 1, 0, labels)  # right unless it says class 0
    noisy = torch.where(torch.rand(600, generator=generator) < 0.8, labels, (labels + 1) % 3)
    chosen = []
    for first in (unsure, noisy):
        part = Trace(
            topology=Topology.of(["small", "large"]),
            classes=3,
            labels=labels,
            ranked=torch.stack([first, labels], dim=1)[:, :, None],
            confidence=torch.rand(600, 2, generator=generator) / 4 + 0.7,
            costs=Costs.simple("usd", [1.0, 4.0]),
        )
        (candidate,) = fit_learned(part, reference="large", cost_weights=[0.2], combines=["last"])[
            :1
        ]
        chosen.append(candidate.parameters.get("features"))
    assert chosen == ["with class", None]
