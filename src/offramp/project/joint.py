"""From a configuration to networks trained together with when to stop: train, record, choose.

Layer: project.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.files import remove_folder
from offramp._core.schema import to_json
from offramp._core.types import Split
from offramp.data import CropAndFlip, Dataset
from offramp.evaluation import (
    Choice,
    Evaluation,
    Frontier,
    assignment,
    evaluate,
    fit,
    frontier_of_traces,
)
from offramp.fitting.registry import POLICIES
from offramp.fitting.stopping.network import with_stopping
from offramp.policy import Candidate
from offramp.project.build import all_but, cascade_of, costs_of, fitting_networks
from offramp.project.choose import choose
from offramp.project.config.sections import FitSection, JointSection, RunConfig
from offramp.recording import record
from offramp.stages import Cascade
from offramp.trace import Trace
from offramp.train import JointEpoch, JointTraining, sweep_joint, train_joint

WORK = "joint"  # checkpoints, in the folder of the run
STATIC_TRACE = "static.trace"
CHECKPOINTS = re.compile(r"(alone|cost_weight_.+)\.safetensors")
_THRESHOLDS = (0.2, 0.5, 0.8)
_COMBINES = ("stopping", "last")
_SAME = (  # of [joint] and of the arguments that `train_joint` and `sweep_joint` share
    *("policy_learning_rate", "weight_decay", "batch_size", "schedule", "estimator", "answers"),
    *("rollouts", "detached", "supervision", "frozen", "width", "validation", "patience"),
    *("bfloat16", "seed"),
)

Told = Callable[[float, JointEpoch], None]


@final
@dataclass(frozen=True, kw_only=True)
class Trained:
    """What was trained, recorded and chosen.

    Args:
        cascade: The networks, with the weights that were trained last.
        trainings: One for each cost_weight, the smallest first.
        static: Weights of the networks trained alone, or as they were given.
        costs: Of the stages, with what a stopping network takes.
        baseline: Trace of the networks alone.
        traces: Trace of each training.
        frontier: Of all trainings, against the networks alone.
        frozen: Of stopping networks over the networks alone.
    """

    cascade: Cascade
    trainings: tuple[JointTraining, ...]
    static: dict[str, Tensor]
    costs: Costs
    baseline: Trace
    traces: tuple[Trace, ...]
    frontier: Frontier
    frozen: Frontier

    def trace_of(self, candidate: Candidate) -> Trace:
        """The trace of the networks that a candidate is for."""
        return (
            self.baseline if candidate.method == "single" else self.traces[self._place(candidate)]
        )

    def load_for(self, candidate: Candidate) -> None:
        """Give the cascade the weights that a candidate is for."""
        if candidate.method == "single":
            self.cascade.load_state_dict(self.static)
        else:
            self.trainings[self._place(candidate)].load_into(self.cascade)

    def _place(self, candidate: Candidate) -> int:
        cost_weights = [training.cost_weight for training in self.trainings]
        return cost_weights.index(float(candidate.parameters["cost_weight"]))


def trace_name(cost_weight: float) -> str:
    """Name of the trace of one training.

    >>> trace_name(0.03)
    'joint_0.03.trace'
    """
    return f"joint_{cost_weight:g}.trace"


def train_all(
    config: RunConfig,
    examples: Dataset,
    folder: Path,
    *,
    device: str,
    restart: bool,
    told: Told,
) -> Trained:
    """Train the networks alone, unless they have weights; train them jointly; record; compare.

    Args:
        config: With stages.
        examples: With splits.
        folder: Of the run.
        device: Where everything runs.
        restart: Begin anew.
        told: Of each epoch as it ends, with its cost_weight; of the networks alone cost_weight is
            NaN.
    """
    how, work = config.joint, folder / WORK
    part, held = parts_of(examples, how)
    if restart:
        remove_folder(work, CHECKPOINTS)
    work.mkdir(parents=True, exist_ok=True)
    cascade = cascade_of(config, config.file.parent, examples.class_names)
    first = part.batch(0, 1).inputs
    with fitting_networks(first):
        classes = cascade.check(first)
    costs = with_stopping(costs_of(cascade, config.cost, held, device=device), classes, how.width)
    options: dict[str, Any] = {**_options(how), "costs": costs, "device": device}
    given = _weights_of(cascade)
    if trains_alone(config):
        _alone(cascade, part, how, work, options, told)
    static = _weights_of(cascade)
    baseline = _recorded(cascade, held, folder / STATIC_TRACE, costs, device)
    cascade.load_state_dict(given)
    trainings = _together(cascade, part, config, work, options, told)
    traces = []
    for training in trainings:
        training.load_into(cascade)
        path = folder / trace_name(training.cost_weight)
        traces.append(_recorded(cascade, held, path, costs, device))
    frontier, frozen = _frontiers(trainings, traces, baseline, config.fit)
    return Trained(
        cascade=cascade,
        trainings=trainings,
        static=static,
        costs=costs,
        baseline=baseline,
        traces=tuple(traces),
        frontier=frontier,
        frozen=frozen,
    )


def trains_alone(config: RunConfig) -> bool:
    """True if the networks are first trained alone, to compare with."""
    if config.joint.alone is not None:
        return config.joint.alone
    return any(stage.untrained for stage in config.stage)


def parts_of(examples: Dataset, how: JointSection) -> tuple[Dataset, Dataset]:
    """The examples to train on, and the others.

    Raises:
        InputError: If there are none to train on, or none to choose on.
    """
    try:
        part = examples.subset(how.part)
        examples.subset("fit")
    except InputError as error:
        raise InputError(
            f"Networks are trained jointly on the split {how.part!r} (joint.part), and the "
            f"stopping point is chosen on 'fit' and 'calibrate': {error} Give both a share in "
            "data.splits, such as { train = 0.6, fit = 0.2, calibrate = 0.1, test = 0.1 }."
        ) from error
    return part, all_but(examples, how.part, "the networks are trained")


def _options(how: JointSection) -> dict[str, Any]:
    """Arguments that `train_joint` and `sweep_joint` share."""
    augment = None if how.augment is None else CropAndFlip()
    return {"augment": augment, **{name: getattr(how, name) for name in _SAME}}


def _alone(
    cascade: Cascade,
    part: Dataset,
    how: JointSection,
    work: Path,
    options: dict[str, Any],
    told: Told,
) -> None:
    """Teach every network on every example, which is a joint training that only warms up.

    Its loss is the mean over the networks; `count` brings each one's own back, as if alone.
    """
    count = len(cascade)
    given = {**options, "patience": None, "weight_decay": how.weight_decay / count}
    train_joint(
        cascade,
        part,
        cost_weight=0.0,
        epochs=how.epochs,
        warm_up=how.epochs,
        learning_rate=how.learning_rate * count,
        checkpoint=work / "alone.safetensors",
        on_epoch=lambda epoch: told(float("nan"), epoch),
        **given,
    )


def _together(
    cascade: Cascade,
    part: Dataset,
    config: RunConfig,
    work: Path,
    options: dict[str, Any],
    told: Told,
) -> tuple[JointTraining, ...]:
    how = config.joint
    swept = sweep_joint(
        cascade,
        part,
        cost_weights=how.cost_weights,
        epochs=how.epochs,
        epochs_next=how.epochs_next,
        warm_up=how.warm_up,
        learning_rate=how.learning_rate,
        learning_rate_next=how.learning_rate_next,
        top=config.fit.top,
        work=work,
        on_epoch=told,
        **options,
    )
    return swept.trainings


def _weights_of(cascade: Cascade) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in cascade.state_dict().items()}


def _recorded(cascade: Cascade, examples: Dataset, path: Path, costs: Costs, device: str) -> Trace:
    return record(
        cascade, examples, path=path, costs=costs, device=device, resume=False, overwrite=True
    )


def _frontiers(
    trainings: tuple[JointTraining, ...],
    traces: list[Trace],
    baseline: Trace,
    asked: FitSection,
) -> tuple[Frontier, Frontier]:
    """Of the trainings, as trained and with stopping networks fitted anew; and of frozen ones."""
    top = asked.top
    fitted = baseline.subset("fit")
    reference = asked.reference or fitted.stages[fitted.most_accurate(top=top)]
    combines = asked.combines or list(_COMBINES)
    cascades = []
    for training, trace in zip(trainings, traces, strict=True):
        own = [
            training.candidate(threshold=threshold, combine=combine, reference=reference)
            for threshold in _THRESHOLDS
            for combine in combines
        ]
        again = POLICIES["stopping"](
            trace.subset("fit"), reference=reference, top=top, combines=combines
        )
        cascades.append((trace, [*own, *(_named(one, training.cost_weight) for one in again)]))
    frozen = fit(
        baseline, "stopping", reference=reference, top=top, combines=combines, progress=False
    )
    return frontier_of_traces(cascades, baseline, reference=reference), frozen


def _named(again: Candidate, cost_weight: float) -> Candidate:
    """A candidate of stopping networks fitted anew, by the cost_weight that the networks had."""
    parameters: dict[str, float | int | str] = {
        "cost_weight": cost_weight,
        "refitted": float(again.parameters["cost_weight"]),
    }
    return replace(again, method="joint", parameters=parameters)


def chosen_from(frontier: Frontier, asked: FitSection) -> Choice:
    """The point that `[fit]` asks for; without a limit what loses nothing."""
    free = asked.max_drop is None and asked.max_cost is None
    nothing = {"max_drop": 0.0, "delta": None}
    return choose(frontier, asked.model_copy(update=nothing) if free else asked)


def joint_to_dict(found: Trained, config: RunConfig, choice: Choice) -> dict[str, Any]:
    """What `joint.json` holds."""
    order: tuple[Split, ...] = ("test", "calibrate", "fit")
    split = next(s for s in order if found.baseline.has_split(s))
    part, single = found.baseline.subset(split), choice.candidate.method == "single"
    cost_weight = choice.candidate.parameters.get("cost_weight")
    other = chosen_from(found.frozen, config.fit)
    frozen = [evaluate(part, p.candidate, bootstrap=0) for p in (other.point, *found.frozen.pareto)]
    shown = found.trace_of(choice.candidate).subset(split)
    return {
        "format": "offramp-joint",
        "version": 1,
        "unit": found.costs.unit,
        "reference": found.frontier.reference,
        "split": split,
        "examples": len(part),
        "top": config.fit.top,
        "trace": STATIC_TRACE if single else trace_name(float(cost_weight or 0.0)),
        "cost_weights": [training.cost_weight for training in found.trainings],
        "epochs": [len(training.history) for training in found.trainings],
        "given": not trains_alone(config),
        "static": _static(found, split, config.fit.top),
        "chosen": {
            "cascade": choice.cascade,
            **_row(_on(found, choice.candidate, split)),
        },
        "frozen": {"cascade": other.cascade, **_row(frozen[0])},
        "curves": {
            "joint": [_row(_on(found, p.candidate, split)) for p in found.frontier.pareto],
            "frozen": [_row(one) for one in frozen[1:]],
        },
        "assignment": to_json(assignment(shown, choice.candidate)),
        "outcome": choice.outcome,
        "sentence": choice.sentence,
        "choice": to_json(choice),
    }


def _static(found: Trained, split: Split, top: int) -> list[dict[str, Any]]:
    """What each network costs alone, and its errors: trained alone, and after each training."""
    part, together = found.baseline.subset(split), [t.subset(split) for t in found.traces]
    return [
        {
            "name": name,
            "cost": float(cost),
            "error": 1 - part.accuracy(k, top=top),
            "together": [1 - trace.accuracy(k, top=top) for trace in together],
        }
        for k, (name, cost) in enumerate(zip(part.stages, part.stage_costs(), strict=True))
    ]


def _on(found: Trained, candidate: Candidate, split: Split) -> Evaluation:
    return evaluate(
        found.trace_of(candidate).subset(split),
        candidate,
        bootstrap=0,
        baseline=found.baseline.subset(split),
    )


def _row(found: Evaluation) -> dict[str, Any]:
    return {
        "label": found.candidate.label,
        "cost_weight": found.candidate.parameters.get("cost_weight"),
        "cost": found.cost,
        "cost_ratio": found.cost_ratio,
        "error": 1 - found.accuracy,
        "accuracy_drop": found.accuracy_drop,
    }
