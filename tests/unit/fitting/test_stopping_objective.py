"""The two estimators of the gradient agree in the mean; the known optimum is reached."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

import offramp.fitting.stopping.objective as objective_module
from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp.evaluation import replay
from offramp.fitting.stopping.fit import fit_stopping
from offramp.fitting.stopping.network import make_networks, rules_of, stop_odds
from offramp.fitting.stopping.objective import (
    Objective,
    combined_log_probs,
    drawn_label,
    drawn_stop,
    others_baseline,
    right_at,
    stage_cross_entropy,
    stop_log_probs,
    supervised_stop_loss,
)
from offramp.policy.combination import stopping_log_probs
from offramp.policy.features import Distribution
from offramp.trace import Trace
from support.properties import examples

M, S, C = 3, 3, 4
DRAWS = 30_000
COST = torch.tensor([0.1, 0.3, 0.9])


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(M, S, C, generator=generator)
    odds = torch.randn(M, S - 1, generator=generator)
    return logits, odds, torch.tensor([0, 1, 3])


def drawn_gradients(objective, seed=0, draws=DRAWS):
    """REINFORCE gradients of many independent rollouts of one batch."""
    logits, odds, labels = problem(seed)
    generator = torch.Generator().manual_seed(99)
    stopped = torch.stack(
        [
            drawn_stop(odds[i].expand(draws, -1), torch.rand(draws, S - 1, generator=generator))
            for i in range(M)
        ],
        dim=1,
    )
    answered = torch.stack(
        [
            drawn_label(logits[i, stopped[:, i]], torch.rand(draws, generator=generator))
            for i in range(M)
        ],
        dim=1,
    )
    loss = grad(objective.drawn_loss, argnums=(0, 1))
    found = vmap(loss, in_dims=(None, None, None, 0, 0))(logits, odds, labels, stopped, answered)
    return torch.cat([part.reshape(draws, -1) for part in found], dim=1).double()


def exact_gradient(objective, seed=0):
    logits, odds, labels = problem(seed)
    found = grad(objective.exact_loss, argnums=(0, 1))(logits, odds, labels)
    return torch.cat([part.reshape(-1) for part in found]).double()


def furthest(gradients, exact):
    """Largest distance of the mean from the exact gradient, in standard errors."""
    error = gradients.std(dim=0) / len(gradients) ** 0.5
    return float(((gradients.mean(dim=0) - exact).abs() / error.clamp(min=1e-9)).max())


@pytest.mark.parametrize("answers", ["drawn", "best", "combined"])
def test_reinforce_has_the_exact_gradient_as_its_mean(answers):
    objective = Objective(stage_cost=COST, answers=answers)
    for seed in (0, 1):
        gradients = drawn_gradients(objective, seed)
        assert furthest(gradients, exact_gradient(objective, seed)) < 4.5


def test_a_baseline_of_the_same_batch_would_be_caught(monkeypatch):
    def own_reward_included(reward, weight):
        return ((weight * reward).sum() / weight.sum()).expand(len(reward))

    monkeypatch.setattr(objective_module, "others_baseline", own_reward_included)
    objective = Objective(stage_cost=COST, answers="drawn")
    assert furthest(drawn_gradients(objective), exact_gradient(objective)) > 8


def test_costs_summed_to_the_stage_before_would_be_caught():
    short = Objective(stage_cost=torch.tensor([0.0, 0.1, 0.3]), answers="drawn")
    right = Objective(stage_cost=COST, answers="drawn")
    assert furthest(drawn_gradients(short), exact_gradient(right)) > 8


def test_the_baseline_lowers_the_variance(monkeypatch):
    objective = Objective(stage_cost=COST, answers="drawn")
    with_it = drawn_gradients(objective).var(dim=0).sum()
    monkeypatch.setattr(
        objective_module, "others_baseline", lambda reward, _weight: torch.zeros_like(reward)
    )
    assert drawn_gradients(objective).var(dim=0).sum() > 1.3 * with_it


def test_the_weights_of_the_baseline_are_the_squared_norms_of_the_score():
    """By autograd, at the two outputs of each stopping network and at the classifier's logits."""
    logits, odds, _ = problem()
    pairs = torch.stack([odds, torch.zeros_like(odds)], dim=2)
    for stopped, answered in itertools.product(range(S), range(C)):

        def score(pair, own, stopped=stopped, answered=answered):
            log = stop_log_probs((pair[:, 0] - pair[:, 1])[None])[0, stopped]
            return log + own.log_softmax(dim=0)[answered]

        for i in range(M):
            parts = grad(score, argnums=(0, 1))(pairs[i], logits[i, stopped])
            wanted = sum(float(part.square().sum()) for part in parts)
            own = objective_module._stop_weight(odds[i : i + 1], torch.tensor([stopped]))
            chosen = torch.eye(C)[answered] - logits[i, stopped].softmax(dim=0)
            assert float(own + chosen.square().sum()) == pytest.approx(wanted, rel=1e-4)


