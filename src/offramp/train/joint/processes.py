"""Processes that train one model together, each on its part of every batch.

Gradients are averaged by hand rather than by a wrapper around the model: a step calls several parts
of it, and which of them have a gradient depends on the estimator.

Layer: train.  Source: none; Lightning Fabric starts the processes and carries the numbers.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar, final

import torch
from torch import Tensor, nn

from offramp._core.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Found = TypeVar("Found")
_PRECISIONS = ("32-true", "bf16-mixed")


@final
class Processes:
    """This process, and those beside it.

    Args:
        fabric: A `lightning_fabric.Fabric` that has been launched; None is one process alone.

    Raises:
        InputError: If its precision is none of "32-true" and "bf16-mixed".
    """

    def __init__(self, fabric: "Fabric | None" = None) -> None:
        self._fabric = fabric
        self.rank = 0 if fabric is None else fabric.global_rank
        self.size = 1 if fabric is None else fabric.world_size
        precision = "32-true" if fabric is None else fabric.strategy.precision.precision
        if precision not in _PRECISIONS:
            raise InputError(f"fabric must have a precision of {_PRECISIONS}, got {precision!r}.")
        self.bfloat16 = precision == "bf16-mixed"

    @property
    def first(self) -> bool:
        """True for the process that measures, writes and reports."""
        return self.rank == 0

    def check_batch(self, size: int) -> None:
        """Raise `InputError` unless a batch can be divided evenly: means would not be those."""
        if size % self.size:
            raise InputError(
                f"A batch must divide evenly among the {self.size} processes, got batch_size = "
                f"{size}."
            )

    def part(self, count: int) -> Tensor:
        """Positions of this process's examples in a batch of `count`, `(count / size,)`."""
        return torch.arange(self.rank, count, self.size)

    def purpose(self, *words: object) -> tuple[object, ...]:
        """What a seed is for; the first process has those of one process alone."""
        return words if self.first else (*words, self.rank)

    def averaged(self, loss: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Average loss and gradients over the processes; all of them see the same NaN."""
        if self._fabric is None or self.size == 1:
            return loss
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        flat = torch.cat([loss.reshape(1).float(), *(g.flatten().float() for g in grads)])
        mean, *parts = torch.split(self._mean(flat), [1, *(g.numel() for g in grads)])
        for weight, part in zip(weights, parts, strict=True):
            weight.grad = part.reshape(weight.shape).to(weight.dtype)
        return mean[0]

    def average_statistics(self, module: nn.Module) -> None:
        """Average what normalization layers have seen, so that every process has one model."""
        if self.size > 1:
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self._mean(buffer.clone()))

    def share_weights(self, module: nn.Module) -> None:
        """Give every process the weights of the first."""
        if self._fabric is not None and self.size > 1:
            state = {k: v.detach().cpu() for k, v in module.state_dict().items()}
            module.load_state_dict(self._fabric.broadcast(state))

    def told(self, find: Callable[[], Found]) -> Found:
        """What the first process finds, known to all; the others wait for it."""
        found = find() if self.first else None
        return found if self._fabric is None else self._fabric.broadcast(found)  # type: ignore[return-value]

    def _mean(self, values: Tensor) -> Tensor:
        if self._fabric is None:
            return values
        return self._fabric.all_reduce(values, reduce_op="mean")  # type: ignore[return-value]
