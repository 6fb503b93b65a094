"""The parts of a cascade as ONNX models: segments, heads, and what decides after each stage.

Layer: bundle.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.batch import apply, batch_size, flat, form_of, only_tensors, to_device
from offramp._core.device import device_of
from offramp._core.errors import FAILURES, InputError, OfframpError
from offramp._core.progress import progress_bar
from offramp._core.topology import RAW_INPUT, Path
from offramp._core.types import AnyBatch, Batch
from offramp.backends import Compiled, backend_of, require_onnx, to_onnx
from offramp.backends.form import axes_that_differ
from offramp.backends.lengths import other_lengths
from offramp.backends.onnx_export import has_lengths
from offramp.backends.ort import Session
from offramp.bundle.onnx.decision import Decision, check_expressible
from offramp.bundle.onnx.graph import Value, check_fits, values_of
from offramp.bundle.parts import is_compiled
from offramp.policy import Policy
from offramp.runtime import StageSource
from offramp.runtime.plans import Plan, plan_segments
from offramp.runtime.source import check_form, check_made_for
from offramp.stages import OfFirst, Stage, own_head, take_in
from offramp.stages.segments import run_segments
from offramp.stages.transforms import Domain

ENDING = ".onnx"
#: What a decision reads before the logits of earlier stages, and what it gives.
STATE = ("logits", "node", "answer", "clean")
OUTCOME = ("answer", "node", "clean")
_TOLERANCE = 1e-3  # of answers, relative to the largest


@final
@dataclass(frozen=True, kw_only=True)
class Decided:
    """What decides after a stage.

    Args:
        model: An `onnx.ModelProto`; it gives `OUTCOME`.
        reads: For each of its inputs what it is: one of `STATE`, or "logits.K" of stage K.
    """

    model: Any
    reads: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Parts:
    """All that a policy uses of a cascade, as ONNX models.

    Args:
        policy: What decides.
        plans: For each stage in use what visiting it takes.
        inputs: The raw input, with the names that people use for it.
        classes: Number of classes.
        segments: By group.
        heads: By stage; none where the segment gives the logits.
        decisions: By stage.
        domains: Lowest and highest number of one raw input, as transforms read it that are inside.
    """

    policy: Policy
    plans: Mapping[int, Plan]
    inputs: tuple[Value, ...]
    classes: int
    segments: Mapping[str, Any]
    heads: Mapping[int, Any]
    decisions: Mapping[int, Decided]
    domains: tuple[Domain, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """A node is an index into these."""
        return self.policy.topology.paths()

    def read_after(self, stage: int) -> frozenset[str]:
        """What of the state some later decision reads, or is asked for at the end."""
        later = [self.decisions[k].reads for k in self.plans if k > stage]
        return frozenset({"node", "answer"}.union(*later))


def export_parts(
    cascade: StageSource,
    policy: Policy,
    example: AnyBatch,
    *,
    transform: bool,
    only: Collection[int] | None = None,
) -> Parts:
    """Export each part that a policy uses.

    Args:
        cascade: The networks.
        policy: Made for them.
        example: Some raw input; one example is enough.
        transform: Whether networks bring their transforms along.
        only: Stages that run here, the root among them; None for all.

    Raises:
        UnsupportedError: If the policy draws at random, or a network cannot be exported; it names
            the stage and the operator.
        InputError: If the policy was made for other stages, the networks do not run on the
            example, or they are prepared in different ways and that is left out.
    """
    require_onnx()
    check_made_for(cascade, policy.topology, None)
    check_form(cascade, policy)
    check_expressible(policy)
    plans = plan_segments(policy.topology)
    run = sorted({j for plan in plans.values() for j in plan.segments} | set(plans))
    if only is not None:
        plans = {k: plan for k, plan in plans.items() if k in only}
        run = [k for k in run if k in only]
    stages = {k: cascade.stage(k) for k in run}
    for stage in stages.values():
        _check_exportable(stage, transform=transform)
    if not transform:
        stages = _without_transform(stages)
    example = _tensors(example, [s for s in stages.values() if s.source is None])
    others = other_lengths(example, [s for s in stages.values() if s.source is None])
    try:
        return _Export(policy, plans, stages, example, others).parts()
    except (_OneLengthError, InputError, *FAILURES):  # a network may not even run at another length
        if not others:
            raise
        return _Export(policy, plans, stages, example, []).parts()


def _tensors(example: AnyBatch, first: Sequence[Stage]) -> Batch:
    """The example, which the transforms take as tensors: that is what the file will be given.

    Raises:
        InputError: If a transform takes something else, or there is no example.
    """
    found = take_in(first)(example)
    repair = (
        "The inputs of an ONNX file are tensors: export with transform=False, and with an example "
        "of what the networks read after their transforms."
    )
    if not only_tensors(found):
        raise InputError(f"example must be tensors, got {form_of(found)}. {repair}")
    if batch_size(found) == 0:
        raise InputError("example must hold at least one example, got 0.")
    for stage in first:
        try:
            stage.prepare(found)
        except InputError as error:
            raise InputError(
                f"Stage {stage.name!r} cannot be exported with its transform: {error} {repair}"
            ) from error
    return found  # type: ignore[no-any-return]


class _OneLengthError(Exception):
    """A part takes sequences of the example's length only, so the whole does."""


