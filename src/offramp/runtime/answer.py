"""The answer to a batch.

Layer: runtime.
"""

from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NO_LABEL = -1  # label of an example that no stage could answer; 0 would be a class


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a cascade says about `n` examples, in the order they came in.

    The tensors are torch's inference tensors; `clone` gives ordinary ones.

    Args:
        logits: Log of the combined probabilities, `(n, c)`, float32; NaN where not `valid`.
        labels: Most probable class, `(n,)`, ties to the lowest index; -1 where not `valid`. Where
            stages answer with labels and confidences, `c` stands for a label outside the classes.
        stage: Index into `stage_names` of the stage at which each example left, `(n,)`.
        confidence: Largest combined probability, `(n,)` in [0, 1]; 0 where not `valid`.
        cost: Cost of everything that ran for each example, `(n,)`, float64, in the unit of the
            costs given; None where none were given.
        valid: False where no visited stage gave finite logits, `(n,)`: there is no answer.
        nonfinite: Number of visited stages that gave NaN or infinity, `(n,)`.
        stage_names: Names of all stages of the cascade, in topological order.
    """

    logits: Float[Tensor, "n c"]
    labels: Int[Tensor, " n"]
    stage: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    cost: Float[Tensor, " n"] | None
    valid: Bool[Tensor, " n"]
    nonfinite: Int[Tensor, " n"]
    stage_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def clone(self) -> "Answer":
        """The same in ordinary tensors, which may be changed in place and used with gradients.

        Networks run in inference mode, which is faster; what comes out of it allows neither.

        >>> with torch.inference_mode():
        ...     yes, none = torch.tensor([True]), torch.tensor([0])
        ...     answer = Answer.of(torch.tensor([[0.25, 0.75]]).log(), stage=none, cost=None,
        ...                        valid=yes, nonfinite=none, stage_names=("a",))
        >>> answer.logits.is_inference(), answer.clone().logits.is_inference()
        (True, False)
        """
        with torch.inference_mode(False), torch.no_grad():
            tensors: dict[str, Any] = {
                name: value.clone()
                for name in self.__slots__
                if isinstance(value := getattr(self, name), Tensor)
            }
        return replace(self, **tensors)

    @classmethod
    def of(
        cls,
        logits: Float[Tensor, "n c"],
        *,
        stage: Int[Tensor, " n"],
        cost: Float[Tensor, " n"] | None,
        valid: Bool[Tensor, " n"],
        nonfinite: Int[Tensor, " n"],
        stage_names: tuple[str, ...],
        sound: bool = False,
    ) -> "Answer":
        """Label and confidence follow from log-probabilities.

        Args:
            logits: As in the class, and so are the others.
            stage: As in the class.
            cost: As in the class.
            valid: As in the class.
            nonfinite: As in the class.
            stage_names: As in the class.
            sound: True where it is known that all are valid.

        >>> yes, none = torch.tensor([True]), torch.tensor([0])
        >>> Answer.of(torch.tensor([[0.25, 0.75]]).log(), stage=none, cost=None, valid=yes,
        ...           nonfinite=none, stage_names=("a",)).labels
        tensor([1])
        """
        best, labels = logits.max(dim=1)  # ties go to the first
        confidence = best.exp()
        return cls(
            logits=logits,
            labels=labels if sound else torch.where(valid, labels, NO_LABEL),
            stage=stage,
            confidence=confidence if sound else torch.where(valid, confidence, 0.0),
            cost=cost,
            valid=valid,
            nonfinite=nonfinite,
            stage_names=stage_names,
        )
