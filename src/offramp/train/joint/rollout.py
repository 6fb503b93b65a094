"""Outputs of a cascade with its stopping networks on a batch, with gradients.

Layer: train.  Source: methods.md 3 (rollouts that compute only visited stages).
"""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offramp._core.batch import batch_size
from offramp._core.topology import Topology
from offramp._core.types import Batch
from offramp.fitting.stopping.network import stop_odds
from offramp.fitting.stopping.objective import drawn_stop
from offramp.policy import Constant, Node, Policy
from offramp.runtime.inflight import InFlight
from offramp.runtime.program import Program
from offramp.stages import Cascade


@final
class JointModel(nn.Module):
    """A cascade and a stopping network after each stage of a chain but the last.

    Args:
        cascade: The classifiers.
        chain: The stages used, as a chain of the cascade's topology.
        networks: Of `offramp.fitting.stopping.network.make_networks`.
        detached: No gradient leads from the stopping networks into the classifiers.
    """

    def __init__(
        self, cascade: Cascade, chain: Topology, networks: nn.ModuleList, *, detached: bool
    ) -> None:
        super().__init__()
        self.cascade, self.networks = cascade, networks
        self.chain, self.detached = chain, detached
        on = {path: Node(Constant(False)) for path in chain.paths() if chain.children(path[-1])}
        stages = {k: cascade.stage(k) for k in range(len(chain))}
        self._program = Program(Policy(chain, on), stages)  # the policy is not asked

    def logits(self, batch: Batch) -> Float[Tensor, "m s c"]:
        """Of every stage of the chain, on every example."""
        # Not by a list of indices: a device would wait for it at every step.
        every = self.cascade(batch)
        return torch.stack([every[:, k] for k in self.chain.active], dim=1)

    def odds(self, logits: Float[Tensor, "m s c"]) -> Float[Tensor, "m k"]:
        """Log-odds of stopping after every stage but the last."""
        return stop_odds(self.networks, logits.detach() if self.detached else logits)

    def visited(
        self, batch: Batch, numbers: Float[Tensor, "m k"]
    ) -> tuple[Float[Tensor, "m s c"], Float[Tensor, "m k"], Int[Tensor, " m"]]:
        """Run each stage on those alone that have not stopped before it.

        Args:
            batch: Raw input.
            numbers: In [0, 1); an example stops where its number is below pi.

        Returns:
            Logits and log-odds, 0 where a stage was not visited; and where each example stopped.
        """
        m, last = batch_size(batch), len(self.chain.active) - 1
        rows = torch.arange(m, device=numbers.device)
        running = InFlight(self._program, batch, rows)
        stopped = torch.full((m,), last, device=numbers.device)
        logits: list[Tensor] = []
        odds: list[Tensor] = []
        for position, stage in enumerate(self.chain.active):
            if not len(rows):
                logits.append(torch.zeros_like(logits[0]))
                odds += [torch.zeros_like(odds[0])] if position < last else []
                continue
            said = running.visit(stage, None if len(rows) == m else rows).scores()
            logits.append(said.new_zeros(m, said.shape[1]).index_copy(0, rows, said))
            if position == last:
                break
            read = (said.detach() if self.detached else said).softmax(dim=1)
            here = self.networks[position](read)
            odds.append(here.new_zeros(m).index_copy(0, rows, here))
            stops = drawn_stop(here.detach()[:, None], numbers[rows, position][:, None]) == 0
            stopped[rows[stops]] = position
            rows = rows[~stops]
        return torch.stack(logits, dim=1), torch.stack(odds, dim=1), stopped


def freeze_statistics(module: nn.Module) -> None:
    """Let normalization layers use the statistics they have and learn no new ones.

    Those who survive to a late stage are not like all examples, so their statistics are wrong.
    """
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            part.eval()
