"""What is known of one batch on its way: outputs of visited stages, and who decides what.

Layer: runtime.  Source: methods.md 6.
"""

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from offramp._core.outputs import StageOutput
from offramp._core.topology import EXIT, Path
from offramp.policy.evidence import View
from offramp.policy.features import Distribution
from offramp.policy.policy import Policy, scaled_log_probs
from offramp.runtime.broken import Broken, finite_rows
from offramp.runtime.events import Mark

#: Positions of examples within the batch, `(m,)` int64, ascending; None stands for all of them.
Rows = Tensor | None

#: Examples that came the same way: its path, and their positions.
Part = tuple[Path, Rows]

#: Log-probabilities `(m, c)`, number of stages that were not finite `(m,)`, validity `(m,)`;
#: the last two are None where everything was finite.
Answered = tuple[Tensor, Tensor | None, Tensor | None]


@final
class Journey:
    """One batch on its way.

    Args:
        policy: What decides.
        ids: Keys of the examples for random policies, `(n,)`.
    """

    def __init__(self, policy: Policy, ids: Int[Tensor, " n"]) -> None:
        self.policy, self.ids = policy, ids
        self._outputs: list[StageOutput | None] = [None] * len(policy.topology)
        self._broken: Broken | None = None
        self._known: dict[int, Distribution] = {}
        self._known_of: Rows = None  # whose distributions `_known` holds
        self._ahead: frozenset[int] = frozenset()  # stages known by `hold_ahead`, all finite

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def broken(self) -> bool:
        """True once an output may have held NaN or infinity."""
        return self._broken is not None

    def hold(self, stage: int, rows: Rows, logits: Float[Tensor, "m c"]) -> None:
        """Take in what a stage says about the examples at `rows`."""
        held = logits
        if rows is not None:  # a view addresses all stages' outputs by the same positions
            held = logits.new_zeros(len(self), logits.shape[1])
            held.index_copy_(0, rows, logits)
        self._outputs[stage] = StageOutput(classes=logits.shape[1], logits=held)

    def hold_ahead(self, stages: Sequence[int], logits: Float[Tensor, "1 k c"]) -> None:
        """Take in what several stages say about the only example; it may not reach all of them.

        Args:
            stages: `k` of them, in order.
            logits: Theirs.
        """
        classes, rows = logits.shape[2], logits[0]  # (k, c)
        for stage, own in zip(stages, logits.unbind(1), strict=True):
            self._outputs[stage] = StageOutput(classes=classes, logits=own)
        if _sums_up(rows):
            self._known.update(self.policy.distributions(stages, rows))
            self._ahead |= frozenset(stages)

    def heard(self, stage: int) -> bool:
        """Whether it is known what a stage says."""
        return self._outputs[stage] is not None

    def decide(self, parts: Sequence[Part], mark: Mark) -> list[tuple[Part, int]]:
        """What becomes of those who have just visited a stage.

        Args:
            parts: All of them, by the way they came; their paths end at the stage.
            mark: Told of decisions and of waiting for the device.

        Returns:
            Those who leave (-1) and who goes on to which stage, parts without anybody left out.
        """
        stage = parts[0][0][-1]
        if len(parts) == 1 and self._at_hand(parts[0][1]):
            path, action = self.step(*parts[0], mark)
            return [((path, parts[0][1]), action)]
        if self.policy.topology.children(stage):
            return self._divide(stage, parts, mark)
        self._keep(parts)  # the device is not asked whether all is finite: both cases are answered
        return [(part, EXIT) for part in parts]

    def step(self, path: Path, rows: Rows, mark: Mark) -> tuple[Path, int]:
        """What one example on the CPU does after the last stage of its path, by plain ifs.

        Returns:
            The path, longer where stages on its way had answered before, and the action there.
        """
        stage = path[-1]
        finite = stage in self._ahead or self._finite(path, rows)
        if not finite or self._broken is not None:
            self._keep([(path, rows)])
        children = self.policy.topology.children(stage)
        if not children:
            return path, EXIT
        mark("wait", stage, 1)
        if not finite:
            return path, children[-1]
        if self._broken is not None:  # then each stage on the way is looked at
            return path, self.policy.step_at(path, self._view(rows))
        return self.policy.walk_at(path, self._view(rows), self._ahead)

    def answer(self, path: Path, rows: Rows) -> Answered:
        """The answers of examples that leave at the end of `path`."""
        if self._broken is not None:
            held = self._broken if rows is None else self._broken.take(rows)
            return held.answer, held.nonfinite, held.valid
        return self.policy.answer_at(path, self._view(rows)), None, None

    @property
    def classes(self) -> int:
        """Number of classes of the outputs so far."""
        return next(held.classes for held in self._outputs if held is not None)

    def narrowed(self, rows: Rows) -> "Journey":
        """The same of some of the examples, who become all there are."""
        if rows is None:
            return self
        part = Journey(self.policy, self.ids.index_select(0, rows))
        part._outputs = [None if held is None else held.rows(rows) for held in self._outputs]
        part._broken = None if self._broken is None else self._broken.take(rows)
        return part

    def joined(self, others: Sequence["Journey"]) -> "Journey":
        """Several batches as one, in order, all of whom came the same way and are not broken."""
        each = [self, *others]
        whole = Journey(self.policy, torch.cat([one.ids for one in each]))
        for stage, held in enumerate(self._outputs):
            if held is not None:
                logits = torch.cat([one._outputs[stage].scores() for one in each])  # type: ignore[union-attr]
                whole._outputs[stage] = StageOutput(classes=held.classes, logits=logits)
        return whole

    def _at_hand(self, rows: Rows) -> bool:
        """True of one example whose numbers the host can look at without waiting."""
        of = self.ids if rows is None else rows
        return of.shape[0] == 1 and self.ids.device.type == "cpu"

    def _view(self, rows: Rows) -> View:
        if rows is not self._known_of:
            self._known, self._known_of = {}, rows
        return View(self._outputs, None, _take(self.ids, rows), rows, self._known)

    def _finite(self, path: Path, rows: Rows) -> bool:
        """Whether one example's logits are finite."""
        logits = self._view(rows).output(path[-1]).scores()
        return _sums_up(logits) or bool(finite_rows(logits))

    def _divide(self, stage: int, parts: Sequence[Part], mark: Mark) -> list[tuple[Part, int]]:
        children = self.policy.topology.children(stage)
        actions, counts = list[Tensor](), list[Tensor]()
        for path, rows in parts:
            view = self._view(rows)
            finite = finite_rows(view.output(stage).scores())
            action = torch.where(finite, self.policy.decide_at(path, view)[0], children[-1])
            actions.append(action)
            counts += [(action == child).sum() for child in children] + [(~finite).sum()]
        mark("decision", stage, 0)
        numbers = torch.stack(counts).tolist()
        mark("wait", stage, 1)
        each = len(children) + 1
        if self._broken is not None or any(numbers[len(children) :: each]):
            self._keep(parts)
        found: list[tuple[Part, int]] = []
        for k, (path, rows) in enumerate(parts):
            going = numbers[k * each : (k + 1) * each - 1]
            for part, child in _divided(actions[k], rows, children, going):
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
            if self._broken is None:
                self._broken = Broken(len(self), logits)
            finite = finite_rows(logits)
            self._broken.update(rows, finite, combined=combined, before=before, alone=alone)


def _sums_up(logits: Tensor) -> bool:
    """Whether the sum is finite, as it is only if all terms are; finite ones may overflow."""
    return math.isfinite(logits.sum().item())


def _take(values: Tensor, rows: Rows) -> Tensor:
    return values if rows is None else values.index_select(0, rows)


def _divided(
    action: Int[Tensor, " m"], rows: Rows, children: Sequence[int], going: Sequence[int]
) -> list[tuple[Rows, int]]:
    """Who leaves and who goes on to which child, given how many go to each; nobody is left out.

    Nothing is gathered where all do the same.
    """
    leaving = len(action) - sum(going)
    shares = [(EXIT, leaving), *zip(children, going, strict=True)]
    for way, count in shares:
        if count == len(action):
            return [(rows, way)]
    order = action.argsort(stable=True)  # those who leave (-1) first, then child by child
    start, found = 0, list[tuple[Rows, int]]()
    for way, count in shares:
        if count:
            part = order[start : start + count]
            found.append((part if rows is None else rows[part], way))
        start += count
    return found
