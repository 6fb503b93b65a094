"""The head of a class exit: a dense layer whose one output is the log-odds of its class.

Layer: models.  Source: methods.md 2 (how a binary head stands in a trace).
"""

import math
from typing import final

import torch
from torch import Tensor, nn

from offramp._core.checks import check_positive_int
from offramp._core.errors import InputError


@final
class ClassHead(nn.Module):
    """A dense layer on pooled features, as a head with one logit per class.

    For one class the layer gives its log-odds z; in the logits stand log p at the class and
    log((1 - p)/(c - 1)) elsewhere. For all classes it gives a logit of each.

    Args:
        features: That it reads.
        classes: Number of logits `c`.
        target: The class, an index, or None for all.

    >>> head = ClassHead(3, 4, 2)
    >>> head.set_weights(torch.ones(3, 1), torch.zeros(1))
    >>> head(torch.zeros(1, 3)).detach().softmax(dim=1)
    tensor([[0.1667, 0.1667, 0.5000, 0.1667]])
    """

    def __init__(self, features: int, classes: int, target: int | None) -> None:
        super().__init__()
        self.dense = nn.Linear(features, classes if target is None else 1)
        self.classes, self.target = classes, target
        self.eval()

    def set_weights(self, weight: Tensor, bias: Tensor) -> None:
        """Take weights `(features, outputs)` and biases `(outputs,)`."""
        with torch.no_grad():
            self.dense.weight.copy_(weight.T)
            self.dense.bias.copy_(bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(m, features)` to logits `(m, c)`."""
        return class_logits(self.dense(features), self.classes, self.target)


def class_logits(outputs: Tensor, classes: int, target: int | None) -> Tensor:
    """Logits `(m, c)` of what a branch's dense layer gives, as `ClassHead` documents them.

    >>> class_logits(torch.zeros(1, 1), 3, 0).softmax(dim=1)
    tensor([[0.5000, 0.2500, 0.2500]])
    """
    if target is None:
        return outputs
    rest = nn.functional.logsigmoid(-outputs) - math.log(classes - 1)
    own = nn.functional.logsigmoid(outputs)  # (m, 1)
    return torch.cat([rest.expand(-1, target), own, rest.expand(-1, classes - target - 1)], dim=1)


def class_head(features: int, classes: int, *, target: int | None = None) -> ClassHead:
    """Build the head of a class exit.

    Args:
        features: Length of the vectors `(m, features)`.
        classes: Number of logits, at least 2.
        target: The class, an index, or None for all.

    Raises:
        InputError: If there is no such class.

    >>> class_head(3, 4, target=2)(torch.zeros(5, 3)).shape
    torch.Size([5, 4])
    """
    check_positive_int("features", features)
    if check_positive_int("classes", classes) < 2:
        raise InputError(f"classes must be at least 2, got {classes}.")
    if target is not None and not 0 <= target < classes:
        raise InputError(f"target must be a class in [0, {classes}) or None, got {target}.")
    return ClassHead(features, classes, target)
