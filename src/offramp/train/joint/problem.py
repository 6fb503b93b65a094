"""What a joint training works on: model, examples, costs, and the examples it is judged on.

Layer: train.  Source: none.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from offramp._core.batch import concat, to_device
from offramp._core.checks import check_probability
from offramp._core.costs import Costs
from offramp._core.division import stratified_order
from offramp._core.errors import InputError
from offramp._core.schema import to_json
from offramp._core.topology import Topology
from offramp._core.types import Batch
from offramp.data import Dataset, arrays
from offramp.evaluation import evaluate
from offramp.fitting.stopping.network import (
    make_networks,
    rules_of,
    stopping_costs,
    stopping_policy,
    with_stopping,
)
from offramp.fitting.stopping.objective import Objective
from offramp.policy import Candidate
from offramp.stages import Cascade, evaluating, measure_flops, weights_digest
from offramp.trace import Trace
from offramp.train.features import augmented, in_bfloat16
from offramp.train.joint.plan import JointPlan
from offramp.train.joint.result import JointEpoch, JointTraining
from offramp.train.joint.rollout import JointModel
from offramp.train.state import copied_weights, seed_for, shuffled


@final
@dataclass(kw_only=True)
class Progress:
    """How far a training is: `best` are the weights of the best epoch."""

    history: list[JointEpoch]
    best_epoch: int
    best: dict[str, Tensor]


@final
@dataclass(frozen=True, kw_only=True)
class Problem:
    """Everything that stays the same while a training runs, but the weights.

    Args:
        model: Cascade and stopping networks.
        plan: The numbers.
        objective: What an example is worth.
        costs: Of the cascade, with what a stopping network takes.
        part: Examples that `rows` and `judged_on` count in.
        rows: Those to train on.
        judge: Examples that `judged_on` counts in.
        judged_on: Those to judge on.
        cached: Logits of the chain for all of `part`, where the classifiers never change.
        start: Digest of the weights begun with, where they are not those a seed gives; else "".
    """

    model: JointModel
    plan: JointPlan
    objective: Objective
    costs: Costs
    part: Dataset
    rows: Tensor
    judge: Dataset
    judged_on: Tensor
    cached: Tensor | None
    start: str

    def batches(self, generator: torch.Generator) -> list[Tensor]:
        """Rows of each step of a pass; what is left over is left out."""
        return shuffled(self.rows, self.plan.batch_size, generator)

    def labels(self, rows: Tensor) -> Tensor:
        """True labels, `(m,)`."""
        found: Tensor = to_device(self.part.labels[rows], self.plan.device)
        return found

    def inputs(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """Raw inputs, changed at random where there is an augmentation."""
        raw: Batch = to_device(self.part.inputs_at(rows), self.plan.device)
        return augmented(raw, self.plan.augment, generator)

    def logits(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Of every stage of the chain, `(m, s, c)`."""
        if self.cached is not None:
            logits: Tensor = to_device(self.cached[rows], self.plan.device)
            return logits
        with (
            in_bfloat16(self.plan.device, self.plan.bfloat16),
            torch.set_grad_enabled(not self.plan.frozen),
        ):
            return self.model.logits(self.inputs(rows, generator))

    def judged(self, phase: str, loss: float, norm: float) -> JointEpoch:
        """Measure the present weights on the validation examples, as a replay would."""
        trace = self._trace()
        rules = rules_of(self.model.networks, self.model.chain.active)
        most_expensive = int(np.argmax(trace.stage_costs()))
        candidate = Candidate(
            policy=stopping_policy(self.model.chain, rules, outputs="logits"),
            method="joint",
            reference=trace.stages[most_expensive],
            top=self.plan.top,
        )
        found = evaluate(trace, candidate, bootstrap=0)
        return JointEpoch(
            phase=phase,
            loss=loss,
            gradient_norm=norm,
            cost_ratio=found.cost_ratio,
            error=1 - found.accuracy,
            exit_share=tuple(found.exit_share[k] for k in self.model.chain.active),
        )

    def result(self, done: Progress) -> JointTraining:
        """What was trained, with the weights that the model has now."""
        trace = self._trace()
        active = self.model.chain.active
        best = min(active, key=lambda k: (-trace.accuracy(k, top=self.plan.top), k))
        cascade = self.model.cascade
        return JointTraining(
            cost_weight=self.plan.cost_weight,
            topology=self.model.chain,
            rules=tuple(rules_of(self.model.networks, active)),
            costs=self.costs,
            reference=trace.stages[best],
            top=self.plan.top,
            history=tuple(done.history),
            best_epoch=done.best_epoch,
            state=copied_weights(cascade),
        )

    def identity(self) -> dict[str, str]:
        """What must be the same for a training to go on from a checkpoint."""
        whole = len(self.judged_on) == len(self.judge)
        return {
            **self.plan.identity(),
            "stages": json.dumps([self.model.chain.names[k] for k in self.model.chain.active]),
            "shapes": json.dumps(
                {k: list(v.shape) for k, v in self.model.cascade.state_dict().items()},
                sort_keys=True,
            ),
            "transform": "; ".join(repr(s.transform) for s in self.model.cascade),
            "costs": json.dumps(to_json(self.costs)),
            "examples": self.part.fingerprint,
            "validation": self.judge.fingerprint if whole else str(len(self.judged_on)),
            "start": self.start,
        }

    def _trace(self) -> Trace:
        return _trace_of(self.model.cascade, self.judge.take(self.judged_on), self.costs, self.plan)


