"""The walk of one example on the CPU, by plain ifs: nobody to wait for, to gather or to reorder.

What does not change from example to example is settled once for each path. Where a stage is not
finite, the walk for any number of examples goes on from there.

Layer: runtime.  Source: docs/adr/0057.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from offramp._core.outputs import StageOutput
from offramp._core.topology import EXIT, RAW_INPUT, Path
from offramp._core.types import Raw
from offramp.policy.features import Distribution
from offramp.policy.policy import Evidence
from offramp.runtime.inflight import InFlight
from offramp.runtime.plans import RAW, Block
from offramp.runtime.prediction import Prediction
from offramp.runtime.program import Program
from offramp.runtime.walk import walk
from offramp.stages import Stage

#: A segment: its stage, the group whose carry it reads, and whose carry it gives.
Run = tuple[Stage, str, tuple[str, ...]]


@final
@dataclass(frozen=True, slots=True)
class Visit:
    """What visiting the last stage of a path takes, for an example that came by it.

    Args:
        stage: That stage.
        runs: Segments that run.
        group: Whose carry the stage answers from.
        drops: Groups whose carries nobody reads any more.
        block: What ran in one piece with the stage, where others answer as well.
        ends: True where nothing follows.
    """

    stage: Stage
    runs: tuple[Run, ...]
    group: str
    drops: tuple[str, ...]
    block: Block | None
    ends: bool


@final
class SingleWalk:
    """Takes one example after the other from the root to its answer.

    Args:
        program: The stages, and what visiting each takes.

    Attributes:
        serves: False of programs with services, and with stages that answer nothing.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self.serves = not (program.services or program.silent or program.priced)
        self._visits: dict[Path, Visit] = {}
        self._constants: dict[Path, tuple[Tensor, ...]] = {}

    def __call__(self, batch: Raw, ids: Tensor) -> tuple[Prediction, int]:
        """Answer the only example of a batch.

        Args:
            batch: The raw input.
            ids: Its key for random policies, `(1,)`, on the CPU.

        Returns:
            The answer, and how many classes the stages have.
        """
        program = self._program
        policy, outputs = program.policy, list[StageOutput | None]([None] * program.count)
        known = dict[int, Distribution]()
        ahead = dict[int, tuple[Tensor, list[float]]]()  # logits of stages that ran already
        carries: dict[str, Any] = {RAW: program.as_read(batch)}
        at = Evidence(policy, (program.topology.root,), outputs, ids, None, known)
        while True:
            path = at.path
            visit, k = self._visits.get(path) or self._visit(path), path[-1]
            if k in ahead:
                logits, row = ahead[k]
                said = StageOutput(classes=logits.shape[1], logits=logits)
                known[k] = Distribution.of_scores(logits, policy.temperature(k), row=row)
            else:
                said = _visited(visit, carries, ids)
                if visit.block is not None:
                    _look_ahead(visit.block, carries[visit.group].logits, ahead)
                for group in visit.drops:
                    del carries[group]
            outputs[k] = said
            # What rules look at tells as well that all is finite.
            seen = at.distribution(k).scalars if said.scored and not visit.ends else None
            if seen is None and not said.all_finite():
                return self._hand_over(batch, ids, path, carries, outputs)
            action = EXIT if visit.ends else policy.step(at)
            if action == EXIT:
                return self._answer(path, policy.says(at)), said.width
            at.follow(action)

    def _visit(self, path: Path) -> Visit:
        """The visit at the end of a path, made when somebody comes by it first."""
        held = {RAW}
        for end in range(1, len(path)):
            self._runs(path[:end], held)
            held &= self._program.plans[path[end - 1]].keep
        program, k = self._program, path[-1]
        runs, block = self._runs(path, held), program.blocks.get(k)
        visit = self._visits[path] = Visit(
            program.stages[k],
            runs,
            program.topology.groups[k],
            tuple(held - program.plans[k].keep),
            block if block is not None and len(block.stages) > 1 else None,
            not program.children[k],
        )
        return visit

    def _runs(self, path: Path, held: set[str]) -> tuple[Run, ...]:
        """The segments that run at the end of a path; `held` gets the groups that they give."""
        program, topology, runs = self._program, self._program.topology, list[Run]()
        for j in topology.new_segments(path[:-1], path[-1]):
            block, group = program.blocks.get(j), topology.groups[j]
            if block is not None and block.passing and group in held:
                continue
            source = topology.sources[j]
            reads = RAW if source == RAW_INPUT else topology.groups[source]
            runs.append((program.stages[j], reads, (group,) if block is None else block.groups))
            held.update(runs[-1][2])
        return tuple(runs)

    def _answer(self, path: Path, said: StageOutput) -> Prediction:
        """As `Program.answer`, of which all but the labels depends on the path alone."""
        program = self._program
        labels, confidence = said.best()
        held = self._constants.get(path)
        if held is None:
            made = program.answer(1, [(path, None, said, None, None)])
            cost = [] if made.cost is None else [made.cost]
            numbers = torch.stack([made.stage, made.path, made.nonfinite])
            held = self._constants[path] = (numbers, made.reason, made.valid, *cost)
        numbers, reason, valid, *cost = [each.clone() for each in held]  # nobody shares an answer
        stage, index, nonfinite = numbers.unbind()
        return Prediction(
            log_probs=said.logits,
            values=said.features,
            labels=labels,
            stage=stage,
            path=index,
            reason=reason,
            confidence=confidence,
            cost=cost[0] if cost else None,
            valid=valid,
            nonfinite=nonfinite,
            stage_names=program.topology.names,
            paths=program.all_paths,
        )

    def _hand_over(
        self,
        batch: Raw,
        ids: Tensor,
        path: Path,
        carries: dict[str, Any],
        outputs: list[StageOutput | None],
    ) -> tuple[Prediction, int]:
        flight = InFlight(self._program, batch, ids)
        flight.stand(carries, outputs)
        return walk(flight, path), flight.width


def _visited(visit: Visit, carries: dict[str, Any], ids: Tensor) -> StageOutput:
    """What a stage says, once it has run."""
    for stage, reads, gives in visit.runs:
        result = stage.segment(carries[reads])
        for group in gives:
            carries[group] = result
    here, result = visit.stage, carries[visit.group]
    said = result if isinstance(result, StageOutput) else here.answer(result)
    if here.calls_on_rows and said.device != ids.device:
        said = said.to(ids.device)
    said.check_answers(here.name, 1)
    return said


def _look_ahead(block: Block, logits: Tensor, ahead: dict[int, tuple[Tensor, list[float]]]) -> None:
    """Take in what came when a stage ran in one piece with others; nobody may reach all of them."""
    asked = logits[:, block.columns].float()  # (1, k, c)
    rows = zip(asked.unbind(1), asked.tolist()[0], strict=True)
    ahead.update(zip(block.stages, rows, strict=True))
