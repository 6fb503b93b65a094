"""What to say where a network cannot run on numbers of the type that it was given.

Layer: stages.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from offramp._core.errors import InputError, OfframpError
from offramp._core.types import Raw
from offramp.stages.stage import Stage
from offramp.stages.transforms import Chain, Normalize, Resize


@contextmanager
def naming_types(stages: Iterable[Stage], batch: Raw) -> Iterator[None]:
    """Turn torch's error about types of numbers into one that names the stage and the repair.

    Args:
        stages: That run within.
        batch: The raw input that they run on.

    Raises:
        InputError: Where a stage's weights are of another type than what it reads; any other
            error goes on as it is.
    """
    try:
        yield
    except OfframpError:
        raise
    except (RuntimeError, TypeError) as error:
        text = wrong_type(stages, batch, error)
        if text is None:
            raise
        raise InputError(f"{text} ({error})") from error


def wrong_type(stages: Iterable[Stage], batch: Raw, error: Exception) -> str | None:
    """What is wrong with the types of numbers, and the repair; None if they explain nothing."""
    if "type" not in str(error):
        return None
    for stage in stages:
        last = stage.transform.steps[-1] if isinstance(stage.transform, Chain) else stage.transform
        if stage.source is not None or not isinstance(last, Normalize | Resize | None):
            continue
        weights = {p.dtype for p in stage.module.parameters() if p.is_floating_point()}
        given = {torch.float32} if stage.transform is not None else _types(batch)
        if len(weights) != 1 or weights == given or not given:
            continue
        (wanted,) = weights
        others = ", ".join(sorted(_name(kind) for kind in given - weights))
        if not others:
            continue
        name, own = stage.name, _name(wanted)
        if stage.transform is not None:
            return (
                f"Stage {name!r} cannot run: its transform gives float32, and its weights are "
                f"{own}. Convert the network with .float(), or put a module before it that "
                f"converts its input with .to(torch.{own})."
            )
        if any(kind.is_floating_point for kind in given):
            repair = f"Convert the inputs with .to(torch.{own}), or the network."
        else:
            repair = (
                "Give transform=offramp.stages.Normalize(1 / 255, ...), or convert the inputs "
                f"with .to(torch.{own})."
            )
        return f"Stage {name!r} cannot run on {others}: its weights are {own}. {repair}"
    return None


def _types(batch: Raw) -> set[torch.dtype]:
    """Of numbers that are no indices, where there are such; else of all."""
    parts = batch.values() if isinstance(batch, Mapping) else batch
    each = [batch] if isinstance(batch, Tensor) else [p for p in parts if isinstance(p, Tensor)]
    kinds = {part.dtype for part in each}
    return {kind for kind in kinds if kind.is_floating_point} or kinds


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
