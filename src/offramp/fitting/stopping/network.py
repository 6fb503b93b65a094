"""Stopping networks while they are trained, and what they become in a policy.

Layer: fitting.  Source: methods.md 3; Guan et al., IJCAI 2018, section 4.3.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp._core.checks import check_positive_int, check_seed
from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp._core.types import OutputForm
from offramp.policy.combination import Combine
from offramp.policy.policy import Node, Policy
from offramp.policy.stopping import Stopping

WIDTH = 64  # the paper's for CIFAR; 256 for ImageNet


@final
class StoppingNetwork(nn.Module):
    """Three fully connected layers, ReLU between them, and a two-way softmax.

    Args:
        classes: Probabilities that it reads.
        width: Of the two inner layers.
        generator: What the first weights are drawn from.
    """

    def __init__(self, classes: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        sizes = (classes, check_positive_int("width", width), width, 2)
        made = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        for layer in made:
            bound = layer.in_features**-0.5
            for values in (layer.weight, layer.bias):
                nn.init.uniform_(values, -bound, bound, generator=generator)
        self.layers = nn.Sequential(made[0], nn.ReLU(), made[1], nn.ReLU(), made[2])

    def forward(self, probabilities: Float[Tensor, "m c"]) -> Float[Tensor, " m"]:
        """Log-odds of stopping, `(m,)`."""
        scores = self.layers(probabilities)
        return scores[:, 0] - scores[:, 1]  # type: ignore[no-any-return]

    def rule(self, stage: int) -> Stopping:
        """What it has learned, as a rule that stops where the probability is at least 1/2."""
        held = [(p.weight.detach().cpu(), p.bias.detach().cpu()) for p in self._linear()]
        return Stopping(stage, held)

    def load_rule(self, rule: Stopping) -> None:
        """Take over what a rule has learned; raises `InputError` if it has other sizes."""
        own, given = list(self._linear()), rule.layers
        sizes, theirs = [p.weight.shape for p in own], [weight.shape for weight, _ in given]
        if sizes != theirs:
            raise InputError(
                f"The stopping network of stage {rule.stage} must have layers of the sizes "
                f"{[tuple(s) for s in sizes]}, got {[tuple(s) for s in theirs]}: it was trained "
                "for another cascade, or with another width."
            )
        with torch.no_grad():
            for part, (weight, bias) in zip(own, given, strict=True):
                part.weight.copy_(weight)
                part.bias.copy_(bias)

    def _linear(self) -> Iterator[nn.Linear]:
        return (part for part in self.layers if isinstance(part, nn.Linear))


def make_networks(count: int, classes: int, width: int, *, seed: int) -> nn.ModuleList:
    """Stopping networks for `count` stages; their first weights depend on the seed alone."""
    generator = torch.Generator().manual_seed(check_seed(seed))
    return nn.ModuleList(StoppingNetwork(classes, width, generator) for _ in range(count))


def rules_of(networks: nn.ModuleList, stages: Sequence[int]) -> list[Stopping]:
    """What stopping networks have learned, for the stages of a chain; the last has none."""
    own = (network for network in networks if isinstance(network, StoppingNetwork))
    return [network.rule(k) for network, k in zip(own, stages, strict=False)]


def stop_odds(
    networks: Sequence[nn.Module] | nn.ModuleList, logits: Float[Tensor, "m s c"]
) -> Float[Tensor, "m k"]:
    """Log-odds of stopping after each stage but the last, `(m, s - 1)`."""
    probabilities = logits.softmax(dim=2)
    each = [network(probabilities[:, k]) for k, network in enumerate(networks)]
    return torch.stack(each, dim=1)


def stopping_policy(
    topology: Topology,
    rules: Sequence[Stopping],
    *,
    combine: Combine = "stopping",
    threshold: float | None = None,
    seed: int | None = None,
    outputs: OutputForm | None = None,
) -> Policy:
    """A policy of stopping networks on a chain.

    Args:
        topology: The chain; its last stage always stops.
        rules: One for each stage of the chain but the last, in order.
        combine: "stopping": visited outputs weighted by the stopping probabilities; or as in
            `offramp.Policy`.
        threshold: Stop where the probability is at least this, in (0, 1); by default 1/2.
        seed: If given, draw the stops instead, by (seed, example, stage).
        outputs: As in `offramp.Policy`.

    >>> chain = Topology.of(["a", "b"]).chain(["a", "b"])
    >>> (network,) = make_networks(1, classes=3, width=8, seed=0)
    >>> stopping_policy(chain, [network.rule(0)]).combine
    'stopping'
    """
    if seed is not None:
        rules = [rule.drawn(seed) for rule in rules]
    elif threshold is not None:
        rules = [rule.from_threshold(threshold) for rule in rules]
    inner = [path for path in topology.paths() if topology.children(path[-1])]
    nodes = {path: Node(rule) for path, rule in zip(inner, rules, strict=True)}
    given: dict[str, Any] = {"outputs": outputs}
    if combine == "log_linear":
        given["weights"] = {path: [1.0] * len(path) for path in topology.paths()}
    return Policy(topology, nodes, combine=combine, **given)


def stopping_flops(classes: int, width: int = WIDTH) -> float:
    """Floating-point operations of one stopping decision; a multiply-add counts as 2.

    >>> stopping_flops(10), stopping_flops(1000, 256)
    (9728.0, 644096.0)
    """
    return 2.0 * (classes * width + width * width + 2 * width)


def with_stopping(costs: Costs, classes: int, width: int = WIDTH) -> Costs:
    """Costs with the stopping networks as what deciding costs; other units than FLOPs as they are.

    Args:
        costs: Of the cascade.
        classes: Probabilities that the networks read.
        width: Of their inner layers.

    >>> with_stopping(Costs.simple("flops", [1e6, 4e6]), classes=10).decision
    (9728.0, 9728.0)
    """
    if costs.unit != "flops":
        return costs
    each = (stopping_flops(classes, width),) * len(costs)
    return replace(costs, decision=each, note=f"{costs.note}; stopping networks {width} wide")


def stopping_costs(costs: Costs, topology: Topology) -> Float[Tensor, " s"]:
    """Cost of stopping after each stage of a chain, over that of the most expensive stage.

    Args:
        costs: Of the cascade's stages; `decision` is what a stopping network takes.
        topology: The chain.
    """
    path = topology.active
    largest = max(costs.alone(topology, k) for k in path)
    deciding = [k for k in path if topology.children(k)]
    sums = [costs.path(topology, path[: k + 1], deciding) for k in range(len(path))]
    return torch.tensor(sums, dtype=torch.float64).div(largest).to(torch.float32)
