"""What stands for a network that another machine runs.

Layer: models.
"""

from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.batch import batch_size
from offramp._core.checks import check_class_count


@final
class Absent(nn.Module):
    """Has no weights, and no answer: whoever is asked here goes on.

    Args:
        classes: Of the network.

    >>> Absent(3)(torch.zeros(2, 1, 8, 8))
    tensor([[nan, nan, nan],
            [nan, nan, nan]])
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = check_class_count("classes", classes)
        # Where it is, its answers are.
        self.place = nn.Parameter(torch.zeros(0), requires_grad=False)

    def forward(self, *given: Any, **named: Any) -> Tensor:  # noqa: ANN401  (as the network)
        """NaN, `(m, classes)`."""
        batch = named or (given[0] if len(given) == 1 else given)
        return self.place.new_full((batch_size(batch), int(self.classes or 0)), torch.nan)
