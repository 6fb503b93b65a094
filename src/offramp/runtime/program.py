"""Programs: what a policy needs of a cascade, made ready for batches.

What does not change from batch to batch is settled here: which segments run for whom, what is kept
for later stages, what answers say of each path. What whoever shares the networks may change, or has
never been seen, is looked at with each batch.

Layer: runtime.  Source: methods.md 1 (early exit: segments and heads) and 6.
"""

import re
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from offramp._core.batch import form_of
from offramp._core.carry import RawInput
from offramp._core.costs import Costs
from offramp._core.errors import InputError, OfframpError, UnsupportedError
from offramp._core.outputs import StageOutput
from offramp._core.topology import EXIT
from offramp._core.types import Raw
from offramp.policy.policy import Policy
from offramp.runtime.fallback import Fallback
from offramp.runtime.plans import blocks_of, plan_segments
from offramp.runtime.prediction import (
    NO_LABEL,
    REASONS,
    Left,
    Prediction,
    Rows,
    gathered,
    spread,
)
from offramp.runtime.times import StageTimes
from offramp.stages import Stage, check_company, shared_transforms, take_in
from offramp.stages.wrong_type import wrong_type

#: What a network raises on a batch that it cannot read.
BLAMES_BATCH = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)

_LENGTHS = re.compile(r"\d+(?=[,)])|(?<=list of )\w+")  # and types of rows, in what `form_of` says


