"""Stopping networks fitted on recorded outputs: the classifiers stay as they are.

Layer: fitting.  Source: methods.md 3 (`frozen classifiers`); Guan et al., IJCAI 2018, section 5
("Ours (S)"). On a trace all stages are known, so the expectation is exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from offramp._core.checks import check_choice, check_not_negative, check_positive_int
from offramp._core.errors import InputError
from offramp._core.threads import one_thread
from offramp._core.topology import Topology
from offramp.fitting.stopping.network import (
    WIDTH,
    make_networks,
    rules_of,
    stop_odds,
    stopping_costs,
    stopping_policy,
)
from offramp.fitting.stopping.objective import right_at, stop_log_probs, supervised_stop_loss
from offramp.policy.candidate import Candidate
from offramp.policy.combination import Combine
from offramp.trace import Trace

_COST_WEIGHTS = (0.0, 0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4)
_MOMENTUM = 0.9
_DECAY, _DECAY_EPOCHS = 0.9, 4  # the paper's: times 0.9 every four epochs


LossOf = Callable[[Tensor, Tensor], Tensor]


def _expected_loss(odds: Tensor, rewards: Tensor) -> Tensor:
    return -(stop_log_probs(odds).exp() * rewards).sum(dim=1).mean()


_LOSSES: dict[str, LossOf] = {"supervised": supervised_stop_loss, "exact": _expected_loss}


@final
@dataclass(frozen=True)
class _Passes:
    """How the examples are gone through: epochs, examples of a step, first rate, seed."""

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int


def fit_stopping(
    part: Trace,
    *,
    reference: str,
    top: int = 1,
    cost_weights: Sequence[float] = _COST_WEIGHTS,
    topology: Topology | None = None,
    estimator: str = "supervised",
    combines: Sequence[Combine] = ("stopping", "last"),
    width: int = WIDTH,
    epochs: int = 40,
    batch_size: int = 256,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> list[Candidate]:
    """Candidates with one stopping network after each stage of a chain, stopping where pi >= 1/2.

    To be low is the mean of the 0/1 loss plus cost_weight times the cost, over the most expensive
    stage's. Each cost_weight starts from the networks of the one before, the smallest first.

    Args:
        part: Examples to fit on: logits, or labels with confidences.
        reference: Name of the reference.
        top: A label is right when it is among the `top` best.
        cost_weights: Loss per unit of cost, each >= 0.
        topology: A chain; by default that of all stages.
        estimator: "supervised": each network learns whether going on is worth its cost. "exact":
            the paper's expected reward, which gets stuck where a policy is sure (docs/adr/0016).
        combines: How an answer is made of the visited stages; each gives candidates of its own.
        width: Of the networks' inner layers.
        epochs: Passes over the examples for each cost_weight.
        batch_size: Examples of a step, at most; of few examples an eighth.
        learning_rate: Of SGD with momentum 0.9, > 0; times 0.9 every four epochs.
        seed: Of first weights and of the order of the examples.

    Raises:
        InputError: If an cost_weight is negative, there are fewer than two stages, or the outputs
            are rankings without scores.

    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=200, stages=2, seed=0)
    >>> found = fit_stopping(trace, reference="stage1", cost_weights=[0.01, 0.3], combines=["last"])
    >>> [candidate.parameters["cost_weight"] for candidate in found]
    [0.01, 0.3]
    """
    part.require_labels("policy='stopping'")
    for cost_weight in cost_weights:
        check_not_negative("cost_weights", cost_weight)
    check_choice("estimator", estimator, _LOSSES)
    check_positive_int("epochs", epochs)
    check_positive_int("batch_size", batch_size)
    if not learning_rate > 0:
        raise InputError(f"learning_rate must be greater than 0, got {learning_rate!r}.")
    chain = part.topology.chain(range(len(part.topology))) if topology is None else topology
    logits = _logits(part, chain)
    right = right_at(logits, part.labels, top).float()
    costs = stopping_costs(part.costs, chain)
    networks = make_networks(len(chain.active) - 1, logits.shape[2], width, seed=seed)
    candidates = []
    for number, cost_weight in enumerate(sorted(cost_weights)):
        schedule = _Passes(epochs, batch_size, learning_rate, seed + 1 + number)
        _train(networks, logits, right - 1 - cost_weight * costs, _LOSSES[estimator], schedule)
        rules = rules_of(networks, chain.active)
        candidates += [
            Candidate(
                policy=stopping_policy(chain, rules, combine=combine, outputs=part.outputs),
                method="stopping",
                reference=reference,
                top=top,
                parameters={"cost_weight": float(cost_weight)},
            )
            for combine in combines
        ]
    return candidates


def _logits(part: Trace, chain: Topology) -> Tensor:
    """Scores of the chain's stages, `(n, s, c)`."""
    stages = chain.active
    if len(stages) < 2:
        raise InputError(
            f"A stopping policy needs at least two stages, got {chain.describe()!r}: after the "
            "last one nothing is left to save."
        )
    if any(len(chain.children(k)) > 1 for k in stages):
        raise InputError(
            f"topology must be a chain, got {chain.describe()!r}; topology.chain([...]) makes one."
        )
    return torch.stack([part.output(k).scores() for k in stages], dim=1)


def _train(
    networks: nn.ModuleList, logits: Tensor, rewards: Tensor, loss_of: LossOf, schedule: _Passes
) -> None:
    """Lower a loss in place."""
    n = len(logits)
    size = min(schedule.batch_size, max(1, n // 8))
    generator = torch.Generator().manual_seed(schedule.seed)
    stepper = torch.optim.SGD(networks.parameters(), lr=schedule.learning_rate, momentum=_MOMENTUM)
    rates = torch.optim.lr_scheduler.StepLR(stepper, _DECAY_EPOCHS, _DECAY)
    with torch.enable_grad(), one_thread():
        for _ in range(schedule.epochs):
            order = torch.randperm(n, generator=generator)
            for rows in torch.split(order[: n - n % size], size):
                loss = loss_of(stop_odds(networks, logits[rows]), rewards[rows])
                stepper.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                stepper.step()
            rates.step()
