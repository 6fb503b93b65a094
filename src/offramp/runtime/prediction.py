"""What a batch is answered.

Layer: runtime.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from jaxtyping import Bool, Float, Int, Int8, Shaped
from torch import Tensor

from offramp._core.outputs import NO_LABEL as NO_LABEL
from offramp._core.outputs import StageOutput, alike
from offramp._core.topology import Path
from offramp.runtime.fallback import Fallback

#: Why an example left where it did; `Prediction.reason` holds positions in here. "policy": it
#: decided so. "last": nothing follows. "nonfinite": what came last was not finite, so an earlier
#: stage answers, or none. "deadline", "budget": the next stage would have taken too long, or cost
#: more. "error": no answer, because something raised it; only in the `answer` of a `RowsError`.
#: "failed": what came last was a service that failed for good. "spending": its spending cap was
#: reached. Then an earlier stage answers, or none.
REASONS: Final = (
    *("policy", "last", "nonfinite", "deadline", "budget", "error"),
    *("failed", "spending"),
)

#: Positions of examples within the batch, `(m,)` int64, ascending; None stands for all of them.
Rows = Tensor | None

#: Examples that leave: their path, who they are, what they are answered, what was kept of them, and
#: by how much what they paid differs from the costs.
Left = tuple[Path, Rows, StageOutput, Fallback | None, Tensor | None]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a cascade says about `n` examples, in the order they came in.

    The tensors are torch's inference tensors; `clone` gives ordinary ones.

    Args:
        log_probs: Log of the combined probabilities, `(n, c)`, float32; NaN where not `valid`. None
            where stages answer with labels and nothing is combined. Where labels with confidences
            are combined, the last of the columns stands for all labels outside the classes.
        labels: Most probable class, `(n,)`, ties to the lowest index; -1 where not `valid`. Where
            `log_probs` is None, the label that the stage gave, also one that is no class.
        stage: Index into `stage_names` of the stage at which each example left, the last that it
            visited, `(n,)`. It has answered, alone or combined with those before, unless `reason`
            is "nonfinite", "failed" or "spending": then the last visited one before it that could.
        path: Index into `paths` of the stages that each example visited, `(n,)`.
        reason: Why each left there, `(n,)`, int8: position in `REASONS`; `reasons` has the words.
        confidence: Largest combined probability, `(n,)` in [0, 1]; 0 where not `valid`. Where
            `log_probs` is None, the number that the stage gave; None where it gave a label alone.
        cost: Cost of everything that ran for each example, `(n,)`, float64, in the unit of the
            costs given; of services that tell it in this unit what they charged. Without costs what
            services charged, or None.
        valid: False where no visited stage gave finite logits, `(n,)`: there is no answer.
        nonfinite: Number of visited stages that gave NaN or infinity, or failed, `(n,)`.
        values: Of tasks without classes: the numbers that the answering stage gave, `(n, d)`,
            float32, NaN where not `valid`; `labels` are 0 then. Where a stage gives fewer numbers
            than another of the batch, the rest is NaN. None where there are classes.
        stage_names: Names of all stages of the cascade, in topological order.
        paths: All ways through the stages that the policy uses.
    """

    log_probs: Float[Tensor, "n c"] | None
    labels: Int[Tensor, " n"]
    stage: Int[Tensor, " n"]
    path: Int[Tensor, " n"]
    reason: Int8[Tensor, " n"]
    confidence: Float[Tensor, " n"] | None
    cost: Float[Tensor, " n"] | None
    valid: Bool[Tensor, " n"]
    nonfinite: Int[Tensor, " n"]
    values: Float[Tensor, "n d"] | None = None
    stage_names: tuple[str, ...]
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def reasons(self) -> list[str]:
        """Why each example left where it did, in words of `REASONS`."""
        return [REASONS[code] for code in self.reason.tolist()]

    def take(self, rows: Sequence[int]) -> "Prediction":
        """The answers to some of the examples, by position; views where these are neighbors."""
        index: Tensor | slice
        if rows and list(rows) == list(range(rows[0], rows[0] + len(rows))):
            index = slice(rows[0], rows[0] + len(rows))  # a quarter of the time
        else:
            index = torch.tensor(rows, device=self.labels.device)
        return replace(self, **{name: values[index] for name, values in self._tensors().items()})

    def singles(self) -> list["Prediction"]:
        """The answer to each example, views: a tenth of the time of taking them one by one."""
        tensors = self._tensors()
        each = zip(*(values.tensor_split(len(self)) for values in tensors.values()), strict=True)
        return [replace(self, **dict(zip(tensors, parts, strict=True))) for parts in each]

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
        n: Number of examples of the whole.
        parts: Positions in the whole, `(k,)`, and the answers to those.
    """
    first = parts[0][1]
    none = {"log_probs": torch.nan, "labels": NO_LABEL, "stage": -1, "path": -1, "cost": torch.nan}
    none["values"] = torch.nan
    none["reason"] = REASONS.index("error")
    tensors = {}
    for name in first._tensors():
        each = [getattr(part, name) for _, part in parts]
        if name == "values":  # the parts may have been answered by different stages
            each = alike(each)
        whole = each[0].new_full((n, *each[0].shape[1:]), none.get(name, 0))
        for (rows, _), part in zip(parts, each, strict=True):
            whole[rows.to(whole.device)] = part
        tensors[name] = whole
    return replace(first, **tensors)


def spread(
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


def gathered(
    n: int, parts: Sequence[tuple[Rows, StageOutput, Fallback | None]]
) -> tuple[StageOutput, Fallback | None]:
    """Answers, and what was kept of anybody, in the order of the examples."""
    rows, first, kept = parts[0]
    if rows is None:
        return first, kept
    everyone = [rows for rows, *_ in parts if rows is not None]
    whole = first.gathered(n, [said for _, said, _ in parts[1:]], everyone)
    if all(kept is None for *_, kept in parts):
        return whole, None
    everybody = Fallback.all(whole)
    for rows, _, kept in parts:
        if kept is not None:
            everybody = everybody.put(rows, kept)
    return whole, everybody
