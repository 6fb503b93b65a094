"""A network whose classes stand in another order.

Layer: models.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.errors import InputError
from offramp.models.logits import extract_logits


@final
class InOrder(nn.Module):
    """Answers as a network does, with its classes in another order.

    Args:
        model: Gives logits `(m, c)` in any form that `extract_logits` understands; or labels and
            confidences `(m,)`, in a tuple or under "labels" and "confidence".
        order: For each class of the answer, which of the network's it is: each of 0 to c - 1 once.

    Raises:
        InputError: If `order` is anything else.

    >>> InOrder(nn.Identity(), [2, 0, 1])(torch.tensor([[0.1, 0.2, 0.3]]))
    tensor([[0.3000, 0.1000, 0.2000]])
    """

    order: Tensor
    places: Tensor

    def __init__(self, model: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        given = [int(k) for k in order]
        if sorted(given) != list(range(len(given))) or len(given) < 2:
            raise InputError(f"order must have each of 0 to c - 1 once, got {given[:20]}.")
        self.model = model
        self.reads_rows = getattr(model, "reads_rows", False)
        # Not persistent: it belongs to the description of a cascade, not to its weights.
        self.register_buffer("order", torch.tensor(given), persistent=False)
        self.register_buffer("places", torch.tensor(given).argsort(), persistent=False)

    def forward(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401  (as the network)
        """What the network says, class by class in the other order."""
        said = self.model(*args, **named)
        if isinstance(said, Mapping) and "labels" in said:
            return {**said, "labels": self._turned(said["labels"])}
        if isinstance(said, tuple | list) and len(said) == 2:
            labels, confidence = said
            if all(isinstance(part, Tensor) and part.dim() == 1 for part in said):
                return self._turned(labels), confidence
        logits = extract_logits(said, len(self.order))
        if logits.shape[1] != len(self.order):
            raise InputError(
                f"order must have an entry for each of the {logits.shape[1]} classes, got "
                f"{len(self.order)}."
            )
        return logits.index_select(1, self.order)

    def _turned(self, labels: Tensor) -> Tensor:
        inside = (labels >= 0) & (labels < len(self.places))  # others name no class
        known = self.places[torch.where(inside, labels, 0).long()]
        return torch.where(inside, known.to(labels.dtype), labels)
