"""A cascade with a policy, as one classifier: batch in, answers out.

Layer: runtime.  Source: methods.md 6.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Protocol, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp._core.types import Batch, Ids
from offramp.policy.keys import example_keys
from offramp.policy.policy import Policy
from offramp.policy.setting import Setting
from offramp.runtime.answer import Answer
from offramp.runtime.engine import Engine
from offramp.runtime.execution import Execution, Plan, plan_segments
from offramp.runtime.prepare import prepare
from offramp.stages import Stage, batch_size, to_device


@runtime_checkable
class Chosen(Protocol):
    """What a choice of operating point gives: it holds a setting."""

    @property
    def setting(self) -> Setting:
        """What to run."""
        ...


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


Choice = Setting | Policy | Chosen
Keys = Tensor | Ids | Sequence[int | str]


def policy_of(choice: Choice) -> Policy:
    """The policy of a setting, of an operating point, or itself."""
    if isinstance(choice, Policy):
        return choice
    return choice.policy if isinstance(choice, Setting) else choice.setting.policy


@final
class Adaptive(nn.Module):
    """Spends on each input only what it needs.

    Examples that leave cost nothing more: the survivors are gathered on the device and the next
    stage runs on them alone. Answers come in input order. Networks run in evaluation mode and
    without gradients, always. The policy is copied; the networks are the cascade's own, unless
    `optimise` is set. Raw input moves to the device of the model.

    Args:
        cascade: The networks. Stages that the policy does not need are not held.
        choice: A setting, an operating point, or a policy, made for the cascade's stages.
        costs: Cost of each stage; answers then say what each example cost.
        optimise: Run copies of the networks with batch-norms folded and channels last: faster,
            and equal to rounding instead of to the last bit.

    Raises:
        InputError: If the policy or the costs were made for other stages.

    >>> from offramp.stages import Cascade
    >>> cascade = Cascade.of_models({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    >>> model = Adaptive(cascade, Setting.single(cascade.topology, "b", reference="b"))
    >>> answer = model(torch.zeros(2, 4))
    >>> answer.stage.tolist(), answer.logits.shape
    ([1, 1], torch.Size([2, 3]))
    """

    _path_cost: Tensor
    _leaves_at: Tensor

    def __init__(
        self,
        cascade: StageSource,
        choice: Choice,
        *,
        costs: Costs | None = None,
        optimise: bool = False,
    ) -> None:
        super().__init__()
        policy = copy.deepcopy(policy_of(choice))
        check_made_for(cascade, policy.topology, costs)
        self.engine = Engine(policy)
        self.runner = _Runner(cascade, policy.topology, optimise=optimise)
        self.costs = costs
        paths = policy.topology.paths()
        price = [
            0.0 if costs is None else costs.path(policy.topology, p, policy.decided(p))
            for p in paths
        ]
        last = torch.tensor([path[-1] for path in paths])
        self.register_buffer("_path_cost", torch.tensor(price).double(), persistent=False)
        self.register_buffer("_leaves_at", last, persistent=False)
        self.to(self.runner.device).eval()

    @property
    def policy(self) -> Policy:
        """What decides."""
        return self.engine.policy

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of all stages of the cascade, also of those that the policy does not use."""
        return self.policy.topology.names

    @torch.inference_mode()
    def forward(
        self, batch: Batch, ids: Tensor | Ids | Sequence[int | str] | None = None
    ) -> Answer:
        """Answer a batch.

        Args:
            batch: Raw input of `n` examples, any `n` from 0 on.
            ids: Keys of the examples for policies that draw at random, `(n,)`, integers or names;
                by default 0, 1, 2... in each call.

        Raises:
            InputError: If the batch is not batch first, or `ids` has another length.
        """
        device = self._leaves_at.device
        n = batch_size(batch)
        keys = _keys(ids, n, device)
        if n == 0:
            return _nothing(self.runner.classes_for(batch, device), self, device)
        execution = self.runner.start(to_device(batch, device), n, device)
        routed = self.engine.route(execution.visit, keys)
        self.runner.classes = routed.logits.shape[1]
        return Answer.of(
            routed.logits,
            stage=self._leaves_at[routed.node],
            cost=None if self.costs is None else self._path_cost[routed.node],
            valid=routed.valid,
            nonfinite=routed.nonfinite,
            stage_names=self.stage_names,
        )

    def train(self, mode: bool = True) -> "Adaptive":
        """Stay in evaluation mode: nothing here is trained."""
        return super().train(False)


@final
class Static(nn.Module):
    """One stage run alone on every example: the fallback, and what to compare with.

    Args:
        cascade: The networks.
        stage: Index or name of the stage.
        costs: As for `Adaptive`.
        optimise: As for `Adaptive`; a fair comparison treats both alike.

    Raises:
        InputError: If the costs were made for other stages.
        UnknownNameError: If there is no such stage.

    >>> from offramp.stages import Cascade
    >>> cascade = Cascade.of_models({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    >>> Static(cascade, "a")(torch.zeros(1, 4)).stage.tolist()
    [0]
    """

    _where: Tensor

    def __init__(
        self,
        cascade: StageSource,
        stage: int | str,
        *,
        costs: Costs | None = None,
        optimise: bool = False,
    ) -> None:
        super().__init__()
        topology = cascade.topology.chain([stage])
        check_made_for(cascade, topology, costs)
        self.runner = _Runner(cascade, topology, optimise=optimise)
        self.costs = costs
        self.stage = topology.root
        self.stage_names = topology.names
        self._price = None if costs is None else costs.alone(topology, topology.root)
        self.register_buffer("_where", torch.tensor(topology.root), persistent=False)
        self.to(self.runner.device).eval()

    @torch.inference_mode()
    def forward(self, batch: Batch, ids: object = None) -> Answer:
        """Answer a batch; `ids` is there for the sake of `Adaptive` and changes nothing."""
        device = self._where.device
        n = batch_size(batch)
        if n == 0:
            return _nothing(self.runner.classes_for(batch, device), self, device)
        execution = self.runner.start(to_device(batch, device), n, device)
        logits = execution.visit(self.stage, None)
        finite = torch.isfinite(logits).all(dim=1)
        self.runner.classes = logits.shape[1]
        return Answer.of(
            torch.where(finite[:, None], logits.log_softmax(dim=1), torch.nan),
            stage=self._where.expand(n).clone(),
            cost=None if self._price is None else _costs(n, self._price, device),
            valid=finite,
            nonfinite=(~finite).long(),
            stage_names=self.stage_names,
        )

    def train(self, mode: bool = True) -> "Static":
        """Stay in evaluation mode: nothing here is trained."""
        return super().train(False)


@final
class _Runner(nn.Module):
    """The stages that a topology needs, ready to take batches."""

    def __init__(self, cascade: StageSource, topology: Topology, *, optimise: bool) -> None:
        super().__init__()
        self.topology = topology
        self.plans: dict[int, Plan] = plan_segments(topology)
        needed = {k for plan in self.plans.values() for k in plan.segments} | set(self.plans)
        chosen = {k: _used(cascade.stage(k), answers=k in self.plans) for k in sorted(needed)}
        if optimise:
            chosen = _optimised(chosen)
        self.stages = nn.ModuleDict({str(k): stage for k, stage in chosen.items()})
        self._by_index: dict[int, Stage] = chosen
        self.classes = len(cascade.class_names) or None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.stages.parameters()), torch.device("cpu"))

    def start(self, batch: Batch, n: int, device: torch.device) -> Execution:
        """A batch on its way; networks that somebody put into training mode are put back."""
        for stage in self._by_index.values():
            if stage.training or stage.module.training:
                stage.eval()
        return Execution(self.topology, self.plans, self._by_index, batch, n, device)

    def classes_for(self, empty: Batch, device: torch.device) -> int:
        """Number of classes; where no batch has shown it yet, one example of zeros does."""
        if self.classes is None:
            zeros = to_device(_zeros(empty), device)
            logits = self.start(zeros, 1, device).visit(self.topology.root, None)
            self.classes = logits.shape[1]
        return self.classes