def make_problem(
    cascade: Cascade,
    part: Dataset | Iterable[Any],
    plan: JointPlan,
    stages: Sequence[str] | None,
    costs: Costs | None,
    validation: Dataset | float,
    start: JointTraining | None,
) -> Problem:
    """Check what a joint training is given, and make it ready.

    Raises:
        InputError: As `train_joint` says.
    """
    chain = _chain(cascade, stages)
    examples = part if isinstance(part, Dataset) else read_loader(part)
    cascade.to(plan.device)
    if start is not None:
        start.load_into(cascade)
    classes = cascade.check(to_device(examples.inputs_at(torch.tensor([0])), plan.device))
    if classes < examples.classes:
        raise InputError(
            f"Every stage must give at least {examples.classes} logits, one for each class of "
            f"{examples.name}, got {classes}."
        )
    priced = _costs(cascade, examples, plan, costs, classes)
    networks = make_networks(
        len(chain.active) - 1, classes, plan.width, seed=seed_for(plan.seed, "networks")
    ).to(plan.device)
    if start is not None:
        for network, rule in zip(networks, start.rules, strict=True):
            network.load_rule(rule)  # type: ignore[operator]
    rows, judge, judged_on = _divided(examples, validation, plan)
    model = JointModel(cascade, chain, networks, detached=plan.detached or plan.frozen)
    cached = _all_logits(model, examples, plan) if plan.frozen and plan.augment is None else None
    price = plan.cost_weight * stopping_costs(priced, chain)
    given = start is not None or plan.frozen
    return Problem(
        model=model,
        plan=plan,
        objective=Objective(
            stage_cost=price.to(plan.device),
            answers=plan.answers,
            top=plan.top,
        ),
        costs=priced,
        part=examples,
        rows=rows,
        judge=judge,
        judged_on=judged_on,
        cached=cached,
        start=weights_digest({"": model}) if given else "",
    )


def read_loader(loader: Iterable[Any]) -> Dataset:
    """The examples of a loader of batches (inputs, labels), all in memory.

    Raises:
        InputError: If there are none, or labels are not one integer for each example.
    """
    inputs: list[Any] = []
    labels: list[Tensor] = []
    for batch in loader:
        given = torch.as_tensor(batch[1])
        if given.ndim != 1 or given.is_floating_point():
            raise InputError(
                f"labels must be one integer for each example, (m,), got {given.dtype} of shape "
                f"{tuple(given.shape)}; of one-hot labels take labels.argmax(1)."
            )
        inputs.append(batch[0])
        labels.append(given)
    if not labels or not sum(map(len, labels)):
        raise InputError(
            f"The loader must give at least one example, got {len(labels)} batches without any."
        )
    joined: Any = concat(inputs)
    return arrays(joined, torch.cat(labels), layout="as_is", name="the loader's examples")


def _chain(cascade: Cascade, stages: Sequence[str] | None) -> Topology:
    topology = cascade.topology
    names = list(topology.names) if stages is None else list(stages)
    if len(names) < 2:
        raise InputError(
            f"A cascade trained jointly needs at least two stages, got {len(names)} ({names}): "
            "with one there is nothing to stop at."
        )
    chain = topology.chain(names)
    groups = [topology.groups[k] for k in chain.active]
    if len(set(groups)) < len(groups):
        raise InputError(
            f"stages must name one head of each group, got groups {groups} for {names}."
        )
    return chain


def _costs(
    cascade: Cascade, examples: Dataset, plan: JointPlan, costs: Costs | None, classes: int
) -> Costs:
    if costs is None:
        example = to_device(examples.inputs_at(torch.tensor([0])), plan.device)
        return with_stopping(measure_flops(cascade, example), classes, plan.width)
    if len(costs) != len(cascade):
        raise InputError(f"costs must have one entry per stage ({len(cascade)}), got {len(costs)}.")
    return costs


def _divided(
    part: Dataset, validation: Dataset | float, plan: JointPlan
) -> tuple[Tensor, Dataset, Tensor]:
    """Rows to train on; examples and rows to judge on."""
    if isinstance(validation, Dataset):
        return torch.arange(len(part)), validation, torch.arange(len(validation))
    share = check_probability("validation", validation)
    order = stratified_order(part.labels.numpy(), seed=seed_for(plan.seed, "validation"))
    count = max(1, round(share * len(part)))
    if len(part) - count < 2:
        raise InputError(
            f"part must leave at least 2 examples to train on, got {len(part) - count} of "
            f"{len(part)}."
        )
    judged, rows = torch.from_numpy(order[:count]), torch.from_numpy(order[count:])
    return rows.sort().values, part, judged.sort().values


def _all_logits(model: JointModel, part: Dataset, plan: JointPlan) -> Tensor:
    found = []
    with evaluating(model), torch.no_grad(), in_bfloat16(plan.device, plan.bfloat16):
        for rows in torch.split(torch.arange(len(part)), plan.batch_size):
            found.append(model.logits(to_device(part.inputs_at(rows), plan.device)).cpu())
    return torch.cat(found)


def _trace_of(cascade: Cascade, part: Dataset, costs: Costs, plan: JointPlan) -> Trace:
    """Outputs of all stages, in evaluation mode and in full precision, as a record has them."""
    found = []
    with evaluating(cascade), torch.no_grad():
        for rows in torch.split(torch.arange(len(part)), plan.batch_size):
            found.append(cascade(to_device(part.inputs_at(rows), plan.device)).cpu())
    logits = torch.cat(found)
    if not bool(logits.isfinite().all()):
        raise InputError(
            f"A stage gives NaN or infinity on the validation examples, with learning_rate="
            f"{plan.learning_rate!r}. Take a lower one; the last checkpoint stays."
        )
    return Trace(
        topology=cascade.topology,
        labels=part.labels,
        classes=logits.shape[2],
        costs=costs,
        logits=logits,
        ids=part.ids,
    )
