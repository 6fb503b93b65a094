"""Modules of stages that run in one piece with others (`offramp.stages.fuse`).

The first of them gives the carry of the last and, behind it, the logits of all, `(n, k, c)`; the
others hand that on, and each head picks its column.

Layer: stages.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.batch import apply
from offramp._core.errors import InputError
from offramp.models import extract_logits
from offramp.stages.stage import Reading, Stage


@final
class FusedSegments(nn.Module):
    """Several segments and what makes logits of each.

    Args:
        segments: One after the other.
        heads: For each what makes its logits, or None where nobody asks.
        carry: Whether the carry of the last is needed afterwards.
        classes: How many there are, where it is known.
    """

    def __init__(
        self,
        segments: Sequence[nn.Module],
        heads: Sequence[nn.Module | None],
        *,
        carry: bool,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.segments = nn.ModuleList(segments)
        self.heads = nn.ModuleDict({str(k): h for k, h in enumerate(heads) if h is not None})
        self._carry, self._classes = carry, classes
        self._reads = [Reading(f"The head of segment {k}") for k in range(len(heads))]
        self.eval()

    def forward(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401  (as the first segment)
        """Give the carry's tensors and the logits `(n, k, c)`; the logits alone without a carry."""
        result: Any = named or (args[0] if len(args) == 1 else args)
        said = []
        for k, segment in enumerate(self.segments):
            result = apply(segment, result)
            if str(k) in self.heads:
                answer = self._reads[k](self.heads[str(k)], result)
                said.append(extract_logits(answer, self._classes))
        logits = torch.stack(said, dim=1)
        if not self._carry:
            return logits
        return (result, logits) if isinstance(result, Tensor) else (*result, logits)


@final
class Same(nn.Module):
    """A segment that an earlier stage has run: hands on what it is given.

    >>> Same()(1, 2), Same()(1)
    ((1, 2), 1)
    """

    def forward(self, *args: Any) -> Any:  # noqa: ANN401  (a carry)
        """Give it back, in the form in which it came."""
        return args[0] if len(args) == 1 else args


@final
class Ahead(nn.Module):
    """Picks the logits of one of several stages that ran together.

    Args:
        column: Which.

    >>> Ahead(1)((torch.zeros(2, 7), torch.zeros(2, 3, 4))).shape
    torch.Size([2, 4])
    """

    def __init__(self, column: int) -> None:
        super().__init__()
        self.column = column
        self.eval()

    def forward(self, *given: Any) -> Tensor:  # noqa: ANN401  (a carry)
        """Pick them, from a carry in one or as several arguments."""
        logits: Tensor = fused_of(given[-1])
        return logits[:, self.column]


def fused_of(carry: Any) -> Tensor:  # noqa: ANN401  (of `FusedSegments`)
    """The logits `(n, k, c)` of all stages that ran together."""
    return carry if isinstance(carry, Tensor) else carry[-1]


@final
class Unasked(nn.Module):
    """The head of a joined stage whose answer nobody wanted.

    Args:
        stage: Its name, for the message.
    """

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def forward(self, *given: Any) -> Tensor:  # noqa: ANN401  (a carry)
        """Raise `InputError`."""
        raise InputError(unasked_text(self._stage))


def unasked_text(stage: str) -> str:
    """What is wrong where the answer of a stage is needed that nobody wanted when it was joined."""
    return (
        f"Stage {stage!r} was joined with others, and its answers were not among those asked for. "
        "Join them anew: join(cascade, blocks, asked=[...])."
    )


@final
class CarryOf(nn.Module):
    """A segment that continues stages that ran together: reads what is in front of the logits.

    Args:
        module: The segment.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.eval()

    def forward(self, *given: Any) -> Any:  # noqa: ANN401  (as the segment)
        """Run the segment."""
        return self.module(*given[:-1])


def column_of(stage: Stage) -> int | None:
    """Which of the logits that came together are a stage's; None where it ran by itself."""
    says = stage.module if stage.head is None else stage.head
    return says.column if isinstance(says, Ahead) else None


def is_passing(stage: Stage) -> bool:
    """Whether an earlier stage has run what this one stands for."""
    return isinstance(stage.module, PASSING)


#: What has nothing to compute.
PASSING = (Same, Ahead, Unasked)
