"""A network or function whose classes stand in another order.

Layer: models.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from offramp._core.arrays import array_of, tensor_of
from offramp._core.errors import InputError
from offramp._core.types import StageForm
from offramp.models.logits import extract_logits


@final
class InOrder(nn.Module):
    """Answers as a network or a function does, with its classes in another order.

    Args:
        model: A network, which gives logits `(m, c)` in any form that `extract_logits` understands,
            or labels and confidences `(m,)`, in a tuple or under "labels" and "confidence"; or a
            function on rows, which gives what `outputs` says. Names of classes stay as they are.
        order: For each class of the answer, which of the network's it is: each of 0 to c - 1 once.
        outputs: What it returns, as in `Stage`.

    Raises:
        InputError: If `order` is anything else.

    >>> InOrder(nn.Identity(), [2, 0, 1])(torch.tensor([[0.1, 0.2, 0.3]]))
    tensor([[0.3000, 0.1000, 0.2000]])
    """

    order: Tensor
    places: Tensor

    def __init__(
        self, model: nn.Module, order: Sequence[int], outputs: StageForm = "logits"
    ) -> None:
        super().__init__()
        given = [int(k) for k in order]
        if sorted(given) != list(range(len(given))) or len(given) < 2:
            raise InputError(f"order must have each of 0 to c - 1 once, got {given[:20]}.")
        self.model, self.outputs = model, outputs
        self.reads_rows = getattr(model, "reads_rows", False)
        self.strict = getattr(model, "strict", False)
        names = tuple(getattr(model, "class_names", ()))
        self.class_names = tuple(names[k] for k in given) if names else ()
        # Not persistent: it belongs to the description of a cascade, not to its weights.
        self.register_buffer("order", torch.tensor(given), persistent=False)
        self.register_buffer("places", torch.tensor(given).argsort(), persistent=False)

    def forward(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401  (as the network)
        """What the network says, class by class in the other order."""
        said = self.model(*args, **named)
        if isinstance(said, Mapping) and "labels" in said:
            return {**said, "labels": self._turned(said["labels"])}
        alone = self.outputs == "labels" and (self.reads_rows or _is_whole(said))
        if isinstance(said, tuple | list) and len(said) == 2 and not alone:
            labels, confidence = said
            plain = all(isinstance(part, Tensor) and part.dim() == 1 for part in said)
            if plain or (self.reads_rows and self.outputs == "confidence"):
                return self._turned(labels), confidence
        return self._turned(said) if alone else self._scores(said)

    def _scores(self, said: Any) -> Any:  # noqa: ANN401
        """Logits or probabilities `(m, c)`, column by column in the other order."""
        if not self.reads_rows or isinstance(said, Tensor):
            logits = extract_logits(said, len(self.order))
        elif all(isinstance(name, str) for name in getattr(said, "columns", (0,))):
            return said  # a table, whose columns are read by their names
        else:
            logits = tensor_of("scores", said)
        if logits.shape[-1] != len(self.order):
            raise InputError(
                f"order must have an entry for each of the {logits.shape[-1]} classes, got "
                f"{len(self.order)}."
            )
        return logits.index_select(-1, self.order)

    def _turned(self, labels: Any) -> Any:  # noqa: ANN401
        """Numbers of classes in the other order; what names a class, or none, as it is."""
        if isinstance(labels, str | bytes | None):
            return labels
        if _is_whole(labels):
            inside = (labels >= 0) & (labels < len(self.places))  # others are no class
            known = self.places[torch.where(inside, labels, 0).long()]
            return torch.where(inside, known.to(labels.dtype), labels)
        if isinstance(labels, Sequence):
            return [self._turned(one) for one in labels]
        if hasattr(labels, "__array__") and not isinstance(labels, np.generic):
            return self._turned(array_of("labels", labels, gaps=True).tolist())
        try:
            number = int(labels)
        except (TypeError, ValueError):
            return labels
        inside = number == labels and 0 <= number < len(self.places)
        return int(self.places[number]) if inside else labels


def _is_whole(said: object) -> bool:
    """True for a tensor of whole numbers."""
    return isinstance(said, Tensor) and not said.is_floating_point()
