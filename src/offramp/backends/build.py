"""Building the stages of a cascade in other backends, one group after the other.

Layer: backends.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.batch import batch_size, flat, only_tensors, take_rows, to_device
from offramp._core.carry import tensors_of
from offramp._core.device import device_of
from offramp._core.errors import InputError, UnsupportedError
from offramp._core.types import AnyBatch, Raw
from offramp.backends.compiled import Compiled
from offramp.backends.form import TensorSpec
from offramp.backends.lengths import other_lengths
from offramp.backends.table import EAGER, Backend, backend_of
from offramp.backends.task import Task
from offramp.stages import Normalize, Stage, take_in
from offramp.stages.fusing.piece import InPiece, Piece
from offramp.stages.heads import OfFirst
from offramp.stages.transforms import domain_of

_ROWS = 2  # of the example; more would only take longer


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The stages of a group in a backend.

    Args:
        stages: Under their new names, in order.
        suffix: What its names have got, or "".
    """

    stages: tuple[Stage, ...]
    suffix: str


@final
class Builder:
    """Builds groups in order; each on what those before it, as they were built, hand on.

    Args:
        stages: All stages of a cascade, or the part of one that a bundle holds, in order.
        example: Raw input, at least one example.
        calibration: Raw input of the same form, or None.
        threads: For runtimes that have threads of their own.
        head_in_segment: Stages whose heads are to run in one piece with the segment, by their old
            names.
        transform: Whether the transform may go into one piece with the segment.

    Raises:
        InputError: If there is no example, or calibration has another form or is empty.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        example: AnyBatch,
        calibration: AnyBatch | None,
        *,
        threads: int,
        head_in_segment: Collection[str] = (),
        transform: bool = True,
    ) -> None:
        self._stages = list(stages)
        first = [stage for stage in self._stages if stage.source is None]
        example = take_in(first)(example)
        calibration = None if calibration is None else take_in(first)(calibration)
        _check(example, calibration)
        self._threads, self._fuse, self._transform = (
            threads,
            frozenset(head_in_segment),
            transform,
        )
        self._kept: dict[str, Built] = {}
        rows = torch.arange(min(_ROWS, batch_size(example)))
        self._given: dict[str | None, Any] = {None: take_rows(example, rows)}
        self._seen: dict[str | None, Any] = {None: calibration}
        others = other_lengths(self._given[None], first) if only_tensors(example) else []
        self._others: list[dict[str | None, Any]] = [{None: other} for other in others]

    def groups(self) -> dict[str, list[Stage]]:
        """The stages of each group as they were, in order."""
        found: dict[str, list[Stage]] = {}
        for stage in self._stages:
            found.setdefault(stage.group, []).append(stage)
        return found

    def given(self, group: str) -> Any:  # noqa: ANN401  (a batch or a carry)
        """What the segment of a group reads, of the example."""
        return self._handed(self._given, self._source(group))

    def build(self, group: str, backend: str) -> Built:
        """Build a group whose sources have been kept; `keep` it to go on.

        Raises:
            UnknownNameError: If there is no such backend.
            UnsupportedError: If it cannot run a stage of the group.
            InputError: If it needs a calibration batch and there is none.
            MissingExtraError: If it is not installed.
        """
        made, members, name = backend_of(backend), self.groups()[group], self._source(group)
        source, first = None if name is None else self._kept[name], members[0]
        if backend != EAGER:
            _check_in_pytorch(members)
        example = _Handed.of(self.given(group), first)
        seen = self._handed(self._seen, name) if made.calibrated else None
        plain = first.head is not None and not isinstance(example.carry, Mapping)
        others = [_Handed.of(given, first) for given in self._other_lengths(name)]
        return _Group(
            members=members,
            backend=made,
            eager=backend == EAGER,
            example=example,
            others=others,
            seen=None if seen is None else _Handed.of(seen, first),
            source=source,
            fused=[s for s in members if made.whole and plain and s.name in self._fuse],
            inside=made.whole and self._transform and isinstance(first.transform, Normalize),
            threads=self._threads,
        ).built()

    def keep(self, group: str, built: Built) -> None:
        """Let later groups continue with this one."""
        self._kept[group] = built

    def result(self) -> list[Stage]:
        """All stages as they were kept, in the order they were given."""
        new = {
            old.name: stage
            for group, members in self.groups().items()
            for old, stage in zip(members, self._kept[group].stages, strict=True)
        }
        return [new[stage.name] for stage in self._stages]

    def _source(self, group: str) -> str | None:
        name = self.groups()[group][0].source
        return next((s.group for s in self._stages if s.name == name), None)

    def _other_lengths(self, group: str | None) -> list[Any]:
        """What a group hands on of the example with other lengths; none if it takes no others."""
        try:
            return [self._handed(held, group) for held in self._others]
        except InputError:  # one before it had to be made for the example's length
            return []

    def _handed(self, held: dict[str | None, Any], group: str | None) -> Any:  # noqa: ANN401
        """What a group hands on, of the example or of the calibration batch."""
        if group not in held:
            given = self._handed(held, self._source(str(group)))
            if given is None:
                return None
            held[group] = _segment_of(self._kept[str(group)].stages[0], given)
        return held[group]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """One group on its way into a backend."""

    members: Sequence[Stage]
    backend: Backend
    eager: bool  # heads stay what they are
    example: "_Handed"
    others: Sequence["_Handed"]  # the example with other lengths
    seen: "_Handed | None"  # the calibration batch
    source: Built | None
    fused: Sequence[Stage]  # whose heads run in one piece with the segment
    inside: bool  # whether the transform does
    threads: int

    def built(self) -> Built:
        first = self.members[0]
        suffix = _joined("" if self.source is None else self.source.suffix, self.backend.suffix)
        module, lossy = self._segment(first), bool(self.backend.suffix)
        stages = [
            stage.replaced(
                name=suffixed(stage.name, suffix),
                module=module,
                head=self._head(stage),
                transform=None if self.inside else stage.transform,
                source=None if self.source is None else self.source.stages[0].name,
                group=suffixed(stage.group, suffix),
                spec=None if lossy else stage.spec,  # how to build it again
                head_spec=None if lossy else stage.head_spec,
                part=self._part(stage),
            )
            for stage in self.members
        ]
        return Built(stages=tuple(stages), suffix=suffix)

    def _part(self, stage: Stage) -> InPiece:
        domain = domain_of(stage.transform) if self.inside else stage.part.domain
        if not self.fused:
            return replace(stage.part, domain=domain)
        column = self.fused.index(stage) if stage in self.fused else None
        return InPiece(gives_logits=True, column=column, domain=domain)

    def _segment(self, first: Stage) -> nn.Module:
        module = first.module
        if first.part.ran:
            return module
        if self.backend.whole:
            heads = [stage.head for stage in self.fused if stage.head is not None]
            answers = not first.gives_carry
            module = Piece(
                [module],
                [[nn.Identity()] if answers else heads],
                carry=not answers,
                transform=first.transform if self.inside else None,
                classes=first.classes,
            )
        name = f"stage {first.name!r}"
        return self._made(module, lambda x: x.raw if self.inside else x.own, name)

    def _head(self, stage: Stage) -> nn.Module | None:
        head, carry = stage.head, self.example.carry
        if head is None or stage in self.fused:
            return None
        if self.eager:
            return head
        name = f"the head of stage {stage.name!r}"
        if isinstance(head, OfFirst):
            made = self._made(head.head, lambda x, of=head: _read(of, x.carry), name)  # type: ignore[misc]
            return OfFirst(made, head.also)
        if not isinstance(carry, Tensor):
            head = Piece([], [[head]], carry=False, classes=stage.classes)  # reads all in one
        return self._made(head, lambda x: x.carry, name)

    def _made(self, module: nn.Module, read: Callable[["_Handed"], Any], name: str) -> nn.Module:
        seen = None if self.seen is None else read(self.seen)
        inputs, others = read(self.example), tuple(map(read, self.others))
        if self.backend.kept is not None:  # it runs on the host, wherever the network is
            module = _on_host(module)
            inputs, others = to_device(inputs, "cpu"), to_device(others, "cpu")
            seen = None if seen is None else to_device(seen, "cpu")
        return self.backend.build(
            Task(
                module=module,
                inputs=inputs,
                name=name,
                threads=self.threads,
                calibration=seen,
                others=others,
            )
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Handed:
    """What a group is handed, and what it makes of it.

    Args:
        raw: What the segment is to read before the transform.
        own: What it reads after.
        carry: The tensors that it gives.
    """

    raw: Any
    own: Any
    carry: Any

    @classmethod
    def of(cls, given: Any, first: Stage) -> "_Handed":  # noqa: ANN401
        given = to_device(given, device_of(first))
        with torch.no_grad():  # tensors of the inference mode could not be followed
            carry = tensors_of(first.segment(given))
            raw = tensors_of(given)
            own = raw if first.source is not None else first.prepare(raw)
            return cls(raw=raw, own=own, carry=carry)


def _joined(*suffixes: str) -> str:
    """All kinds of change, in alphabetical order."""
    return "+".join(sorted({part for suffix in suffixes for part in suffix.split("+") if part}))


def _check_in_pytorch(members: Sequence[Stage]) -> None:
    for stage in members:
        if stage.form == "features" or stage.calls_on_rows:
            what = "calls a function" if stage.calls_on_rows else f"gives {stage.outputs}"
            raise UnsupportedError(
                f"Stage {stage.name!r} {what}; other runtimes take networks that give logits. "
                "Leave it in PyTorch: name a backend for each of the others."
            )
        for part in stage.modules():
            if isinstance(part, Compiled):
                raise InputError(
                    f"Stage {stage.name!r} runs in {part.backend!r} already. Give the cascade that "
                    f"it was made from, or leave the stage to {EAGER!r}."
                )


def _check(example: Raw, calibration: Raw | None) -> None:
    if calibration is not None and batch_size(calibration) == 0:
        raise InputError(
            "calibration must hold at least one example, better a few hundred such as will come; "
            "got 0."
        )
    if batch_size(example) == 0:
        raise InputError("example must hold at least one example, got 0.")
    if calibration is None or not (only_tensors(example) and only_tensors(calibration)):
        return  # of rows of other types the transforms say what is wrong
    have, want = TensorSpec.of(calibration), TensorSpec.of(example)
    if have != want:
        raise InputError(
            f"calibration must be of the form of example, {want.described()}, got "
            f"{have.described()}."
        )


def _read(head: OfFirst, carry: Any) -> Any:  # noqa: ANN401  (a carry and a batch)
    read = head.read(flat(carry))
    return read if head.also else read[0]


def _segment_of(stage: Stage, given: Any) -> Any:  # noqa: ANN401  (a batch and a carry)
    """What a stage hands on, on the CPU, wherever it runs."""
    with torch.no_grad():  # tensors of the inference mode could not be followed
        result = stage.segment(to_device(given, device_of(stage)))
    return to_device(result, "cpu")


def _on_host(module: nn.Module) -> nn.Module:
    """A network on the CPU: itself, or a copy of one that is elsewhere."""
    there = device_of(module).type == "cpu"
    return module if there else copy.deepcopy(module).to("cpu")


def suffixed(name: str, suffix: str) -> str:
    """The name of a stage whose answers differ from those that had its name.

    >>> suffixed("small", "int8"), suffixed("small", "")
    ('small@int8', 'small')
    """
    return f"{name}@{suffix}" if suffix else name