@final
class _Export:
    """Follows an example through the stages and exports on the way."""

    def __init__(
        self,
        policy: Policy,
        plans: Mapping[int, Plan],
        stages: Mapping[int, Stage],
        example: Batch,
        others: Sequence[Batch],
    ) -> None:
        self._policy, self._plans, self._stages = copy.deepcopy(policy).cpu(), plans, stages
        self._examples = [example, *others]  # the same with other lengths
        self._carries = self._run()  # by group, as are the segments; of each example
        self._segments: dict[str, Any] = {}
        self._heads: dict[int, Any] = {}

    def parts(self) -> Parts:
        topology = self._policy.topology
        with progress_bar("Exporting", len(self._stages) + len(self._plans)) as step:
            for k, stage in self._stages.items():
                self._export_stage(k, stage, answers=k in self._plans)
                step(1, stage.name)
            classes = self._classes()
            decisions = {}
            for k in self._plans:
                decisions[k] = self._decision(k, classes)
                step(1, topology.names[k])
        first = self._segments[topology.groups[topology.lineage(topology.root)[0]]]
        names = _input_names(self._examples[0])
        inputs = values_of(first.graph.input)
        return Parts(
            policy=self._policy,
            plans=self._plans,
            inputs=tuple(v.named(name) for v, name in zip(inputs, names, strict=True)),
            classes=classes,
            segments=self._segments,
            heads=self._heads,
            decisions=decisions,
            domains=self._domains() if len(inputs) == 1 else (),
        )

    def _domains(self) -> tuple[Domain, ...]:
        found = [stage.domain for stage in self._stages.values() if stage.source is None]
        return tuple(dict.fromkeys(domain for domain in found if domain is not None))

    def _run(self) -> dict[str, list[Any]]:
        stages, topology = list(self._stages.values()), self._policy.topology
        found: dict[str, list[Any]] = {stage.eval().group: [] for stage in stages}
        with torch.no_grad():
            for example in self._examples:
                given = to_device(example, device_of(stages[0]))
                try:
                    carries = {s.group: c for s, c in run_segments(stages, given, topology)}
                except OfframpError:
                    raise
                except FAILURES as error:
                    raise InputError(
                        f"The cascade does not run on {form_of(example)}: {error}"
                    ) from error
                for group, carry in carries.items():
                    found[group].append(carry)
        return found

    def _classes(self) -> int:
        topology = self._policy.topology
        model = self._heads.get(topology.root) or self._segments[topology.groups[topology.root]]
        return int(values_of(model.graph.output)[0].row[0])

    def _export_stage(self, k: int, stage: Stage, *, answers: bool) -> None:
        group, name = self._policy.topology.groups[k], f"stage {stage.name!r}"
        whole = answers and stage.head is None and self._alone(k)
        check_fits(name, sum(t.numel() * t.element_size() for t in stage.state_dict().values()))
        if group not in self._segments:
            given = self._given(k)
            part = _Part(stage, segment=True, answers=whole)
            self._segments[group] = self._made(stage.module, part, given, name)
        if answers and not whole:
            part, carries = _Part(stage, segment=False, answers=True), self._carries[group]
            head = None if stage.head is None else own_head(stage.head)
            if isinstance(stage.head, OfFirst) and _content(stage.head.head) is not None:
                read = [stage.head.read(flat(carry)) for carry in carries]
                made = self._made(head, part, read, name)
                _take_carry(made, stage.head, self._segments[group].graph.output)
                self._heads[k] = made
            else:
                self._heads[k] = self._made(head, part, carries, f"the head of {name}")

    def _made(
        self, module: nn.Module | None, part: nn.Module, given: Sequence[Any], name: str
    ) -> Any:  # noqa: ANN401
        """The model of what runs in ONNX Runtime already, or of a part that is exported.

        Raises:
            _OneLengthError: If it does not take all of what is given.
        """
        example, *others = given
        made = None if module is None else _finished(module)
        if made is None:
            made = to_onnx(part, example, name=name, others=others)
            if has_lengths(made):
                for each in others:
                    _check_answers(made, part, each, name)
        if any(axes_that_differ([flat(each) for each in given])) and not has_lengths(made):
            raise _OneLengthError
        return made

    def _given(self, k: int) -> Sequence[Any]:
        topology = self._policy.topology
        source = topology.sources[k]
        if source == RAW_INPUT:
            return self._examples
        return self._carries[topology.groups[source]]

    def _alone(self, k: int) -> bool:
        groups = self._policy.topology.groups
        return all(groups[j] != groups[k] for j in self._stages if j != k)

    def _decision(self, k: int, classes: int) -> Decided:
        decision = Decision(self._policy, k)
        two = torch.zeros(2, dtype=torch.int64)
        given = (torch.zeros(2, classes), two, torch.zeros(2, classes), two == 0)
        before = tuple(torch.zeros(2, classes) for _ in decision.before)
        name = f"what decides after stage {self._policy.topology.names[k]!r}"
        model = to_onnx(decision, (*given, *before), name=name)
        meant = (*STATE, *(f"logits.{j}" for j in decision.before))
        read = {used for node in model.graph.node for used in node.input}
        inputs = list(zip(model.graph.input, meant, strict=True))
        for value, _ in inputs:
            if value.name not in read:  # not looked at by this policy
                model.graph.input.remove(value)
        reads = tuple(what for value, what in inputs if value.name in read)
        return Decided(model=model, reads=reads)


