"""Stages that run in one piece: several segments of a network, one call.

Where hardly anybody leaves between two exits, a call for each of their segments costs more than it
saves: other runtimes bring a carry into their own layout and back, and cannot fuse layers across
the border. Joined, they are one call; to everybody else the cascade has the same stages.

Layer: stages.  Source: measured, docs/adr/0023.
"""

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

from torch import nn

from offramp._core.checks import check_known
from offramp._core.errors import InputError
from offramp.stages.cascade import Cascade
from offramp.stages.fusing.piece import InPiece, Piece
from offramp.stages.held import HeldStages
from offramp.stages.stage import Stage

Stages = TypeVar("Stages", Cascade, HeldStages)


def fuse(
    cascade: Stages, blocks: Iterable[Sequence[str]], *, asked: Collection[str] | None = None
) -> Stages:
    """The same cascade, the stages of each block in one piece.

    Stages of a block have all run when the first of them has. So join stages between which hardly
    anybody leaves; `fuse_for` measures which. Answers are equal to rounding, names stay, and so
    policies fit as before. Then give the cascade to `with_backend`: for ONNX Runtime and OpenVINO
    a block is one model.

    Args:
        cascade: In PyTorch, or the part of one that somebody holds; stays as it is.
        blocks: Names of stages each of which continues the one before it.
        asked: Stages whose answers are wanted; in a block the heads of others do not run. By
            default all.

    Raises:
        UnknownNameError: If there is no such stage.
        InputError: If stages of a block do not follow one another, others continue one in its
            middle, a block's carry is a mapping, or a stage is in two blocks.

    >>> import torch
    >>> body, head = nn.Linear(4, 4), nn.Linear(4, 3)
    >>> stages = [Stage("a", body, head=head), Stage("b", body, head=head, source="a")]
    >>> both = fuse(Cascade(stages, edges=[("a", "b")]), [["a", "b"]])
    >>> both.topology.names, both.stage(0).run(torch.ones(1, 4))[1].logits.shape
    (('a', 'b'), torch.Size([1, 2, 3]))
    """
    names = cascade.topology.names
    wanted = set(names) if asked is None else {check_known("stage", n, names) for n in asked}
    stages = {stage.name: stage for stage in cascade}
    taken: set[str] = set()
    for given in blocks:
        if isinstance(given, str):
            raise InputError(
                f"blocks must hold sequences of names, got the text {given!r}. One block is a list "
                "in a list: [['a', 'b']]."
            )
        block = tuple(given)
        for name in block:
            check_known("stage", name, names)
        if taken & set(block):
            raise InputError(f"blocks must not share stages, got {sorted(taken & set(block))}.")
        taken |= set(block)
        if len(block) > 1:
            stages |= _joined(cascade, block, wanted)
    return cascade.with_stages(list(stages.values()))


def _joined(
    cascade: Cascade | HeldStages, block: Sequence[str], wanted: Collection[str]
) -> dict[str, Stage]:
    members = [cascade.stage(name) for name in block]
    _check(cascade, members)
    asked = [stage.name in wanted for stage in members]
    if not any(asked):
        raise InputError(f"asked must hold a stage of each block, got none of {list(block)}.")
    heads = [nn.Identity() if s.head is None else s.head for s in members]  # a network answers
    whole = Piece(
        [stage.module for stage in members],
        [[head] if own else [] for head, own in zip(heads, asked, strict=True)],
        carry=any(stage.source == members[-1].name for stage in cascade),
        classes=members[-1].classes,
    )
    made = {}
    for k, stage in enumerate(members):
        part = InPiece(ran=k > 0, gives_logits=k == 0, column=sum(asked[:k]) if asked[k] else None)
        module = nn.Identity() if part.ran else whole
        made[stage.name] = stage.replaced(
            module=module, head=None, part=part, spec=None, head_spec=None
        )
    return made


def _check(cascade: Cascade | HeldStages, members: Sequence[Stage]) -> None:
    """Raise `InputError` unless stages can run in one piece."""
    inner = {stage.name for stage in members[:-1]}
    for before, stage in itertools.pairwise(members):
        if stage.source != before.name:
            raise InputError(
                f"The stages of a block must each continue the one before it: {stage.name!r} reads "
                f"{stage.source or 'the raw input'!r}, not {before.name!r}."
            )
    for stage in cascade:
        if stage.source in inner and stage not in members:
            raise InputError(
                f"{stage.source!r} cannot be in the middle of a block: {stage.name!r} continues it."
            )
    groups = [stage.group for stage in cascade]
    for stage in members:
        if groups.count(stage.group) > 1:
            raise InputError(f"{stage.name!r} has alternative heads; it cannot be joined.")
