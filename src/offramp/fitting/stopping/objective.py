"""What training maximizes: the expected reward of a cascade with stopping networks, two ways.

An example that stops after stage k and answers y' gets -L(y', y) - cost_weight * (cost of stages
1..k). There are few stages, so the expectation over k and y' can be taken exactly; REINFORCE draws
both. The two gradients are equal in the mean, and both vanish where a policy is sure, right or
wrong. The supervised loss teaches each stopping network instead whether going on is worth its
cost, as the learned policy of methods.md 1 does; it has no such flat places (docs/adr/0016).

Layer: fitting.  Source: methods.md 3; Guan et al., IJCAI 2018, sections 3.2 and 3.3 (their equation
1 sums the costs to k - 1, their text to k: k it is); Williams, Machine Learning 8, 1992.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    logsigmoid,
)

from offramp._core.outputs import best_labels


def stop_log_probs(odds: Float[Tensor, "m k"]) -> Float[Tensor, "m s"]:
    """Log-probability of stopping after each of `s = k + 1` stages.

    log P(k) = log pi_k + the sum of log(1 - pi_t) over t < k, with pi = 1 after the last stage.

    Args:
        odds: Log-odds of stopping after each stage but the last.

    >>> stop_log_probs(torch.zeros(1, 2)).exp()
    tensor([[0.5000, 0.2500, 0.2500]])
    """
    nothing = torch.zeros_like(odds[:, :1])
    going = torch.cat([nothing, logsigmoid(-odds).cumsum(dim=1)], dim=1)  # got as far as k
    return going + torch.cat([logsigmoid(odds), nothing], dim=1)


def right_at(
    logits: Float[Tensor, "m s c"], labels: Int[Tensor, " m"], top: int
) -> Bool[Tensor, "m s"]:
    """True where the label is among the `top` best of a stage."""
    best = best_labels(logits.flatten(0, 1), top).reshape(*logits.shape[:2], top)
    return (best == labels[:, None, None]).any(dim=2)


def stage_cross_entropy(
    logits: Float[Tensor, "m s c"], labels: Int[Tensor, " m"]
) -> Float[Tensor, "m s"]:
    """Cross-entropy of every stage, in nats."""
    repeated = labels[:, None].expand(logits.shape[:2])
    return cross_entropy(logits.transpose(1, 2), repeated, reduction="none")


def combined_log_probs(
    logits: Float[Tensor, "m s c"], odds: Float[Tensor, "m k"]
) -> Float[Tensor, "m s c"]:
    """Log-probabilities of the answer after each stage: the mean so far, weighted by pi.

    The weights are the probabilities of stopping at the stages visited, 1 for the last one: what
    `combine="stopping"` does at test time (Guan et al., section 3.4). A gradient leads into the
    stage that answers alone, neither into the weights nor into the stages before: it learns what
    they leave to say.

    Args:
        logits: Of every stage.
        odds: Log-odds of stopping after each stage but the last.

    >>> logits = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])
    >>> combined_log_probs(logits, torch.tensor([[-50.0]])).exp()
    tensor([[[0.5000, 0.5000],
             [0.8808, 0.1192]]])
    """
    last = torch.zeros_like(odds[:, :1])
    weight = torch.cat([logsigmoid(odds.detach()), last], dim=1)[:, :, None]  # log pi
    # in logs, so that weights that all but vanish still have a sum to be divided by
    each = weight + logits.log_softmax(dim=2)  # (m, s, c)
    nothing = torch.full_like(each[:, :1], -torch.inf)
    before = torch.cat([nothing, torch.logcumsumexp(each.detach(), dim=1)[:, :-1]], dim=1)
    return torch.logaddexp(before, each) - torch.logcumsumexp(weight, dim=1)


def supervised_stop_loss(
    odds: Float[Tensor, "m k"], rewards: Float[Tensor, "m s"]
) -> Float[Tensor, ""]:
    """Weighted logistic loss of stopping, the last decision first.

    At each stage the label is whether stopping is worth at least as much as going on under the
    present policy, the weight by how much they differ. The loss of a stage is a weighted mean, so
    that how fast it is learned does not depend on cost_weight, which makes all differences small.

    Args:
        odds: Log-odds of stopping after each stage but the last.
        rewards: What stopping after each stage gives; no gradient leads into them.
    """
    value = rewards[:, -1]
    total = torch.zeros((), device=odds.device)
    for k in reversed(range(odds.shape[1])):
        gain = rewards[:, k] - value
        label = (gain >= 0).to(odds.dtype)
        each = binary_cross_entropy_with_logits(odds[:, k], label, reduction="none")
        weight = gain.abs()
        total = total + (weight * each).sum() / weight.sum().clamp(min=1e-12)
        value = value + odds[:, k].detach().sigmoid() * gain
    return total


@final
@dataclass(frozen=True, kw_only=True)
class Objective:
    """What an example is worth, and by which gradient its expectation rises.

    Args:
        stage_cost: cost_weight times the cost of stages 1..k, for each k, `(s,)`.
        answers: What the stage at which an example stops answers. "drawn": a label drawn from it;
            the reward reaches its weights through log C_k(y'|x). "best": its best labels; the
            reward is an indicator, and the classifier learns by cross-entropy on what stops there.
            "combined": the same of all stages up to it (`combined_log_probs`).
        top: The indicator counts an answer as right among the `top` best.
    """

    stage_cost: Float[Tensor, " s"]
    answers: str
    top: int = 1

    def said(
        self, logits: Float[Tensor, "m s c"], odds: Float[Tensor, "m k"]
    ) -> Float[Tensor, "m s c"]:
        """Scores of what is answered after each stage."""
        return combined_log_probs(logits, odds) if self.answers == "combined" else logits

    def exact_loss(
        self,
        logits: Float[Tensor, "m s c"],
        odds: Float[Tensor, "m k"],
        labels: Int[Tensor, " m"],
    ) -> Float[Tensor, ""]:
        """Minus the mean expected reward; with cross-entropy added where answers are not drawn."""
        chance = stop_log_probs(odds).exp()  # (m, s)
        said = self.said(logits, odds)
        reward = (chance * self.rewards(said, labels)).sum(dim=1)
        if self.answers == "drawn":
            return -reward.mean()
        taught = (chance.detach() * stage_cross_entropy(said, labels)).sum(dim=1)
        return (taught - reward).mean()

    def supervised_loss(
        self,
        logits: Float[Tensor, "m s c"],
        odds: Float[Tensor, "m k"],
        labels: Int[Tensor, " m"],
    ) -> Float[Tensor, ""]:
        """Stopping taught by `supervised_stop_loss`, classifiers on what stops at them.

        Combined answers are taught on every example alike: with those that stop in front the
        earlier stages became worse and the later ones no better (docs/adr/0024).
        """
        said = self.said(logits, odds)
        rewards = self.rewards(said, labels)
        chance = stop_log_probs(odds.detach()).exp()
        each = -rewards if self.answers == "drawn" else stage_cross_entropy(said, labels)
        taught = each.mean() if self.answers == "combined" else (chance * each).sum(dim=1).mean()
        return taught + supervised_stop_loss(odds, rewards.detach())

    def rewards(
        self, logits: Float[Tensor, "m s c"], labels: Int[Tensor, " m"]
    ) -> Float[Tensor, "m s"]:
        """What stopping after each stage gives; drawn answers in expectation.

        Args:
            logits: Scores of what is answered there, of `said`.
            labels: True labels.
        """
        if self.answers == "drawn":
            at = labels[:, None, None].expand(-1, logits.shape[1], 1)
            right = logits.softmax(dim=2).gather(2, at)[:, :, 0]
        else:
            right = right_at(logits.detach(), labels, self.top).to(logits.dtype)
        return right - 1 - self.stage_cost

    def drawn_loss(
        self,
        logits: Float[Tensor, "m s c"],
        odds: Float[Tensor, "m k"],
        labels: Int[Tensor, " m"],
        stopped: Int[Tensor, " m"],
        answered: Int[Tensor, " m"],
    ) -> Float[Tensor, ""]:
        """A loss whose gradient is REINFORCE's, for stops and answers that were drawn.

        What the arguments hold of stages after the one that stopped is not read: a rollout need
        not compute it.

        Args:
            logits: Of every stage visited.
            odds: Log-odds of stopping after every stage visited but the last.
            labels: True labels.
            stopped: The stage after which each example stopped.
            answered: The label that it answered.
        """
        rows = torch.arange(len(labels), device=labels.device)
        stage = torch.arange(logits.shape[1], device=rows.device)
        visited = stage <= stopped[:, None]  # (m, s); what was not computed may hold anything
        odds = torch.where(visited[:, :-1], odds, 0.0)
        if self.answers == "combined":
            logits = torch.where(visited[:, :, None], logits, 0.0)
        own = self.said(logits, odds)[rows, stopped]  # (m, c)
        score = _stop_score(odds, stopped)
        weight = _stop_weight(odds.detach(), stopped)
        if self.answers == "drawn":
            score = score + own.log_softmax(dim=1)[rows, answered]
            label = torch.arange(own.shape[1], device=own.device)
            chosen = (answered[:, None] == label).to(own.dtype)
            weight = weight + (chosen - own.detach().softmax(dim=1)).square().sum(dim=1)
            right = answered == labels
        else:
            right = right_at(own.detach()[:, None], labels, self.top)[:, 0]
        reward = right.to(own.dtype) - 1 - self.stage_cost[stopped]
        advantage = reward - others_baseline(reward, weight)
        loss = -(advantage * score).mean()
        return loss if self.answers == "drawn" else loss + cross_entropy(own, labels)


def _stop_score(odds: Tensor, stopped: Tensor) -> Tensor:
    """Log P(stopped); what stands behind it is finite and has no influence."""
    stage = torch.arange(odds.shape[1], device=odds.device)
    each = torch.where(stage < stopped[:, None], logsigmoid(-odds), logsigmoid(odds))
    return torch.where(stage <= stopped[:, None], each, 0.0).sum(dim=1)


def _stop_weight(odds: Tensor, stopped: Tensor) -> Tensor:
    """Squared norm of the score at the two outputs of each stopping network visited."""
    stage = torch.arange(odds.shape[1], device=odds.device)
    wrong_way = torch.where(stage < stopped[:, None], odds, -odds).sigmoid()
    return (2 * wrong_way.square() * (stage <= stopped[:, None])).sum(dim=1)


def others_baseline(
    reward: Float[Tensor, " m"], weight: Float[Tensor, " m"]
) -> Float[Tensor, " m"]:
    """For each example the weighted mean reward of the others in the batch; 0 without others.

    With an example's own reward in it the gradient would be biased.

    Args:
        reward: Of each example.
        weight: Squared norm of its score, >= 0: the variance is least with these weights.

    >>> others_baseline(torch.tensor([-1.0, 0.0, -1.0]), torch.ones(3))
    tensor([-0.5000, -1.0000, -0.5000])
    """
    total = weight.sum() - weight
    summed = (weight * reward).sum() - weight * reward
    return torch.where(total > 1e-12, summed / total.clamp(min=1e-12), 0.0)


def drawn_stop(odds: Float[Tensor, "m k"], numbers: Float[Tensor, "m k"]) -> Int[Tensor, " m"]:
    """The first stage whose number in [0, 1) is below its probability of stopping, else the last.

    >>> drawn_stop(torch.zeros(1, 2), torch.tensor([[0.7, 0.2]]))
    tensor([1])
    """
    stops = torch.cat([numbers < odds.sigmoid(), torch.ones_like(odds[:, :1]).bool()], dim=1)
    return stops.int().argmax(dim=1)


def drawn_label(logits: Float[Tensor, "m c"], numbers: Float[Tensor, " m"]) -> Int[Tensor, " m"]:
    """A label for each example, drawn from its stage's probabilities by a number in [0, 1).

    >>> drawn_label(torch.zeros(2, 4), torch.tensor([0.1, 0.6]))
    tensor([0, 2])
    """
    passed = (logits.softmax(dim=1).cumsum(dim=1) <= numbers[:, None]).sum(dim=1)
    return passed.clamp(max=logits.shape[1] - 1)  # the sum of all may round to less than 1