@examples(30)
@given(seed=st.integers(0, 2**31), m=st.integers(1, 6))
def test_the_baseline_is_that_of_the_others_one_by_one(seed, m):
    generator = torch.Generator().manual_seed(seed)
    reward = -torch.rand(m, generator=generator)
    weight = torch.rand(m, generator=generator) + 0.01
    found = others_baseline(reward, weight)
    for i in range(m):
        others = [j for j in range(m) if j != i]
        total = sum(float(weight[j]) for j in others)
        wanted = sum(float(weight[j] * reward[j]) for j in others) / total if others else 0.0
        assert float(found[i]) == pytest.approx(wanted, abs=1e-5)


@examples(30)
@given(seed=st.integers(0, 2**31), stages=st.integers(2, 5))
def test_the_chances_of_stopping_are_the_products_and_sum_to_one(seed, stages):
    odds = 3 * torch.randn(2, stages - 1, generator=torch.Generator().manual_seed(seed))
    found = stop_log_probs(odds).exp()
    for row, given_odds in zip(found, odds, strict=True):
        pi = [*given_odds.sigmoid().tolist(), 1.0]
        wanted = [pi[k] * np.prod([1 - p for p in pi[:k]]) for k in range(stages)]
        assert row.tolist() == pytest.approx(wanted, abs=1e-6)
    assert found.sum(dim=1).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_drawn_stops_have_the_chances_of_the_policy():
    odds = torch.tensor([[0.3, -1.0]])
    numbers = torch.rand(40_000, 2, generator=torch.Generator().manual_seed(0))
    stops = drawn_stop(odds.expand(40_000, -1), numbers).bincount(minlength=3) / 40_000
    torch.testing.assert_close(stops, stop_log_probs(odds)[0].exp(), atol=0.01, rtol=0)


def test_the_exact_reward_is_the_sum_over_stages_and_answers():
    logits, odds, labels = problem()
    wanted = 0.0
    for i, k, y in itertools.product(range(M), range(S), range(C)):
        pi = torch.cat([odds[i].sigmoid(), torch.ones(1)])
        chance = float(pi[k] * (1 - pi[:k]).prod() * logits[i, k].softmax(dim=0)[y])
        wanted += chance * (-(y != int(labels[i])) - float(COST[k])) / M
    objective = Objective(stage_cost=COST, answers="drawn")
    assert float(objective.exact_loss(logits, odds, labels)) == pytest.approx(-wanted, abs=1e-5)


def test_top_m_counts_the_best_m():
    logits, odds, labels = problem()
    for top in (1, 2, C):
        best = logits.topk(top, dim=2).indices
        wanted = (best == labels[:, None, None]).any(dim=2)
        assert torch.equal(right_at(logits, labels, top), wanted)
    everything = Objective(stage_cost=0 * COST, answers="best", top=C)
    found = everything.exact_loss(logits, odds, labels)
    taught = (stop_log_probs(odds).exp() * stage_cross_entropy(logits, labels)).sum(dim=1).mean()
    assert float(found) == pytest.approx(float(taught), abs=1e-6)


def test_combined_answers_are_those_of_the_policy_at_test_time():
    """Stage by stage, as `combine="stopping"` gives them."""
    logits, _, labels = problem()
    networks = make_networks(S - 1, C, 8, seed=3)
    found = combined_log_probs(logits, stop_odds(networks, logits))
    each = [Distribution(logits[:, k].log_softmax(dim=1)) for k in range(S)]
    stops = [*rules_of(networks, range(S)), None]
    for k in range(S):
        wanted = stopping_log_probs(each[: k + 1], tuple(stops[: k + 1]))
        torch.testing.assert_close(found[:, k], wanted)
    reward = Objective(stage_cost=COST, answers="combined").rewards(found, labels)
    right = (found.argmax(dim=2) == labels[:, None]).float()
    torch.testing.assert_close(reward, right - 1 - COST)


def test_combined_answers_are_finite_where_no_stage_would_stop():
    logits, odds, labels = problem()
    odds = odds.requires_grad_()
    loss = Objective(stage_cost=COST, answers="combined").exact_loss(logits, odds - 300.0, labels)
    (found,) = torch.autograd.grad(loss, odds)
    assert bool(loss.isfinite())
    assert bool(found.isfinite().all())


def test_a_combined_answer_teaches_the_stage_that_gives_it_alone():
    logits, odds, labels = problem()
    odds, logits = odds.requires_grad_(), logits.requires_grad_()
    said = combined_log_probs(logits, odds)
    for k in range(S):
        loss = stage_cross_entropy(said, labels)[:, k].sum()
        into, weights = torch.autograd.grad(
            loss, (logits, odds), retain_graph=True, allow_unused=True
        )
        assert weights is None
        assert [bool(into[:, j].any()) for j in range(S)] == [j == k for j in range(S)]


def test_combined_answers_are_taught_on_every_example_by_the_supervised_loss():
    logits, odds, labels = problem()
    objective = Objective(stage_cost=COST, answers="combined")
    said = combined_log_probs(logits, odds)
    wanted = stage_cross_entropy(said, labels).mean()
    wanted = wanted + supervised_stop_loss(odds, objective.rewards(said, labels))
    assert float(objective.supervised_loss(logits, odds, labels)) == pytest.approx(float(wanted))


