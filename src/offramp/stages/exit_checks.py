"""Whether a head reads what the layer before it gives: noticed when it is attached.

Layer: stages.  Source: none.
"""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from offramp._core.batch import apply
from offramp._core.errors import InputError
from offramp._core.types import Batch
from offramp.models import LayerShape, PooledHead, TokenPool
from offramp.models.fitting import WHAT, fitting
from offramp.stages.cutting.graph import rows_of

_STACK = 6  # as far up is the caller of Cascade.from_network


def check_head(name: str, head: nn.Module, shape: LayerShape) -> None:
    """Check that a head of ours fits what a layer gives.

    Args:
        name: Of the exit.
        head: Any; only a `PooledHead` says what it reads.
        shape: Of what the layer gives.

    Raises:
        InputError: If the number of axes or of features is another.
    """
    reads = head.reads if isinstance(head, PooledHead) else None
    if not isinstance(head, PooledHead) or reads is None:
        return
    if len(shape) not in reads.axes:
        raise InputError(
            f"The head of exit {name!r} must read {len(shape)} axes, as the layer gives them in "
            f"{tuple(shape)}, but it is made for {' or '.join(map(str, reads.axes))}. Take its "
            f"arguments from head_arguments. {fitting(len(shape), shape.layout)}"
        )
    width = shape[0] if reads.layout == "channels_first" else shape[-1]
    if width != reads.features:
        raise InputError(
            f"The head of exit {name!r} must read {width} features, as the layer gives them in "
            f"{tuple(shape)}, but it is made for {reads.features}. Take its arguments from "
            "head_arguments."
        )
    if None not in (reads.layout, shape.layout) and reads.layout != shape.layout:
        _warn(
            f"The head of exit {name!r} looks for the features in another axis than the layer "
            f"puts them: {tuple(shape)} is of {WHAT[str(shape.layout)]}. "
            f"{fitting(len(shape), shape.layout)}"
        )
    pool = head.pool
    if isinstance(pool, TokenPool) and pool.pooling != "first" and not pool.mask and shape.mask:
        pad = f", pad={shape.pad}" if shape.pad else ""
        _warn(
            f"The head of exit {name!r} takes padding for tokens. Give it mask={shape.mask!r}"
            f"{pad}, an input of the network that tells them apart; head_arguments does."
        )


def check_kept(name: str, head: nn.Module, shape: LayerShape, kept: Mapping[str, Tensor]) -> None:
    """Check that a mask has one place for each token.

    Args:
        name: Of the exit.
        head: Any; only a `PooledHead` on tokens has a mask.
        shape: Of what the layer gives.
        kept: Inputs of the network by name, of some example.

    Raises:
        InputError: If it has not.
    """
    if not isinstance(head, PooledHead) or not isinstance(head.pool, TokenPool):
        return
    for mask in head.keeps:
        sizes = tuple(kept[mask].shape[1:])
        if sizes != tuple(shape[:-1]):
            raise InputError(
                f"The mask {mask!r} of the head of exit {name!r} must have one place for each of "
                f"the tokens, {tuple(shape[:-1])} here, got {sizes}. Leave mask out, or choose a "
                "point where the tokens are those of the input."
            )


def reads_first(head: nn.Module) -> bool:
    """Whether a head looks at the first token alone."""
    return (
        isinstance(head, PooledHead)
        and isinstance(head.pool, TokenPool)
        and head.pool.pooling == "first"
    )


def check_first_tokens(
    names: Mapping[int, str], segments: Sequence[nn.Module], example: Batch
) -> None:
    """Warn of heads on the first token where it sees nothing of the others, as in causal networks.

    All tokens but the first are replaced, and the first vector must change thereby. That can be
    tried where tokens are whole numbers that differ.

    Args:
        names: For some segments the name of the exit behind it whose head reads the first token.
        segments: Of the network.
        example: What the first of them reads.
    """
    if not names:
        return
    two = rows_of(nn.ModuleList(segments), example)
    other = _first_repeated(two)
    if other is None:
        return
    given: list[Batch] = [two, other]
    with torch.no_grad():
        for k in range(max(names) + 1):
            given = [apply(segments[k], batch) for batch in given]
            if k not in names:
                continue
            here, there = (_main(batch) for batch in given)
            if here.dim() == 3 and here.shape[1] > 1 and torch.equal(here[:, 0], there[:, 0]):
                _warn(
                    f"The head of exit {names[k]!r} reads the first token, which sees nothing of "
                    "the others here: the network is causal, or they have not met yet. Pass "
                    "pooling='last' or pooling='mean', with a mask where there is padding; "
                    "head_arguments chooses."
                )


def tensors_of(batch: Batch) -> list[Tensor]:
    """Its tensors, in order."""
    if isinstance(batch, Tensor):
        return [batch]
    return list(batch.values() if isinstance(batch, Mapping) else batch)


def _main(batch: Batch) -> Tensor:
    return batch if isinstance(batch, Tensor) else batch[0]  # type: ignore[index]


def _first_repeated(batch: Batch) -> Batch | None:
    """Each row of whole numbers with its first one everywhere, or None if that changes nothing."""
    parts = tensors_of(batch)
    made = [_repeated(part) for part in parts]
    if all(map(torch.equal, made, parts)):
        return None
    if isinstance(batch, Tensor):
        return made[0]
    return dict(zip(batch, made, strict=True)) if isinstance(batch, Mapping) else tuple(made)


def _repeated(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() or tensor.dim() != 2:
        return tensor
    return tensor[:, :1].expand_as(tensor).contiguous()


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=_STACK)
