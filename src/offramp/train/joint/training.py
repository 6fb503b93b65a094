"""The loop that trains classifiers and stopping networks together.

Layer: train.  Source: methods.md 3; Guan et al., IJCAI 2018, sections 3.3 and 4.4. Which of the
estimators trains best, and what the default is: docs/adr/0016.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from offramp._core.batch import to_device
from offramp._core.checks import check_callable
from offramp._core.costs import Costs
from offramp._core.device import check_device
from offramp._core.progress import progress_bar
from offramp._core.temporaries import locked
from offramp.data import Dataset
from offramp.fitting.stopping.network import WIDTH
from offramp.fitting.stopping.objective import (
    Objective,
    drawn_label,
    drawn_stop,
    stage_cross_entropy,
    supervised_stop_loss,
)
from offramp.stages import Cascade
from offramp.train.checkpoint import (
    check_checkpoint,
    must_fit,
    read_checkpoint,
    write_checkpoint,
)
from offramp.train.features import Augment, augmented_on, in_bfloat16
from offramp.train.joint.plan import Answers, Estimator, JointPlan, Rollouts, Schedule
from offramp.train.joint.problem import Problem, Progress, make_problem
from offramp.train.joint.processes import Processes
from offramp.train.joint.result import JointEpoch, JointTraining
from offramp.train.joint.rollout import freeze_statistics
from offramp.train.state import (
    Numbers,
    check_finite,
    copied_weights,
    generator_for,
    random_state_kept,
    restore_state,
    seed_for,
    seed_layers,
    state_tensors,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def train_joint(
    cascade: Cascade,
    part: Dataset | Iterable[Any],
    *,
    cost_weight: float,
    epochs: int,
    seed: int,
    warm_up: int = 0,
    estimator: Estimator = "supervised",
    answers: Answers = "best",
    rollouts: Rollouts = "all",
    detached: bool = False,
    supervision: float = 1.0,
    frozen: bool = False,
    stages: Sequence[str] | None = None,
    costs: Costs | None = None,
    top: int = 1,
    width: int = WIDTH,
    start: JointTraining | None = None,
    validation: Dataset | float = 0.1,
    patience: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 0.1,
    policy_learning_rate: float = 0.1,
    weight_decay: float = 1e-4,
    schedule: Schedule = "steps",
    clip_norm: float = 5.0,
    augment: Augment | None = None,
    bfloat16: bool = False,
    checkpoint: Path | str | None = None,
    device: torch.device | str = "cpu",
    fabric: "Fabric | None" = None,
    on_epoch: Callable[[JointEpoch], None] | None = None,
    progress: bool = True,
) -> JointTraining:
    """Train a cascade's classifiers, in place, with a stopping network after each but the last.

    To be low is the mean error plus cost_weight times the cost, over that of the most expensive
    stage. On a CPU the same arguments give the same weights; the global random state is left as it
    was.

    Args:
        cascade: From scratch or pretrained. In evaluation mode on `device` afterwards.
        part: Usually `examples.subset("train")`; or a loader of batches (inputs, labels), which is
            read once and held.
        cost_weight: Loss per unit of cost, >= 0; usually 1e-4 to 1.
        epochs: Passes over the examples in all, at least 1.
        seed: Of first weights of the stopping networks, validation part, order, augmentation,
            rollouts, and of layers that draw at random.
        warm_up: The first of the epochs, in which every classifier is taught on every example.
        estimator: How the stopping networks learn. "supervised": whether going on is worth its
            cost. "exact": the gradient of the expected reward. "reinforce": an estimate of it from
            one drawn rollout for each example.
        answers: "best": the reward looks at the best labels, classifiers learn by cross-entropy
            on what stops at them. "combined": the same with the answer that is given at test time,
            of all stages visited, weighted by their probabilities of stopping: a later stage
            learns what the earlier ones do not say, with "supervised" on every example. "drawn":
            the answer is drawn from the classifier that stopped, and the reward alone teaches it,
            as in the paper.
        rollouts: "visited" runs a stage on those alone that reach it, for "reinforce";
            normalization layers then keep the statistics that they have.
        detached: No gradient leads from the stopping networks into the classifiers.
        supervision: Weight >= 0 of every stage's cross-entropy on every example beside the rest.
        frozen: Train the stopping networks alone.
        stages: Names of the stages to use, in order; by default all, as a chain.
        costs: Of the cascade; by default FLOPs, those of the stopping networks included.
        top: A label is right when it is among the `top` best.
        width: Of the stopping networks' inner layers.
        start: A training of the same cascade to start from; its weights are taken over.
        validation: Share of `part`, in (0, 1), drawn class by class; or examples of their own.
        patience: Stop after so many joint epochs that were not better, by error + cost_weight *
            cost on the validation examples, and take the best one's weights; None takes the last's.
        batch_size: Examples of a step.
        learning_rate: Of the classifiers' SGD with momentum 0.9, > 0.
        policy_learning_rate: Of the stopping networks', > 0; times 0.9 every four epochs.
        weight_decay: Of the classifiers, >= 0.
        schedule: Of `learning_rate`: "steps": a tenth after half and after three quarters of the
            epochs. "cosine": a short rise, then down to 0. "constant": as it is, for a training
            that another one goes on from.
        clip_norm: Largest norm of a step's gradient, > 0.
        augment: Changes each raw batch, such as `offramp.data.CropAndFlip`; a function of the batch
            and of a generator, both on the device of the training.
        bfloat16: Compute the stages in bfloat16 where the machine is fast at it.
        checkpoint: A `.safetensors` file written after each epoch. If it is there, the training
            goes on from it, to the same result as without interruption.
        device: Where everything runs, without `fabric`.
        fabric: A `lightning_fabric.Fabric`, launched: its processes divide every batch among
            them, on its devices and in its precision, "32-true" or "bf16-mixed". Normalization
            layers, weights of "supervised" and baselines of "reinforce" see each process's part
            alone; statistics are averaged after each pass.
            All processes return the same; the first alone writes and reports.
        on_epoch: Told of each epoch as it ends: the running cost and error.
        progress: Show a bar.

    Raises:
        InputError: If an argument is outside its domain; the cascade has one stage, or stages of
            different classes; labels are no integers; there are no examples; `start` or the
            checkpoint is of another cascade; a batch does not divide evenly among the processes
            of `fabric`, or its precision is another one; or the loss becomes NaN or infinite:
            training stops, and the last checkpoint stays.
        BusyError: If another process is training with the same checkpoint.
        StorageError: If the disk is full.

    >>> from offramp.data import arrays
    >>> inputs = torch.eye(4).repeat(20, 1)
    >>> part = arrays(inputs, [0, 1, 0, 1] * 20)
    >>> cascade = Cascade.from_models({"small": nn.Linear(4, 2), "large": nn.Linear(4, 2)})
    >>> costs = Costs.simple("usd", [1.0, 3.0])
    >>> trained = train_joint(cascade, part, cost_weight=0.1, epochs=3, seed=0, costs=costs)
    >>> trained.candidate().label
    'joint, small -> large (stopping, cost_weight 0.1, threshold 0.5)'
    """
    together = Processes(fabric)
    plan = JointPlan(
        cost_weight=cost_weight,
        epochs=epochs,
        seed=seed,
        warm_up=warm_up,
        estimator=estimator,
        answers=answers,
        rollouts=rollouts,
        detached=detached,
        supervision=0.0 if rollouts == "visited" or frozen else supervision,
        frozen=frozen,
        top=top,
        width=width,
        batch_size=batch_size,
        learning_rate=learning_rate,
        policy_learning_rate=policy_learning_rate,
        weight_decay=weight_decay,
        schedule=schedule,
        clip_norm=clip_norm,
        patience=patience,
        augment=augment,
        bfloat16=bfloat16 or together.bfloat16,
        checkpoint=None if checkpoint is None else check_checkpoint(checkpoint),
        device=check_device(device) if fabric is None else fabric.device,
    )
    if on_epoch is not None:
        check_callable("on_epoch", on_epoch)
    together.share_weights(cascade)
    writes = plan.checkpoint if together.first else None
    with locked(writes), random_state_kept(plan.device), torch.enable_grad():
        problem = make_problem(cascade, part, plan, stages, costs, validation, start)
        done = _run(problem, plan, together, on_epoch, progress and together.first)
    return problem.result(done)


@final
@dataclass(frozen=True, kw_only=True)
class _Facts:
    history: list[JointEpoch]
    best_epoch: int


def _run(
    problem: Problem,
    plan: JointPlan,
    together: Processes,
    on_epoch: Callable[[JointEpoch], None] | None,
    progress: bool,
) -> Progress:
    model = problem.model
    stepper = plan.stepper(model.cascade, model.networks)
    identity = problem.identity() if plan.checkpoint is not None else {}
    state = Progress(history=[], best_epoch=0, best=copied_weights(model))
    if plan.checkpoint is not None and plan.checkpoint.exists():
        tensors, facts = read_checkpoint(plan.checkpoint, _Facts, identity)
        with must_fit(plan.checkpoint, "the cascade"):
            best = restore_state(model, stepper, tensors)
        state = Progress(history=facts.history, best_epoch=facts.best_epoch, best=best)
    done = len(state.history)
    bar = progress_bar("Training jointly", plan.epochs, enabled=progress, done=done)
    with bar as advance:
        for epoch in range(done, plan.epochs):
            if _waited(state, plan):
                break
            loss, norm = _train_epoch(problem, stepper, plan, together, epoch)
            phase = "warm-up" if epoch < plan.warm_up else "joint"
            found = together.told(partial(problem.judged, phase, loss, norm))
            state.history.append(found)
            if _better(state, plan):
                state.best_epoch, state.best = len(state.history), copied_weights(model)
            if plan.checkpoint is not None and together.first:
                facts = _Facts(history=state.history, best_epoch=state.best_epoch)
                tensors = state_tensors(model, stepper, state.best)
                write_checkpoint(plan.checkpoint, tensors, identity, facts)
            if on_epoch is not None and together.first:
                on_epoch(found)
            advance(1, f"cost {found.cost_ratio:.3f}, error {found.error:.2%}")
    model.load_state_dict(state.best)
    model.eval()
    return state


def _better(state: Progress, plan: JointPlan) -> bool:
    """True if the last epoch's weights are to be kept; the warm-up's only until joint ones come."""
    if plan.patience is None or state.best_epoch <= plan.warm_up:
        return True
    *_, last = state.history
    best = state.history[state.best_epoch - 1]
    return last.objective(plan.cost_weight) < best.objective(plan.cost_weight)


def _waited(state: Progress, plan: JointPlan) -> bool:
    if plan.patience is None or state.best_epoch <= plan.warm_up:
        return False
    return len(state.history) - state.best_epoch >= plan.patience


def _train_epoch(
    problem: Problem,
    stepper: torch.optim.Optimizer,
    plan: JointPlan,
    together: Processes,
    epoch: int,
) -> tuple[float, float]:
    """One pass; returns its mean loss and the largest norm of a gradient."""
    model = problem.model
    model.train()
    if plan.frozen:
        model.cascade.eval()
    elif plan.rollouts == "visited" and epoch >= plan.warm_up:
        freeze_statistics(model.cascade)
    seed_layers(seed_for(plan.seed, *together.purpose("layers", epoch)), plan.device)
    where = augmented_on(problem.part, plan.device)
    augmenting = generator_for(plan.seed, *together.purpose("augment", epoch), device=where)
    drawing = generator_for(plan.seed, "rollout", epoch)
    batches = problem.batches(generator_for(plan.seed, "order", epoch))
    together.check_batch(len(batches[0]))
    losses = Numbers(partial(_finite, what="loss", plan=plan, epoch=epoch))
    norms = Numbers(partial(_finite, what="gradient", plan=plan, epoch=epoch))
    weights = [p for group in stepper.param_groups for p in group["params"]]
    for step, rows in enumerate(batches):
        plan.set_rates(stepper, epoch, (epoch + step / len(batches)) / plan.epochs)
        numbers = torch.rand(len(rows), len(problem.model.networks) + 1, generator=drawing)
        mine = together.part(len(rows))
        loss = _loss(
            problem, plan, rows[mine], numbers[mine], augmenting, warm=epoch < plan.warm_up
        )
        stepper.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        losses.add(together.averaged(loss.detach(), weights))
        norms.add(nn.utils.clip_grad_norm_(weights, plan.clip_norm))
        stepper.step()
    together.average_statistics(model)
    return sum(losses.all()) / len(batches), max(norms.all())


def _loss(
    problem: Problem,
    plan: JointPlan,
    rows: Tensor,
    numbers: Tensor,
    augmenting: torch.Generator,
    *,
    warm: bool,
) -> Tensor:
    model, objective = problem.model, problem.objective
    labels, numbers = problem.labels(rows), to_device(numbers, plan.device)
    if plan.rollouts == "visited" and not warm:
        with in_bfloat16(plan.device, plan.bfloat16):
            logits, odds, stopped = model.visited(problem.inputs(rows, augmenting), numbers[:, :-1])
        return _drawn(objective, logits, odds, labels, stopped, numbers)
    logits = problem.logits(rows, augmenting)
    if warm:
        odds = model.odds(logits.detach())
        rewards = objective.rewards(objective.said(logits, odds).detach(), labels)
        return stage_cross_entropy(logits, labels).mean() + supervised_stop_loss(odds, rewards)
    odds = model.odds(logits)
    if plan.estimator == "exact":
        loss = objective.exact_loss(logits, odds, labels)
    elif plan.estimator == "supervised":
        loss = objective.supervised_loss(logits, odds, labels)
    else:
        stopped = drawn_stop(odds.detach(), numbers[:, :-1])
        loss = _drawn(objective, logits, odds, labels, stopped, numbers)
    return loss + plan.supervision * stage_cross_entropy(logits, labels).mean()


def _drawn(
    objective: Objective,
    logits: Tensor,
    odds: Tensor,
    labels: Tensor,
    stopped: Tensor,
    numbers: Tensor,
) -> Tensor:
    own = logits.detach()[torch.arange(len(labels), device=labels.device), stopped]
    answered = drawn_label(own, numbers[:, -1])
    return objective.drawn_loss(logits, odds, labels, stopped, answered)


def _finite(number: float, what: str, plan: JointPlan, epoch: int) -> float:
    rates = {name: getattr(plan, name) for name in ("learning_rate", "policy_learning_rate")}
    return check_finite(number, what, epoch, rates, plan.checkpoint)