@pytest.mark.parametrize("answers", ["drawn", "best", "combined"])
def test_stages_that_were_not_visited_are_not_read(answers):
    logits, odds, labels = problem()
    stopped, answered = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 3])
    objective = Objective(stage_cost=COST, answers=answers)
    spoilt, spoilt_odds = logits.clone(), odds.clone()
    for i, k in enumerate(stopped.tolist()):
        spoilt[i, k + 1 :] = torch.nan
        spoilt_odds[i, k + 1 :] = torch.nan
    both = grad(objective.drawn_loss, argnums=(0, 1))
    clean = both(logits, odds, labels, stopped, answered)
    found = both(spoilt, spoilt_odds, labels, stopped, answered)
    for one, other in zip(clean, found, strict=True):
        assert torch.equal(one, other.nan_to_num())


def test_the_supervised_loss_is_that_of_one_example_and_stage_at_a_time():
    _, odds, _ = problem()
    rewards = -torch.rand(M, S, generator=torch.Generator().manual_seed(4))
    losses, weights = np.zeros((M, S - 1)), np.zeros((M, S - 1))
    for i in range(M):
        value = float(rewards[i, -1])
        for k in reversed(range(S - 1)):
            stop = float(rewards[i, k])
            pi = float(odds[i, k].sigmoid())
            losses[i, k] = -np.log(pi if stop >= value else 1 - pi)
            weights[i, k] = abs(stop - value)
            value = pi * stop + (1 - pi) * value
    wanted = ((weights * losses).sum(axis=0) / weights.sum(axis=0)).sum()
    assert float(supervised_stop_loss(odds, rewards)) == pytest.approx(wanted, abs=1e-5)


def calibrated(n, seed, second=0.95):
    """Two stages; the first is right with the probability u that it says, u uniform in (1/2, 1)."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(0.5, 1.0, n)
    labels = rng.integers(2, size=n)
    first = np.where(rng.random(n) < u, labels, 1 - labels)
    last = np.where(rng.random(n) < second, labels, 1 - labels)
    rows, logits = np.arange(n), np.zeros((n, 2, 2), dtype=np.float32)
    logits[rows, 0, first] = np.log(u / (1 - u))
    logits[rows, 1, last] = np.log(second / (1 - second))
    return Trace(
        topology=Topology.of(["small", "large"]),
        labels=torch.from_numpy(labels),
        classes=2,
        costs=Costs.simple("flops", [1.0, 4.0]),
        logits=torch.from_numpy(logits),
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_known_optimum_of_two_stages_is_reached(seed):
    """Stop where u >= second - cost_weight: then the mean of loss + cost_weight * cost is known.

    Tolerance: 0.01 of the objective; the best constant policy is 0.05 or more above.
    """
    second, cost_weight, small = 0.95, 0.2, 0.25
    cut = second - cost_weight  # one unit of cost buys the second stage
    below = (cut - 0.5) / 0.5  # share that goes on
    stop_error = ((1 - cut) ** 2 / 2) / 0.5
    optimum = cost_weight * small + stop_error + below * (1 - second + cost_weight)
    constant = min(0.25 + cost_weight * small, cost_weight * (small + 1) + 1 - second)
    part, fresh = calibrated(4000, seed), calibrated(60_000, 100 + seed, second)
    (candidate,) = fit_stopping(
        part,
        reference="large",
        cost_weights=[cost_weight],
        combines=["last"],
        epochs=30,
        seed=seed,
        width=16,
    )
    done = replay(fresh, candidate.policy)
    reached = done.wrong.mean() + cost_weight * done.cost.mean() / 4.0
    assert constant > optimum + 0.03
    assert reached == pytest.approx(optimum, abs=0.01)
    gone = fresh.logits[:, 0].softmax(dim=1).amax(dim=1)[torch.from_numpy(done.last == 1)]
    assert float(gone.quantile(0.98)) == pytest.approx(cut, abs=0.06)


def test_what_cannot_be_fitted_is_refused_with_its_value():
    part = calibrated(50, 0)
    with pytest.raises(InputError, match=r"cost_weights must be finite and at least 0, got -0\.1"):
        fit_stopping(part, reference="large", cost_weights=[-0.1])
    with pytest.raises(InputError, match="at least two stages, got 'large'"):
        fit_stopping(part, reference="large", topology=part.topology.chain(["large"]))
    with pytest.raises(InputError, match=r"estimator must be one of .* got 'exakt'.*'exact'"):
        fit_stopping(part, reference="large", estimator="exakt")
    with pytest.raises(InputError, match=r"learning_rate must be greater than 0, got 0\.0"):
        fit_stopping(part, reference="large", learning_rate=0.0)
    ranked = replace(part, logits=None, ranked=part.logits.argmax(dim=2)[:, :, None])
    with pytest.raises(InputError, match="rankings without logits"):
        fit_stopping(ranked, reference="large")
