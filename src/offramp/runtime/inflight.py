"""Dataset on their way: what stages said of them, what they carry along, and what comes next.

The raw input and the carries are narrowed to the examples that need them only when a segment is
about to read them.

Layer: runtime.  Source: methods.md 1 (early exit: segments and heads) and 6.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from offramp._core.batch import Form, RawInput, carry_form, concat, split_rows
from offramp._core.errors import InputError
from offramp._core.outputs import StageOutput
from offramp._core.topology import EXIT, RAW_INPUT, Path
from offramp._core.types import Raw
from offramp.policy.evidence import Evidence
from offramp.policy.features import Distribution
from offramp.policy.policy import Policy, scaled_log_probs
from offramp.runtime.carries import Held, Rows, divided
from offramp.runtime.events import NO_STAGE, Mark, unmarked
from offramp.runtime.fallback import Fallback, finite_rows, sums_up
from offramp.runtime.program import RAW, Program
from offramp.stages.fusing.modules import fused_of

#: Dataset that came the same way: its path, and their positions.
Part = tuple[Path, Rows]

#: Log-probabilities `(m, c)` of an answer, and what was kept where something was not finite.
Predicted = tuple[Tensor, Fallback | None]

Numbers = Int64[np.ndarray, " n"]


class InFlight:
    """Some examples on their way through a program: everything that is known of them.

    Whoever drives it visits a stage, lets it hear what the stage says, asks what each example does
    next, and predicts for those who leave; `walk` does so to the end.

    Args:
        program: The stages, and what visiting each takes.
        batch: The raw input.
        ids: Keys of the examples for random policies, `(n,)`; they lie where the stages are.
        policy: What decides; None for those who only visit stages.
        mark: Told of segments, heads, compaction, decisions, and waiting for the device.
    """

    def __init__(
        self,
        program: Program,
        batch: Raw,
        ids: Int[Tensor, " n"],
        policy: Policy | None = None,
        *,
        mark: Mark = unmarked,
    ) -> None:
        self.program, self.ids, self._mark = program, ids, mark
        self.numbers: Numbers | None = None  # who they are to a `Batcher`, `(n,)`, on the host
        self.policy: Policy = policy  # type: ignore[assignment]
        self._n = ids.shape[0]
        self._carries = {RAW: Held(batch, None)}
        self._before: dict[str, Held] | None = None  # the carries until a visit was heard
        self._said: Any = None  # the carry that one example's last stage answered from
        self._outputs: list[StageOutput | None] = [None] * len(program.topology)
        self._last: Tensor | None = None  # the logits heard last
        self._fallback: Fallback | None = None
        self._known: dict[int, Distribution] = {}
        self._known_of: Rows = None  # whose distributions `_known` holds
        self._ahead: frozenset[int] = frozenset()  # stages known by `hear_ahead`, all finite

    def __len__(self) -> int:
        return self._n

    # ---- visiting stages

    @property
    def held(self) -> frozenset[str]:
        """Groups whose carries are held; "" for the raw input."""
        return frozenset(self._carries)

    @property
    def raw(self) -> Raw:
        """The raw input, as long as it is held."""
        held = self._carries[RAW].batch
        return held.rows if isinstance(held, RawInput) else held

    @property
    def form(self) -> Form:
        """What the carries held look like; only those of one form can be joined."""
        carries = sorted(self._carries.items())
        return tuple((group, carry_form(held.batch)) for group, held in carries)

    def visit(self, stage: int, rows: Rows) -> Float[Tensor, "m c"]:
        """Run what the examples at `rows` lack up to `stage`, and its head.

        A visit that raises changes nothing, so it can be made again; `undo` takes one back.
        """
        plan, carries = self.program.plans[stage], dict(self._carries)
        for j in plan.segments:
            if self._has_passed(j, carries):
                continue
            lacking = self._lacking(j, rows, carries) if j in plan.by_some else rows
            if lacking is None or len(lacking):
                self._run(j, lacking, carries, shared=j in plan.by_some)
        logits = self._answer(stage, rows, carries)
        if len(carries) > len(plan.keep) or not plan.keep.issuperset(carries):
            carries = {group: held for group, held in carries.items() if group in plan.keep}
        self._before, self._carries = self._carries, carries
        return logits

    def undo(self) -> None:
        """Stand where the last visit began, unless what the stage says has been heard."""
        if self._before is not None:
            self._carries, self._before = self._before, None

    def _has_passed(self, stage: int, carries: Mapping[str, Held]) -> bool:
        """Whether a segment ran with that of an earlier stage, for everybody who got there."""
        block = self.program.blocks.get(stage)
        return (
            block is not None and block.passing and self.program.topology.groups[stage] in carries
        )

    def _run(self, stage: int, lacking: Rows, carries: dict[str, Held], *, shared: bool) -> None:
        """Run a segment for those who lack it, and hold what it gives."""
        topology, times = self.program.topology, self.program.times
        source, group = topology.sources[stage], topology.groups[stage]
        held = carries[RAW if source == RAW_INPUT else topology.groups[source]]
        block = self.program.blocks.get(stage)
        if block is not None and block.passing:
            lacking = held.rows  # nothing has to be computed, so nothing is gathered
        elif times is not None and lacking is not None and not shared:
            count = self._n if held.rows is None else len(held.rows)
            if times.whole_is_cheaper(stage, source, count, len(lacking)):
                lacking = held.rows
        m = self._n if lacking is None else len(lacking)
        given = held.take(lacking)
        if given is not held.batch:
            self._mark("compaction", stage, m)
        done = Held(self._segment(stage, given, m), lacking)
        self._mark("stage", stage, m)
        before = carries.get(group)
        done = done if before is None else before.joined(done, self._n)
        for name in (group,) if block is None else block.groups:
            carries[name] = done

    def _segment(self, stage: int, given: Raw, m: int) -> Any:  # noqa: ANN401
        """What a segment gives, taken in parts where that is faster."""
        here, times = self.program.stages[stage], self.program.times
        parts = (m,) if times is None else times.split(stage, m)
        if len(parts) == 1:
            return here.segment(given)
        given_parts = split_rows(given, parts)
        if here.gives_carry or stage not in self.program.plans:  # nobody answers: no head is held
            return concat([here.segment(part) for part in given_parts])
        # What a whole network returns may hold more than can be joined; its logits can.
        return torch.cat([here.answer(here.segment(part)) for part in given_parts])

    def _answer(self, stage: int, rows: Rows, carries: Mapping[str, Held]) -> Float[Tensor, "m c"]:
        program = self.program
        here, held = program.stages[stage], carries[program.topology.groups[stage]]
        if self._n == 1:
            self._said = held.batch
        picks = stage in program.blocks  # costs nothing, so nothing is gathered for it
        if (picks or program.times is not None) and held.holds_more_than(rows):
            everyone = here.answer(held.batch)
            logits: Tensor = Held(everyone, held.rows).take(rows)
        else:
            logits = here.answer(held.take(rows))
        m, wanted = logits.shape[0], self._n if rows is None else rows.shape[0]
        if m != wanted:
            raise InputError(
                f"Stage {here.name!r} must answer for each of the {wanted} examples that it was "
                f"given, got {m} answers. A network must keep the batch's rows and their order."
            )
        self._mark("head", stage, m)
        return logits

    def _lacking(self, stage: int, rows: Rows, carries: Mapping[str, Held]) -> Rows:
        """Those among `rows` that have not run a segment; asks the device how many they are."""
        held = carries.get(self.program.topology.groups[stage])
        if held is None:
            return rows
        everyone = torch.arange(self._n, device=self.ids.device)
        wanted = everyone if rows is None else rows
        if held.rows is None:
            return wanted[:0]
        has = torch.zeros(self._n, dtype=torch.bool, device=self.ids.device)
        has[held.rows] = True
        found = wanted[~has[wanted]]
        self._mark("wait", stage, len(found))
        return found

    # ---- what was said

    def hear(self, stage: int, rows: Rows, logits: Float[Tensor, "m c"]) -> None:
        """Take in what a stage says about the examples at `rows`."""
        self._before = None
        held = self._last = logits.float()
        if rows is not None:  # a view addresses all stages' outputs by the same positions
            held = held.new_zeros(self._n, held.shape[1])
            held.index_copy_(0, rows, self._last)
        self._outputs[stage] = StageOutput(classes=held.shape[1], logits=held)

    def hear_ahead(self, stage: int) -> bool:
        """Take in what came when the only example visited a stage in one piece with others.

        It may not reach all of them. Returns False, and does nothing, where there are none.
        """
        block = self.program.blocks.get(stage)
        if block is None or len(block.stages) == 1:
            return False
        logits = fused_of(self._said)[:, block.columns].float()
        classes, rows = logits.shape[2], logits[0]  # (k, c)
        for member, own in zip(block.stages, logits.unbind(1), strict=True):
            self._outputs[member] = StageOutput(classes=classes, logits=own)
        if sums_up(rows):
            self._known.update(self.policy.distributions(block.stages, rows))
            self._ahead |= frozenset(block.stages)
        return True

    def has_heard(self, stage: int) -> bool:
        """Whether it is known what a stage says."""
        return self._outputs[stage] is not None

    @property
    def broken(self) -> bool:
        """True once an output may have held NaN or infinity."""
        return self._fallback is not None

    # ---- deciding

    def at_hand(self, rows: Rows) -> bool:
        """True of one example whose numbers the host can look at without waiting."""
        of = self.ids if rows is None else rows
        return of.shape[0] == 1 and self.ids.device.type == "cpu"

    def decide(self, parts: Sequence[Part]) -> list[tuple[Part, int]]:
        """What becomes of those who have just visited a stage.

        Args:
            parts: All of them, by the way they came; their paths end at the stage.

        Returns:
            Those who leave (-1) and who goes on to which stage, parts without anybody left out.
        """
        stage = parts[0][0][-1]
        if len(parts) == 1 and self.at_hand(rows := parts[0][1]):
            path, action = self.step(parts[0][0], rows)
            return [((path, rows), action)]
        if self.program.topology.children(stage):
            return self._divide(stage, parts)
        if not self._is_finite():
            self._keep(parts)
        return [(part, EXIT) for part in parts]

    def step(self, path: Path, rows: Rows) -> tuple[Path, int]:
        """What one example on the CPU does after the last stage of its path, by plain ifs.

        Returns:
            The path, longer where stages on its way had answered before, and the action there.
        """
        stage = path[-1]
        finite = stage in self._ahead or self._one_is_finite(stage, rows)
        if not finite or self._fallback is not None:
            self._keep([(path, rows)])
        children = self.program.topology.children(stage)
        if not children:
            return path, EXIT
        self._mark("wait", stage, 1)
        if not finite:
            return path, children[-1]
        if self._fallback is not None:  # then each stage on the way is looked at
            return path, self.policy.step_at(path, self._view(rows))
        return self.policy.walk_at(path, self._view(rows), self._ahead)

    def predict(self, path: Path, rows: Rows) -> Predicted:
        """The answers of examples that leave at the end of `path`."""
        if self._fallback is not None:
            held = self._fallback.take(rows)
            return held.log_probs, held
        return self.policy.answer_at(path, self._view(rows)), None

    def _view(self, rows: Rows) -> Evidence:
        if rows is not self._known_of:
            self._known, self._known_of = {}, rows
        ids = self.ids if rows is None else self.ids.index_select(0, rows)
        return Evidence(self._outputs, None, ids, rows, self._known)

    def _one_is_finite(self, stage: int, rows: Rows) -> bool:
        """Whether one example's logits are finite."""
        logits = self._view(rows).output(stage).scores()
        return sums_up(logits) or bool(finite_rows(logits))

    def _is_finite(self) -> bool:
        """True where all is known to be finite; a device is not asked, the host would wait."""
        last = self._last
        if self._fallback is not None or last is None or last.device.type != "cpu":
            return False
        return not len(last) or sums_up(last) or bool(finite_rows(last).all())

    def _divide(self, stage: int, parts: Sequence[Part]) -> list[tuple[Part, int]]:
        children = self.program.topology.children(stage)
        actions, counts = list[Tensor](), list[Tensor]()
        for path, rows in parts:
            view = self._view(rows)
            finite = finite_rows(view.output(stage).scores())
            action = torch.where(finite, self.policy.decide_at(path, view)[0], children[-1])
            actions.append(action)
            counts += [(action == child).sum() for child in children] + [(~finite).sum()]
        self._mark("decision", stage, 0)
        numbers = torch.stack(counts).tolist()
        self._mark("wait", stage, 1)
        each = len(children) + 1
        if self._fallback is not None or any(numbers[len(children) :: each]):
            self._keep(parts)
        found: list[tuple[Part, int]] = []
        for k, (path, rows) in enumerate(parts):
            going = numbers[k * each : (k + 1) * each - 1]
            for part, child in divided(actions[k], rows, children, going):
                found.append(((path, part), child))
        return found

    def _keep(self, parts: Sequence[Part]) -> None:
        """Answers that hold whatever is not finite, now, before or later."""
        for path, rows in parts:
            view = self._view(rows)
            logits = view.output(path[-1]).scores()
            combined = self.policy.answer_at(path, view)
            before = self.policy.answer_at(path[:-1], view) if len(path) > 1 else None
            alone = combined
            if self.policy.combine != "last":
                alone = scaled_log_probs(logits, self.policy.temperatures[path[-1]])
            kept = self._fallback or Fallback.none(self._n, logits)
            finite = finite_rows(logits)
            part = kept.take(rows).after(finite, combined=combined, before=before, alone=alone)
            self._fallback = kept.put(rows, part)

    # ---- fewer and more

    def take(self, rows: Rows) -> "InFlight":
        """The same of some of the examples, who become all there are."""
        if rows is None:
            return self
        each = {id(held): held.take(rows) for held in self._carries.values()}
        self._mark("compaction", NO_STAGE, len(rows))
        part = self._with(
            {group: each[id(held)] for group, held in self._carries.items()},
            self.ids.index_select(0, rows),
            None if self.numbers is None else self.numbers[rows.cpu().numpy()],
        )
        part._outputs = [None if held is None else held.take(rows) for held in self._outputs]
        part._fallback = None if self._fallback is None else self._fallback.take(rows)
        return part

    def concat(self, others: Sequence["InFlight"]) -> "InFlight":
        """Several as one, in order, all of whom came the same way, in one form, all finite."""
        if not others:
            return self
        each, joined = [self, *others], dict[int, Any]()
        for group, held in self._carries.items():
            if id(held.batch) not in joined:
                joined[id(held.batch)] = concat([one._carries[group].batch for one in each])
        numbers = [one.numbers for one in each if one.numbers is not None]
        whole = self._with(
            {group: joined[id(held.batch)] for group, held in self._carries.items()},
            torch.cat([one.ids for one in each]),
            np.concatenate(numbers) if numbers else None,
        )
        self._mark("compaction", NO_STAGE, len(whole))
        for stage, said in enumerate(self._outputs):
            if said is not None:
                logits = torch.cat([one._outputs[stage].scores() for one in each])  # type: ignore[union-attr]
                whole._outputs[stage] = StageOutput(classes=said.classes, logits=logits)
        return whole

    def _with(self, carries: Mapping[str, Any], ids: Tensor, numbers: Numbers | None) -> "InFlight":
        made = InFlight(self.program, (), ids, self.policy, mark=self._mark)
        made.numbers = numbers
        made._carries = {group: Held(carry, None) for group, carry in carries.items()}
        return made
