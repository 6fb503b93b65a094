"""The answer to a batch.

Layer: runtime.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from jaxtyping import Bool, Float, Int, Int8, Shaped
from torch import Tensor

from offramp._core.costs import Costs
from offramp._core.topology import Path
from offramp.policy.policy import Policy
from offramp.runtime.carries import Rows
from offramp.runtime.fallback import Fallback

NO_LABEL = -1  # label of an example that no stage could answer; 0 would be a class

#: Why an example left where it did; `Answer.reason` holds positions in here. "policy": it decided
#: so. "last": nothing follows. "nonfinite": what came last was not finite, so an earlier stage
#: answers, or none. "deadline", "budget": the next stage would have taken too long, or cost more.
#: "error": no answer, because something raised it; only in the `answer` of a `RowsError`.
REASONS: Final = ("policy", "last", "nonfinite", "deadline", "budget", "error")

#: Dataset that leave: their path, who they are, and what `InFlight.predict` says of them.
Left = tuple[Path, Rows, Tensor, Fallback | None]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a cascade says about `n` examples, in the order they came in.

    The tensors are torch's inference tensors; `clone` gives ordinary ones.

    Args:
        log_probs: Log of the combined probabilities, `(n, c)`, float32; NaN where not `valid`.
        labels: Most probable class, `(n,)`, ties to the lowest index; -1 where not `valid`. Where
            stages answer with labels and confidences, `c` stands for a label outside the classes.
        stage: Index into `stage_names` of the stage at which each example left, `(n,)`.
        path: Index into `paths` of the stages that each example visited, `(n,)`.
        reason: Why each left there, `(n,)`, int8: position in `REASONS`; `reasons` has the words.
        confidence: Largest combined probability, `(n,)` in [0, 1]; 0 where not `valid`.
        cost: Cost of everything that ran for each example, `(n,)`, float64, in the unit of the
            costs given; None where none were given.
        valid: False where no visited stage gave finite logits, `(n,)`: there is no answer.
        nonfinite: Number of visited stages that gave NaN or infinity, `(n,)`.
        stage_names: Names of all stages of the cascade, in topological order.
        paths: All ways through the stages that the policy uses.
    """

    log_probs: Float[Tensor, "n c"]
    labels: Int[Tensor, " n"]
    stage: Int[Tensor, " n"]
    path: Int[Tensor, " n"]
    reason: Int8[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    cost: Float[Tensor, " n"] | None
    valid: Bool[Tensor, " n"]
    nonfinite: Int[Tensor, " n"]
    stage_names: tuple[str, ...]
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def reasons(self) -> list[str]:
        """Why each example left where it did, in words of `REASONS`."""
        return [REASONS[code] for code in self.reason.tolist()]

    def take(self, rows: Sequence[int]) -> "Prediction":
        """The answers to some of the examples, by position."""
        index = torch.tensor(rows, device=self.labels.device)
        return replace(self, **{name: values[index] for name, values in self._tensors().items()})

    def _tensors(self) -> dict[str, Any]:
        each = ((name, getattr(self, name)) for name in self.__slots__)
        return {name: value for name, value in each if isinstance(value, Tensor)}

    def clone(self) -> "Prediction":
        """The same in ordinary tensors, which may be changed in place and used with gradients.

        Networks run in inference mode, which is faster; what comes out of it allows neither.

        >>> from offramp.runtime import Adaptive
        >>> from offramp.stages import Cascade
        >>> cascade = Cascade.from_models({"a": torch.nn.Linear(4, 3)})
        >>> answer = Adaptive.single(cascade, "a")(torch.zeros(2, 4))
        >>> answer.log_probs.is_inference(), answer.clone().log_probs.is_inference()
        (True, False)
        """
        with torch.inference_mode(False), torch.no_grad():
            tensors = {name: value.clone() for name, value in self._tensors().items()}
        return replace(self, **tensors)


def joined(n: int, parts: Sequence[tuple[Tensor, Prediction]]) -> Prediction:
    """One answer of several, of the same model; who is in no part has none, for an error.

    Args:
        n: Dataset of the whole.
        parts: Positions in the whole, `(k,)`, and the answers to those.
    """
    first = parts[0][1]
    none = {"log_probs": torch.nan, "labels": NO_LABEL, "stage": -1, "path": -1, "cost": torch.nan}
    none["reason"] = REASONS.index("error")
    tensors = {}
    for name, like in first._tensors().items():
        whole = like.new_full((n, *like.shape[1:]), none.get(name, 0))
        for rows, part in parts:
            whole[rows.to(whole.device)] = getattr(part, name)
        tensors[name] = whole
    return replace(first, **tensors)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What answers say of who left at the end of each path of a policy.

    Args:
        index: Of each path, its position among all.
        stage: Of each path, the stage at its end.
        reason: Of each path, why who leaves there does so.
        cost: Of each path, or None.
        stage_names: Names of all stages of the cascade.
    """

    index: Mapping[Path, int]
    stage: tuple[int, ...]
    reason: tuple[int, ...]
    cost: tuple[float, ...] | None
    stage_names: tuple[str, ...]

    @classmethod
    def of(cls, policy: Policy, costs: Costs | None = None) -> "Ends":
        """Those of a policy, and what its paths cost.

        >>> from offramp._core.topology import Topology
        >>> Ends.of(Policy(Topology.of(["a", "b"]).chain(["b"]), {})).reason
        (1,)
        """
        topology, paths = policy.topology, policy.topology.paths()
        follows = [bool(topology.children(path[-1])) for path in paths]
        return cls(
            index={path: i for i, path in enumerate(paths)},
            stage=tuple(path[-1] for path in paths),
            reason=tuple(REASONS.index("policy" if more else "last") for more in follows),
            cost=None
            if costs is None
            else tuple(costs.path(topology, path, policy.decided(path)) for path in paths),
            stage_names=topology.names,
        )

    def answer(self, n: int, left: Sequence[Left], reason: str | None = None) -> Prediction:
        """The answer to `n` examples, once all have left.

        Args:
            n: Their number.
            left: All of them, by path; no example is in two parts.
            reason: Why they left, where it was not the policy that let them go.
        """
        log_probs, kept = _gathered(n, [(rows, said, kept) for _, rows, said, kept in left])
        device, nodes = log_probs.device, [(self.index[path], rows) for path, rows, *_ in left]
        why = _spread(n, nodes, self.reason, torch.int8, device)
        best, labels = log_probs.max(dim=1)  # ties go to the first
        confidence = best.exp()
        if kept is None:
            valid = torch.ones(n, dtype=torch.bool, device=device)
            nonfinite = torch.zeros(n, dtype=torch.int64, device=device)
        else:
            valid, nonfinite = kept.valid, kept.nonfinite
            labels = torch.where(valid, labels, NO_LABEL)
            confidence = torch.where(valid, confidence, 0.0)
            why = why.masked_fill(kept.behind, REASONS.index("nonfinite"))
        if reason is not None:
            why = torch.full_like(why, REASONS.index(reason))
        costs = self.cost
        return Prediction(
            log_probs=log_probs,
            labels=labels,
            stage=_spread(n, nodes, self.stage, torch.int64, device),
            path=_spread(n, nodes, range(len(self.stage)), torch.int64, device),
            reason=why,
            confidence=confidence,
            cost=None if costs is None else _spread(n, nodes, costs, torch.float64, device),
            valid=valid,
            nonfinite=nonfinite,
            stage_names=self.stage_names,
            paths=tuple(self.index),
        )


def _spread(
    n: int,
    nodes: Sequence[tuple[int, Rows]],
    values: Sequence[float],
    dtype: torch.dtype,
    device: torch.device,
) -> Shaped[Tensor, " n"]:
    """For each example the value of the path that it took."""
    if len(nodes) == 1:
        return torch.full((n,), values[nodes[0][0]], dtype=dtype, device=device)
    found = torch.empty(n, dtype=dtype, device=device)
    for node, rows in nodes:
        found.index_fill_(0, rows, values[node])  # type: ignore[arg-type]
    return found


def _gathered(
    n: int, parts: Sequence[tuple[Rows, Tensor, Fallback | None]]
) -> tuple[Tensor, Fallback | None]:
    """Log-probabilities, and what was kept of anybody, in the order of the examples."""
    rows, log_probs, kept = parts[0]
    if rows is None:
        return log_probs, kept
    whole = log_probs.new_empty(n, log_probs.shape[1])
    for rows, part, _ in parts:
        whole.index_copy_(0, rows, part)  # type: ignore[arg-type]
    if all(kept is None for *_, kept in parts):
        return whole, None
    everybody = Fallback.none(n, log_probs)._replace(valid=torch.ones_like(whole[:, 0]).bool())
    for rows, _, kept in parts:
        if kept is not None:
            everybody = everybody.put(rows, kept)
    return whole, everybody