@final
class _Part(nn.Module):
    """What of a stage becomes one model: its segment, what makes logits of it, or both."""

    def __init__(self, stage: Stage, *, segment: bool, answers: bool) -> None:
        super().__init__()
        self.stage = stage
        self._segment, self._answers = segment, answers

    def forward(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401  (what the stage reads)
        carry = named or (given[0] if len(given) == 1 else given)
        result = self.stage.segment(carry) if self._segment else carry
        return self.stage.answer(result).scores() if self._answers else result


def _check_answers(model: Any, part: nn.Module, given: Batch, name: str) -> None:  # noqa: ANN401
    """Compare a model with its network at another length than it was exported with."""
    with torch.no_grad():
        wanted = flat(apply(part.eval(), to_device(given, device_of(part))))
    found = Session(model.SerializeToString(), 1)([t.cpu().contiguous() for t in flat(given)])
    for have, want in zip(found, wanted, strict=True):
        wide = want.cpu().double()
        largest = float(wide.abs().max()) if wide.numel() else 0.0
        if have.shape != wide.shape or not torch.allclose(
            have.double(), wide, rtol=0, atol=_TOLERANCE * max(1.0, largest), equal_nan=True
        ):
            raise _OneLengthError(name)


def _check_exportable(stage: Stage, *, transform: bool) -> None:
    """Raise `InputError` where a stage runs elsewhere and is not just a model in ONNX."""
    if stage.form != "logits":
        what = "features" if stage.form == "features" else "labels"
        raise InputError(
            f"Stage {stage.name!r} answers with {what}; stages that answer with "
            "logits can be exported. Save a bundle instead, or fit a policy on logits."
        )
    if not is_compiled(stage):
        return
    models = [stage.module] if stage.head is None else [stage.module, own_head(stage.head)]
    if stage.part or any(_content(model) is None for model in models):
        raise InputError(
            f"Stage {stage.name!r} runs in another runtime, or in one piece with others, and "
            "cannot become part of a file. Export the cascade in PyTorch that it was made from; of "
            "others those in ONNX Runtime, without fuse or join, can be exported as well."
        )
    if stage.source is None and (not transform or stage.transform is not None):
        raise InputError(
            f"Stage {stage.name!r} runs in ONNX Runtime and is exported as it is: its "
            "transform must be part of it, as offramp.stages.Normalize is, and cannot "
            "be left out."
        )


def _content(module: nn.Module) -> bytes | None:
    """The file of what runs in ONNX Runtime already, int8 included; None for others."""
    if not isinstance(module, Compiled) or module.files is None:
        return None
    kept = backend_of(module.backend).kept
    return module.files()[0] if kept is not None and kept.endings == (ENDING,) else None


def _finished(module: nn.Module) -> Any:  # noqa: ANN401
    """The model in that file, or None."""
    import onnx

    content = _content(module)
    return None if content is None else onnx.load_from_string(content)


def _take_carry(made: Any, head: OfFirst, carry: Sequence[Any]) -> None:  # noqa: ANN401
    """Let the model of a head take the whole carry, of which it reads some."""
    own = dict(zip((0, *head.also), list(made.graph.input), strict=True))
    del made.graph.input[:]
    made.graph.input.extend(own.get(k, value) for k, value in enumerate(carry))


def _without_transform(stages: Mapping[int, Stage]) -> dict[int, Stage]:
    first: dict[str, Stage] = {}
    for stage in stages.values():
        if stage.source is None:
            first.setdefault(stage.transform_key or repr(stage.transform), stage)
    if len(first) > 1:
        one, other, *_ = first.values()
        raise InputError(
            f"Stages {one.name!r} and {other.name!r} prepare their input in different ways, "
            f"{one.transform} and {other.transform}, so no single input suits both; export with "
            "transform=True."
        )
    return {k: stage.replaced(transform=None) for k, stage in stages.items()}


def _input_names(example: Batch) -> list[str]:
    if isinstance(example, Tensor):
        return ["input"]
    if isinstance(example, Mapping):
        return list(example)
    return [f"input.{k}" for k in range(len(example))]
