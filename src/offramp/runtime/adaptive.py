"""A cascade with a policy, as one classifier: batch in, answers out.

Layer: runtime.  Source: methods.md 6.
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from offramp._core.batch import RowList, is_table
from offramp._core.checks import check_not_negative
from offramp._core.costs import Costs
from offramp._core.device import device_of
from offramp._core.errors import InputError, OfframpError
from offramp._core.keys import example_keys
from offramp._core.outputs import StageOutput
from offramp._core.schema import to_json
from offramp._core.types import AnyBatch, Ids, Raw
from offramp.policy.candidate import Candidate
from offramp.policy.gears import Gears
from offramp.policy.policy import Policy
from offramp.runtime.batcher import Batcher
from offramp.runtime.chosen import AnyChoice, candidate_of, policy_of
from offramp.runtime.events import NO_STAGE, Mark
from offramp.runtime.inflight import InFlight
from offramp.runtime.prediction import Prediction
from offramp.runtime.program import BLAMES_BATCH, Program
from offramp.runtime.single import SingleWalk
from offramp.runtime.source import (
    Prepared,
    StageSource,
    check_form,
    check_made_for,
    ready_stages,
)
from offramp.runtime.stream import Delivered, Keys, OnError, Stream
from offramp.runtime.times import StageTimes, full_sizes
from offramp.runtime.walk import walk
from offramp.stages import batch_size, to_device

_CPU = torch.device("cpu")
_FIRST = torch.zeros(1, dtype=torch.int64)


@final
class Adaptive(nn.Module):
    """Spends on each input only what it needs.

    Examples that leave cost nothing more: the survivors are gathered on the device and the next
    stage runs on them alone. Answers come in input order. Networks run in evaluation mode and
    without gradients, always. The policy is copied; the networks are the cascade's own, unless
    `fold` is set. Raw input moves to the device of the model, and stays what it was even if a
    network writes into it.

    Whoever shares the networks may switch them: between batches they are put back into evaluation
    mode, and a batch during which they were found in training mode raises `UnsupportedError`. What
    is switched there and back within one batch is not seen; `fold` runs copies of its own.

    The first batch of several examples that differ is looked at more closely: a few of them run
    in other company and alone, and must get the same answers.

    Args:
        cascade: The networks. Those that the policy does not need stay where they are.
        choice: A candidate, an operating point, or a policy, made for the cascade's stages.
        costs: Cost of each stage; answers then say what each example cost.
        fold: Run copies of the networks with batch-norms folded and channels last: faster,
            and equal to rounding instead of to the last bit.
        times: Times of the stages, of `measure_times` on this machine and backend. Stages then
            take batches in parts of their best size where that is faster, and run everybody where
            gathering the survivors would cost more. Answers change by the kernels' rounding only.
        gears: Of `Frontier.gears`: operating points that the model may change to.

    Raises:
        InputError: If the policy, the costs, the times or the gears were made for other stages, or
            the policy was fitted on another form of outputs than the stages give.

    >>> from offramp.stages import Cascade
    >>> cascade = Cascade.from_models({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    >>> model = Adaptive(cascade, Candidate.single(cascade.topology, "b", reference="b"))
    >>> answer = model(torch.zeros(2, 4))
    >>> answer.stage.tolist(), answer.log_probs.shape
    ([1, 1], torch.Size([2, 3]))
    """

    def __init__(
        self,
        cascade: StageSource,
        choice: AnyChoice,
        *,
        costs: Costs | None = None,
        fold: bool = False,
        times: StageTimes | None = None,
        gears: Gears | None = None,
    ) -> None:
        super().__init__()
        self._make(cascade, choice, costs, {} if fold else None, times, gears or Gears())

    def _make(
        self,
        cascade: StageSource,
        choice: AnyChoice,
        costs: Costs | None,
        prepared: Prepared | None,
        times: StageTimes | None,
        gears: Gears,
    ) -> None:
        policy = copy.deepcopy(policy_of(choice))
        for each in (policy, *(gear.candidate.policy for gear in gears)):
            check_made_for(cascade, each.topology, costs)
        check_form(cascade, policy)
        stages = ready_stages(cascade, policy.topology, prepared)
        self.policy, self.costs, self.gears = policy, costs, gears
        self.stages = nn.ModuleDict({str(k): stage for k, stage in stages.items()})
        self._made_of = (cascade, choice, prepared)  # in a tuple, so that it moves nothing
        self.program = Program(
            policy,
            stages,
            costs=costs,
            times=times,
            class_names=cascade.class_names,
            reference=None
            if isinstance(choice, Policy)  # which names none
            else policy.topology.index(candidate_of(choice).reference),
        )
        self._single = SingleWalk(self.program)
        where = device_of(self.stages)
        self.to(where).eval()

    @classmethod
    def single(
        cls,
        cascade: StageSource,
        stage: int | str,
        *,
        costs: Costs | None = None,
        fold: bool = False,
    ) -> "Adaptive":
        """One stage alone on every example: what to compare with.

        Args:
            cascade: The networks.
            stage: Index or name of the stage.
            costs: As in the class.
            fold: As in the class; a fair comparison treats both alike.

        Raises:
            InputError: If the costs were made for other stages.
            UnknownNameError: If there is no such stage.

        >>> from offramp.stages import Cascade
        >>> cascade = Cascade.from_models({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
        >>> Adaptive.single(cascade, "a")(torch.zeros(1, 4)).stage.tolist()
        [0]
        """
        alone = Policy(cascade.topology.chain([stage]), {})
        return cls(cascade, alone, costs=costs, fold=fold)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of all stages of the cascade, also of those that the policy does not use."""
        return self.policy.topology.names

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty where nobody gave them."""
        return self.cascade.class_names

    @property
    def cascade(self) -> StageSource:
        """The networks that it was made of, as they were given."""
        return self._made_of[0]

    @property
    def choice(self) -> AnyChoice:
        """What it was made of beside them, with its sentence and its figures if it has some."""
        return self._made_of[1]

    @property
    def candidate(self) -> Candidate:
        """The policy and how it came about; raises `InputError` of a policy alone."""
        return candidate_of(self.choice)

    @property
    def reference(self) -> "Adaptive":
        """The reference alone, whose answers every loss difference is measured against.

        Raises:
            InputError: If a policy alone was chosen, which names no reference.
        """
        alone = self.candidate.policy.topology.chain([self.candidate.reference])
        return self._with(Policy(alone, {}))

    @property
    def gear(self) -> str | None:
        """The name of the gear that it runs in; None where it runs in none of `gears`."""
        if not self.gears:
            return None
        here = to_json(candidate_of(self.choice))
        return next((g.name for g in self.gears if to_json(g.candidate) == here), None)

    def in_gear(self, name: str) -> "Adaptive":
        """The same stages in one of `gears`; the networks are shared.

        Args:
            name: Of the gear; "reference" is the reference alone.

        Raises:
            InputError: If the model has no gears.
            UnknownNameError: If it has none of this name.
        """
        return self._with(self.gears[name], self.gears)

    def _with(self, choice: AnyChoice, gears: Gears | None = None) -> "Adaptive":
        """Another choice over the same stages; their prepared copies are made once."""
        cascade, _, prepared = self._made_of
        made = Adaptive.__new__(Adaptive)
        nn.Module.__init__(made)
        made._make(cascade, choice, self.costs, prepared, self.program.times, gears or Gears())
        return made.to(self.policy.temperatures.device)

    @torch.inference_mode()
    def forward(
        self, batch: AnyBatch, ids: Tensor | Ids | Sequence[int | str] | None = None
    ) -> Prediction:
        """Answer a batch.

        Args:
            batch: Raw input of `n` examples, any `n` from 0 on: a tensor, or a tuple or mapping of
                tensors. Numpy arrays, pandas tables and nested lists become tensors, float64
                float32. Where a stage reads rows of any type: also lists of texts, bytes, images
                or dicts, pandas tables as they are, and tuples and mappings of these.
            ids: Keys of the examples for policies that draw at random, `(n,)`, integers or names;
                by default 0, 1, 2... in each call.

        Raises:
            InputError: If the batch is nothing of this kind or not batch first, `ids` has another
                length, a stage cannot run on such a batch, drops rows of it, or has other classes
                than the others.
            UnsupportedError: If an answer depends on the rest of the batch; or a network was put
                into training mode meanwhile.
        """
        return self._answered(batch, ids, None)

    @torch.inference_mode()
    def watched(
        self,
        batch: AnyBatch,
        ids: Tensor | Ids | Sequence[int | str] | None = None,
        *,
        mark: Mark,
    ) -> Prediction:
        """As `forward`, telling `mark` what the time went into (`offramp.runtime.events`).

        Args:
            batch: As in `forward`.
            ids: As in `forward`.
            mark: Called at the end of each section.
        """
        return self._answered(batch, ids, mark)

    def _answered(
        self,
        given: AnyBatch,
        ids: Keys | None,
        mark: Mark | None,
        go: Callable[[InFlight], Prediction] = walk,
    ) -> Prediction:
        program = self.program
        batch = program.take_in(given)
        n, device = batch_size(batch), self.policy.temperatures.device
        keys = _keys(ids, n, device)
        if n == 0:
            return self._nobody(batch, device)
        try:
            moved = to_device(batch, device)
            program.check_before(moved, n)
            if mark is not None:
                mark("other", NO_STAGE, n)
            if n == 1 and mark is None and go is walk and self._single.serves and device == _CPU:
                answer, width = self._single(moved, keys)
            else:
                flight = InFlight(program, moved, keys, mark=mark)
                answer, width = go(flight), flight.width
        except OfframpError:
            raise
        except BLAMES_BATCH as error:
            program.check_blame(batch, error)
            raise
        program.check_after(batch, width)
        if mark is not None:
            mark("decision", NO_STAGE, n)
        return answer

    def _nobody(self, batch: Raw, device: torch.device) -> Prediction:
        """The answer to no example; how many classes there are, one example of zeros shows."""
        program, root = self.program, self.program.topology.root
        if program.says_labels is not None:
            none = program.says_labels.to(device)
        else:
            if program.classes is None:
                one, first = to_device(_zeros(batch), device), torch.zeros(1, device=device).long()
                program.check_before(one, 1)
                program.classes = InFlight(program, one, first).visit(root, None).width
            shape = (0, program.classes)
            none = StageOutput(classes=shape[1], logits=torch.zeros(shape, device=device))
        return program.answer(0, [((root,), None, none, None, None)])

    @torch.inference_mode()
    def stream(
        self,
        batches: Iterable[AnyBatch | None],
        ids: Iterable[Keys | None] | None = None,
        *,
        batch_size: int | Mapping[str, int] | None = None,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_error: OnError | None = None,
    ) -> Iterator[Delivered]:
        """Answer batch after batch; survivors of several wait for each other.

        The first stage takes each batch as it comes. Before every later stage survivors gather
        until there is a full batch of their shape, so that no stage runs on a few examples alone.
        Every input is answered exactly once, as `forward` with the same ids would answer it.

        What raises an error runs again in halves, until the examples to blame stand alone: only
        they are not answered. `on_error` is told of them, and the stream goes on. Without it the
        stream takes in nothing more, answers all others that it has accepted, and then raises the
        error, with a note of who is not answered.
        The same holds if the source itself raises.

        Args:
            batches: Raw input, any number of examples each. None lets time pass: deadlines are
                looked at whenever something comes.
            ids: For each of `batches` the ids of its examples, as in `forward`; answers come with
                them. By default examples are counted from 0 through the whole stream.
            batch_size: A full batch, for all stages or by the name of the stage. By default the
                best size of the measured times; without those it is 64, and of services 1.
            deadline: Seconds after which an example waits for no others any more; None to wait
                until a batch is full or the input ends.
            clock: Gives seconds; for tests.
            on_error: Called with the ids `(k,)` of examples that are not answered, and the error.

        Yields:
            Ids and answers, `(k,)` each, as soon as they are known, in any order.

        Raises:
            InputError: If `deadline` is negative, a batch size is no integer of at least 1, or
                as in `forward`.
            UnknownNameError: If `batch_size` names a stage that is not there.
        """
        patience = None if deadline is None else check_not_negative("deadline", deadline)
        batcher = self.batcher(batch_size=batch_size, patience=patience)
        stream = Stream(self.program, batcher, clock, on_error)
        yield from stream.run(batches, ids)

    def batcher(
        self,
        *,
        batch_size: int | Mapping[str, int] | None = None,
        patience: float | None = None,
        others: Iterable["Adaptive"] = (),
    ) -> Batcher:
        """A scheduler for examples of many callers; whoever drives it runs the stages.

        Args:
            batch_size: As in `stream`.
            patience: Seconds after which an example waits for no others any more, or None.
            others: Models over the same stages whose examples will come as well.

        Raises:
            InputError: If `patience` is negative, or a size is no integer of at least 1.
            UnknownNameError: If `batch_size` names a stage that is not there.
        """
        programs = [model.program for model in (*others, self)]
        waiting = {k for each in programs for k, stage in each.stages.items() if stage.waits}
        sizes = full_sizes(batch_size, self.policy.topology, self.program.times, waiting)
        seconds = {k: t for each in programs for k, t in each.expected_seconds(sizes).items()}
        return Batcher(sizes, seconds, patience=patience)

    def train(self, mode: bool = True) -> "Adaptive":
        """Stay in evaluation mode: nothing here is trained."""
        return super().train(False)


def _keys(ids: Keys | None, n: int, device: torch.device) -> Tensor:
    if ids is None:
        return _FIRST if n == 1 and device == _CPU else torch.arange(n, device=device)
    given = example_keys(ids)
    if given.shape != (n,):
        raise InputError(f"ids must have shape ({n},), one for each example, got {given.shape}.")
    return given.to(device)


def _zeros(batch: Raw) -> Raw:
    """One example of zeros."""
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
