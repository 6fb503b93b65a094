"""The stages that a topology needs, ready to take batches.

Layer: runtime.
"""

import re
from collections.abc import Mapping
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from offramp._core.batch import RawInput, RowList, form_of, is_table, to_device
from offramp._core.costs import Costs
from offramp._core.errors import InputError, OfframpError, UnsupportedError
from offramp._core.forks import prepare_for_forks
from offramp._core.topology import Topology
from offramp._core.types import Raw
from offramp.backends.fold import fold
from offramp.policy.policy import Policy
from offramp.runtime.events import Mark, unmarked
from offramp.runtime.inflight import InFlight
from offramp.runtime.pools import Failure, Job
from offramp.runtime.program import Program, plan_segments
from offramp.runtime.times import StageTimes
from offramp.stages import Stage, check_company, shared_transforms, take_in, tell_classes
from offramp.stages.wrong_type import wrong_type

#: What a network raises on a batch that it cannot read.
BLAMES_BATCH = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)

_LENGTHS = re.compile(r"\d+(?=[,)])|(?<=list of )\w+")  # and types of rows, in what `form_of` says

Form = str  # shapes and types of a batch, without the number of examples


@runtime_checkable
class StageSource(Protocol):
    """Where stages come from: a `Cascade`, or the part of one that a bundle holds."""

    @property
    def topology(self) -> Topology:
        """All stages, held or not."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, or none."""
        ...

    def stage(self, which: int) -> Stage:
        """A stage by position; only those that a policy needs are asked for."""
        ...


@final
class Runner(nn.Module):
    """The stages that a topology needs, ready to take batches.

    Args:
        cascade: Where they come from.
        topology: What is used of them.
        fold: Run prepared copies.
        times: Of all stages of the cascade, to choose batch sizes by.

    Raises:
        InputError: If the times are those of other stages.
    """

    def __init__(
        self,
        cascade: StageSource,
        topology: Topology,
        *,
        fold: bool,
        times: StageTimes | None = None,
    ) -> None:
        super().__init__()
        prepare_for_forks()
        if times is not None and times.stages != topology.names:
            raise InputError(
                f"times must be of the stages {topology.names}, got those of {times.stages}. "
                "Measure them anew: measure_times(cascade, example)."
            )
        plans = plan_segments(topology)
        needed = {k for plan in plans.values() for k in plan.segments} | set(plans)
        chosen = {k: _used(cascade.stage(k), answers=k in plans) for k in sorted(needed)}
        if cascade.class_names:
            tell_classes(chosen.values(), len(cascade.class_names))
        if fold:
            chosen = folded(chosen)
        self.stages = nn.ModuleDict({str(k): stage for k, stage in chosen.items()})
        self.program = Program.of(topology, chosen, times)
        self.take_in = take_in(chosen.values())
        self._shared = shared_transforms(chosen.values())
        for stage in chosen.values():
            stage.eval()
        # All that can be switched; a part that trains whatever it is told (Monte Carlo) is none.
        parts = dict.fromkeys(part for stage in chosen.values() for part in stage.modules())
        self._modes = [part for part in parts if not part.training]
        self._extra = int(any(stage.outputs == "confidence" for stage in chosen.values()))
        self._names = len(cascade.class_names)
        self.classes = self._names + self._extra if self._names else None
        self._first: Form | None = None  # of the first batch that was answered
        self._checked = False  # whether answers were seen not to depend on the rest of the batch

    @property
    def held(self) -> Mapping[int, Stage]:
        """The stages whose segments or heads may run, by index."""
        return self.program.stages

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.stages.parameters()), torch.device("cpu"))

    def start(
        self,
        batch: Raw,
        ids: Int[Tensor, " n"],
        policy: Policy | None = None,
        *,
        mark: Mark = unmarked,
    ) -> InFlight:
        """A batch on its way; networks that somebody put into training mode are put back."""
        if self._in_training():
            self._put_back()
        if not self._checked and ids.shape[0] > 1:
            program = self.program
            asked = [program.stages[k].name for k in program.plans]
            held = list(program.stages.values())
            self._checked = check_company(held, batch, asked, topology=program.topology)
        raw = RawInput(batch, self._shared) if self._shared else batch
        return InFlight(self.program, raw, ids, policy, mark=mark)

    def enter(self, batch: Raw, ids: Int[Tensor, " n"], policy: Policy) -> InFlight:
        """As `start`, for a batcher: if only some examples cannot be run, that shows later."""
        try:
            return self.start(batch, ids, policy)
        except OfframpError:
            raise
        except BLAMES_BATCH:
            return InFlight(self.program, batch, ids, policy)

    def check_modes(self) -> None:
        """Look at the networks again once they have run.

        Raises:
            UnsupportedError: If somebody else has put them into training mode meanwhile: then
                what they said cannot be trusted.
        """
        if self._in_training():
            self._put_back()
            raise UnsupportedError(
                "A network was put into training mode while it answered, by whoever else uses it: "
                "the answers would be wrong. It is back in evaluation mode; give the batch again. "
                "Better, train a copy of the network, or pass fold=True, which runs copies."
            )

    def _in_training(self) -> bool:
        # A loop over the flags themselves: 30 ns each, where a generator takes three times that.
        for part in self._modes:  # noqa: SIM110
            if part.training:
                return True
        return False

    def _put_back(self) -> None:
        for part in self._modes:
            part.training = False

    def answered(self, batch: Raw, classes: int) -> None:
        """Check the networks' mode, and remember what a batch that was answered looked like.

        Raises:
            UnsupportedError: As `check_modes`.
            InputError: If a stage has another number of classes than the others, or than there are
                class names.
        """
        self.check_modes()
        if self._first is not None and classes != self.classes:
            raise InputError(
                f"All stages of a cascade must have the same classes, {self.classes}; one of "
                f"{[stage.name for stage in self.held.values()]} has answered with {classes}. "
                "Map their outputs to common classes first."
            )
        if self._first is None:
            if self.classes not in (None, classes):
                raise InputError(
                    f"class_names must have {classes - self._extra} entries, as the stages' "
                    f"answers have, got {self._names}."
                )
            self.classes, self._first = classes, form_of(batch)

    def check_blame(self, batch: Raw, error: Exception) -> None:
        """Explain why a stage could not run, if the batch is not like those that were answered.

        Raises:
            InputError: If so; it says what was given and what ran before.
            UnsupportedError: As `check_modes`.
        """
        self.check_modes()
        form = form_of(batch)
        if form == self._first or isinstance(error, torch.OutOfMemoryError):
            return
        types = sorted({str(p.dtype).removeprefix("torch.") for p in self.parameters()})
        known = f"whose weights are {', '.join(types)}" if types else "as they are"
        if self._first is not None:
            known = f"which have answered batches like {self._first}"
        hint = wrong_type(self.held.values(), batch, error)
        raise InputError(
            f"batch must be what the stages take, {known}, but they cannot run on {form}: "
            f"{type(error).__name__}: {error}{'' if hint is None else f'. {hint}'}"
        ) from error

    def explained(self, batch: Raw, error: Exception) -> Exception:
        """The error, or a better one if the batch is not like those that were answered."""
        if not isinstance(error, OfframpError) and isinstance(error, BLAMES_BATCH):
            try:
                self.check_blame(batch, error)
            except OfframpError as better:
                return better
        return error

    def run(self, job: Job) -> Tensor | Failure:
        """What a job of a batcher gives, or what it raises, explained; it never raises itself."""
        first = len(job.path) == 1
        batch = job.flight.raw if first else ()
        try:
            try:
                logits = job.run()
            finally:
                self.check_modes()
            if first:
                self.answered(batch, logits.shape[1])
        except Exception as error:  # noqa: BLE001  (whatever a network raises)
            if first:
                return Failure(self.explained(batch, error), self._is_another_kind(batch))
            return Failure(error)
        return logits

    def _is_another_kind(self, batch: Raw) -> bool:
        """Whether a batch has other fields, axes or types than those that were answered."""
        kinds = [_LENGTHS.sub("", form) for form in (self._first or "", form_of(batch))]
        return self._first is not None and kinds[0] != kinds[1]

    def classes_for(self, empty: Raw, device: torch.device) -> int:
        """Number of classes; where no batch has shown it yet, one example of zeros does."""
        if self.classes is None:
            zeros = to_device(_zeros(empty), device)
            first = torch.zeros(1, dtype=torch.int64, device=device)
            logits = self.start(zeros, first).visit(self.program.topology.root, None)
            self.classes = logits.shape[1]
        return self.classes