@final
class Program:
    """A policy and the stages that it needs, and what visiting each takes.

    Args:
        policy: Decides.
        stages: By index; at least those whose segments or heads may run.
        costs: Of all stages of the cascade; answers then say what each example cost.
        times: Measured times: a stage then takes a batch in parts where that is faster, and runs
            everybody who is held where gathering those wanted would cost more.
        class_names: Names of the classes, or none.
        reference: Index of the reference, for services whose failure it makes up for.

    Raises:
        InputError: If the times are those of other stages, or a stage that goes to the reference
            where it fails has no way there.
    """

    def __init__(
        self,
        policy: Policy,
        stages: Mapping[int, Stage],
        *,
        costs: Costs | None = None,
        times: StageTimes | None = None,
        class_names: Sequence[str] = (),
        reference: int | None = None,
    ) -> None:
        topology = policy.topology
        if times is not None and times.stages != topology.names:
            raise InputError(
                f"times must be of the stages {topology.names}, got those of {times.stages}. "
                "Measure them anew: measure_times(cascade, example)."
            )
        self.policy, self.topology, self.stages, self.times = policy, topology, stages, times
        self.take_in = take_in(stages.values())  # makes a batch of raw input
        self.shared = shared_transforms(stages.values())
        self.plans = plan_segments(topology)
        self.blocks = blocks_of(topology, self.plans, stages)
        self.children = {k: topology.children(k) for k in topology.active}  # in one look-up
        paths = topology.paths()
        self.all_paths = tuple(paths)  # that the policy uses
        self.paths = {path: i for i, path in enumerate(paths)}
        self.count = len(topology)  # of the stages of the cascade
        self.ends = tuple(path[-1] for path in paths)
        self.reasons = tuple(
            REASONS.index("policy" if self.children[end] else "last") for end in self.ends
        )
        self.costs = None
        if costs is not None:
            self.costs = tuple(costs.path(topology, p, policy.decided(p)) for p in paths)
        # Stages that answer nothing; nobody is answered whose path ends at one.
        self.silent = frozenset(k for k, stage in stages.items() if stage.silent)
        self._mute = [float(end in self.silent) for end in self.ends]
        self._check_somebody_answers()
        # Services, and what it means that they have failed.
        self.services = {k: s.on_error for k, s in stages.items() if s.on_error is not None}
        self.detours = {k: self._detour(k, reference) for k in self.children}
        units = {stage.unit for stage in stages.values() if stage.unit is not None}
        told = units == {costs.unit} if costs is not None else len(units) == 1
        # Services that tell prices, with what the costs say instead.
        self.priced = {
            k: 0.0 if costs is None else costs.segment[k]
            for k, stage in stages.items()
            if told and stage.unit is not None
        }
        # All that can be switched; a part that trains whatever it is told (Monte Carlo) is none.
        parts = dict.fromkeys(part for stage in stages.values() for part in stage.modules())
        self._modes = [part for part in parts if not part.training]
        self._extra = int(any(stage.form != "logits" for stage in stages.values()))
        self.says_labels = self._said_to_nobody()
        self._names = len(class_names)
        self.classes = self._names + self._extra if self._names else None
        self._first: str | None = None  # form of the first batch that was answered
        self._checked = False  # whether answers were seen not to depend on the rest of the batch

    def _check_somebody_answers(self) -> None:
        for k in self.silent:
            if k in self.ends and self.reasons[self.ends.index(k)] == REASONS.index("last"):
                raise InputError(
                    f"Stage {self.stages[k].name!r} answers nothing (outputs='signals'), and the "
                    "policy has no way on from it. Let another stage follow it."
                )

    def _said_to_nobody(self) -> StageOutput | None:
        """What nobody is answered where answers are labels; None where they are probabilities."""
        if not self._extra or self.policy.combine != "last":
            return None
        ranked = torch.zeros(0, 1, dtype=torch.int64)
        if any(stage.form == "features" for stage in self.stages.values()):
            return StageOutput(classes=1, features=torch.zeros(0, 1))
        sure = any(stage.form == "confidence" for stage in self.stages.values())
        return StageOutput(classes=2, ranked=ranked, confidence=torch.zeros(0) if sure else None)

    def answer(self, n: int, left: Sequence[Left], reason: str | None = None) -> Prediction:
        """The answer to `n` examples, once all have left.

        Args:
            n: Their number.
            left: All of them, by path; no example is in two parts.
            reason: Why they left, where it was not the policy that let them go.
        """
        said, kept = gathered(n, [(rows, said, kept) for _, rows, said, kept, _ in left])
        device, nodes = said.device, [(self.paths[path], rows) for path, rows, *_ in left]
        why = spread(n, nodes, self.reasons, torch.int8, device)
        if self.silent:
            mute = spread(n, nodes, self._mute, torch.bool, device)
            kept = (kept or Fallback.all(said)).without(mute)
            said = kept.said
        labels, confidence = said.best()
        if kept is None:
            valid = torch.ones(n, dtype=torch.bool, device=device)
            nonfinite = torch.zeros(n, dtype=torch.int64, device=device)
        else:
            valid, nonfinite = kept.valid, kept.nonfinite
            labels = torch.where(valid, labels, NO_LABEL)
            if confidence is not None:
                confidence = torch.where(valid, confidence, 0.0)
            why = torch.where(kept.why > 0, kept.why, why)
        if reason is not None:
            why = torch.full_like(why, REASONS.index(reason))
        return Prediction(
            log_probs=said.logits,
            values=said.features,
            labels=labels,
            stage=spread(n, nodes, self.ends, torch.int64, device),
            path=spread(n, nodes, range(len(self.ends)), torch.int64, device),
            reason=why,
            confidence=confidence,
            cost=self._cost(n, nodes, left, device),
            valid=valid,
            nonfinite=nonfinite,
            stage_names=self.topology.names,
            paths=self.all_paths,
        )

    def _cost(
        self, n: int, nodes: Sequence[tuple[int, Rows]], left: Sequence[Left], device: torch.device
    ) -> Tensor | None:
        """What was paid for each example: by the costs, and by what services have told."""
        if self.costs is None and not self.priced:
            return None
        costs = (0.0,) * len(self.ends) if self.costs is None else self.costs
        cost = spread(n, nodes, costs, torch.float64, device)
        for _, rows, *_, paid in left if self.priced else ():
            if paid is not None:
                cost = cost + paid if rows is None else cost.index_add(0, rows, paid)
        return cost

    def _detour(self, k: int, reference: int | None) -> int:
        """Where examples go whom a stage has not answered: to a child, or nowhere."""
        children, how = self.children[k], self.services.get(k)
        if not children or how == "refuse":
            return EXIT
        if how == "next":
            return children[0]
        if how == "reference" and reference not in children:
            known = "None" if reference is None else repr(self.topology.names[reference])
            raise InputError(
                f"Stage {self.stages[k].name!r} says on_error='reference', but the policy has no "
                f"way from there to the reference ({known}). Give the cascade such an edge, "
                "choose a candidate that names its reference, or say on_error='next'."
            )
        return reference if how == "reference" and reference is not None else children[-1]

    def expected_seconds(self, full: Mapping[int, int]) -> dict[int, float]:
        """Seconds that a full batch takes at each stage, by the times measured; else nothing.

        Args:
            full: How many examples make one, by index.
        """
        times = self.times
        if times is None:
            return {}
        return {
            stage: sum(times.planned(j, full[stage]) for j in plan.segments)
            for stage, plan in self.plans.items()
        }

    @property
    def checked(self) -> bool:
        """Whether it was seen that answers do not depend on the rest of the batch."""
        return self._checked

    def as_read(self, batch: Raw) -> Raw:
        """Raw input as segments read it: what several of them begin with runs once."""
        return RawInput(batch, self.shared) if self.shared else batch

    def check_before(self, batch: Raw, n: int) -> None:
        """Put networks back that somebody put into training mode; look closely at the first batch.

        Raises:
            UnsupportedError: If an answer depends on the rest of the batch.
        """
        if self._in_training():
            self._put_back()
        if not self._checked and n > 1:
            asked = [self.stages[k].name for k in self.plans]
            held = list(self.stages.values())
            self._checked = check_company(held, batch, asked, topology=self.topology)

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

    def check_after(self, batch: Raw, classes: int) -> None:
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
                f"{[stage.name for stage in self.stages.values()]} has answered with {classes}. "
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
        weights = (p for stage in self.stages.values() for p in stage.parameters())
        types = sorted({str(p.dtype).removeprefix("torch.") for p in weights})
        known = f"whose weights are {', '.join(types)}" if types else "as they are"
        if self._first is not None:
            known = f"which have answered batches like {self._first}"
        hint = wrong_type(self.stages.values(), batch, error)
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

    def is_another_kind(self, batch: Raw) -> bool:
        """Whether a batch has other fields, axes or types than those that were answered."""
        kinds = [_LENGTHS.sub("", form) for form in (self._first or "", form_of(batch))]
        return self._first is not None and kinds[0] != kinds[1]
