"""What exit heads read: the results of a frozen backbone's segments on a batch.

Layer: train.  Source: none.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from offramp._core.batch import batch_size, only_tensors, to_device
from offramp._core.errors import InputError
from offramp._core.types import Batch
from offramp.data import Dataset
from offramp.stages import Cascade, Stage, weights_digest
from offramp.stages.segments import run_segments

#: Changes a raw batch at random, drawing from the generator alone; gives as many examples. Tensors
#: and the generator lie on the device of the training, rows of any type and theirs on the host.
Augment = Callable[[Any, torch.Generator], Any]


@runtime_checkable
class Source(Protocol):
    """Gives what heads read, for some of the examples."""

    def carries(
        self, rows: Tensor, names: Iterable[str], generator: torch.Generator | None = None
    ) -> Iterator[tuple[str, Any]]:
        """For each of the named stages what its head reads, in the order of the cascade.

        Only with a generator may the examples be changed at random.
        """
        ...

    def answer(self, name: str, carry: Any) -> Tensor:  # noqa: ANN401
        """Logits `(m, c)` of a stage's head on what `carries` gave for it."""
        ...


@final
class Computed:
    """Runs the segments on each batch, every one of them once and without gradients.

    Args:
        cascade: In evaluation mode.
        examples: What rows count in.
        device: Where the cascade is.
        augment: Applied to a raw batch first where there is a generator.
        bfloat16: Compute in bfloat16.
    """

    def __init__(
        self,
        cascade: Cascade,
        examples: Dataset,
        device: torch.device | str,
        *,
        augment: Augment | None = None,
        bfloat16: bool = False,
    ) -> None:
        self._cascade, self._examples, self._device = cascade, examples, device
        self._augment, self._bfloat16 = augment, bfloat16

    def carries(
        self, rows: Tensor, names: Iterable[str], generator: torch.Generator | None = None
    ) -> Iterator[tuple[str, Any]]:
        """For each of the named stages what its segment gives."""
        wanted = set(names)
        route = _route(self._cascade, wanted)
        batch = self._batch(rows, generator)
        running = run_segments(route, batch)
        for _ in route:
            with torch.no_grad(), in_bfloat16(self._device, self._bfloat16):
                stage, carry = next(running)
            if stage.name in wanted:
                yield stage.name, carry

    def answer(self, name: str, carry: Any) -> Tensor:  # noqa: ANN401
        """Logits of a stage's head."""
        with in_bfloat16(self._device, self._bfloat16):
            return self._cascade.stage(name).answer(carry).scores()

    def _batch(self, rows: Tensor, generator: torch.Generator | None) -> Batch:
        raw: Batch = to_device(self._examples.inputs_at(rows), self._device)
        return raw if generator is None else augmented(raw, self._augment, generator)


def in_bfloat16(device: torch.device | str, enabled: bool) -> torch.autocast:
    """Within, convolutions and matrix products are computed in bfloat16 if `enabled`."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)


def augmented_on(examples: Dataset, device: torch.device | str) -> torch.device:
    """Where batches of some examples are changed at random, which is where they then lie."""
    on_device = only_tensors(examples.inputs_at(torch.tensor([0])))
    return torch.device(device if on_device else "cpu")


def augmented(raw: Batch, augment: Augment | None, generator: torch.Generator) -> Batch:
    """A raw batch, changed if there is something to change it.

    Raises:
        InputError: If the number of examples changes, or `augment` cannot work on the device.
    """
    if augment is None:
        return raw
    try:
        changed: Batch = augment(raw, generator)
    except (RuntimeError, TypeError) as error:
        where = generator.device
        if where.type == "cpu":
            raise
        raise InputError(
            f"augment must work where the batch and its generator are, on {where}, but raised "
            f"{type(error).__name__}: {error}. Draw with device=generator.device, and make other "
            "tensors on the device of the batch."
        ) from error
    if batch_size(changed) != batch_size(raw):
        raise InputError(
            f"augment must give as many examples as it gets, {batch_size(raw)}, got "
            f"{batch_size(changed)}."
        )
    return changed


def backbone_digest(cascade: Cascade) -> str:
    """Checksum of everything in the stages but their heads, 64 hexadecimal digits."""
    return weights_digest(
        {
            f"{stage.name} {stage.group} {stage.source} {stage.transform!r}": stage.module
            for stage in cascade
        }
    )


def _route(cascade: Cascade, names: Iterable[str]) -> list[Stage]:
    """Stages in order, down to the last whose segment the named ones need."""
    needed: set[str] = set()
    for name in names:
        stage = cascade.stage(name)
        while stage.group not in needed:
            needed.add(stage.group)
            if stage.source is not None:
                stage = cascade.stage(stage.source)
    return [stage for stage in cascade if stage.group in needed]