def check_made_for(cascade: StageSource, topology: Topology, costs: Costs | None) -> None:
    """Raise `InputError` unless a policy's topology and the costs fit the cascade's stages."""
    topology.check_same_stages(cascade.topology, "the cascade")
    if costs is not None and len(costs) != len(topology):
        raise InputError(
            f"costs must have one entry per stage ({len(topology)}), got {len(costs)}."
        )


def check_form(cascade: StageSource, policy: Policy) -> None:
    """Raise `InputError` unless the stages answer in the form that a policy was fitted on."""
    for k in policy.topology.active:
        stage = cascade.stage(k)
        policy.check_reads(stage.outputs, f"stage {stage.name!r}")


def _used(stage: Stage, *, answers: bool) -> Stage:
    """What is needed of a stage; where nobody may leave, its head is neither held nor moved."""
    if answers or stage.head is None:
        return stage
    return Stage(
        stage.name,
        stage.module,
        transform=stage.transform,
        source=stage.source,
        group=stage.group,
        classes=stage.classes,
        spec=stage.spec,
    )


def folded(stages: Mapping[int, Stage]) -> dict[int, Stage]:
    """Stages that run prepared copies of their networks."""
    prepared: dict[int, nn.Module] = {}  # stages of one group go on sharing their module

    def once(module: nn.Module) -> nn.Module:
        return prepared.setdefault(id(module), prepared.get(id(module)) or fold(module))

    return {
        k: Stage(
            stage.name,
            once(stage.module),
            head=None if stage.head is None else once(stage.head),
            transform=stage.transform,
            source=stage.source,
            group=stage.group,
            classes=stage.classes,
            spec=stage.spec,
            head_spec=stage.head_spec,
            outputs=stage.outputs,
        )
        for k, stage in stages.items()
    }


def _zeros(batch: Raw) -> Raw:
    if isinstance(batch, Tensor):
        return batch.new_zeros(1, *batch.shape[1:])
    if isinstance(batch, RowList) or is_table(batch):
        raise InputError(
            "batch must hold an example as long as the number of classes is not known, got none. "
            "A cascade with class_names answers also nobody."
        )
    if isinstance(batch, Mapping):
        return {name: _zeros(part) for name, part in batch.items()}
    return tuple(_zeros(part) for part in batch)