def check_made_for(cascade: StageSource, topology: Topology, costs: Costs | None) -> None:
    """Raise `InputError` unless a policy's topology and the costs fit the cascade's stages."""
    topology.check_same_stages(cascade.topology, "the cascade")
    if costs is not None and len(costs) != len(topology):
        raise InputError(
            f"costs must have one entry per stage ({len(topology)}), got {len(costs)}."
        )


def _used(stage: Stage, *, answers: bool) -> Stage:
    """What is needed of a stage; where nobody may leave, its head is neither held nor moved."""
    if answers or stage.head is None:
        return stage
    return Stage(
        stage.name,
        stage.module,
        preprocess=stage.preprocess,
        source=stage.source,
        group=stage.group,
        spec=stage.spec,
    )


def _optimised(stages: Mapping[int, Stage]) -> dict[int, Stage]:
    prepared: dict[int, nn.Module] = {}  # stages of one group go on sharing their module

    def once(module: nn.Module) -> nn.Module:
        return prepared.setdefault(id(module), prepared.get(id(module)) or prepare(module))

    return {
        k: Stage(
            stage.name,
            once(stage.module),
            head=None if stage.head is None else once(stage.head),
            preprocess=stage.preprocess,
            source=stage.source,
            group=stage.group,
            spec=stage.spec,
            head_spec=stage.head_spec,
        )
        for k, stage in stages.items()
    }


def _keys(ids: Keys | None, n: int, device: torch.device) -> Tensor:
    if ids is None:
        return torch.arange(n, device=device)
    given = ids.long() if isinstance(ids, Tensor) else example_keys(np.asarray(ids))
    if given.shape != (n,):
        raise InputError(f"ids must have shape ({n},), one for each example, got {given.shape}.")
    return given.to(device)


def _zeros(batch: Batch) -> Batch:
    if isinstance(batch, Tensor):
        return batch.new_zeros(1, *batch.shape[1:])
    if isinstance(batch, Mapping):
        return {name: t.new_zeros(1, *t.shape[1:]) for name, t in batch.items()}
    return tuple(t.new_zeros(1, *t.shape[1:]) for t in batch)


def _costs(n: int, price: float, device: torch.device) -> Tensor:
    return torch.full((n,), price, dtype=torch.float64, device=device)


def _nothing(classes: int, model: Adaptive | Static, device: torch.device) -> Answer:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return Answer.of(
        torch.zeros(0, classes, device=device),
        stage=none,
        cost=None if model.costs is None else _costs(0, 0.0, device),
        valid=none.bool(),
        nonfinite=none.clone(),
        stage_names=model.stage_names,
    )
