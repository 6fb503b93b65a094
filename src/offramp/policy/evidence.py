"""What a policy may look at: the outputs of the stages that an example has visited.

There is no label here and no other example's output, so a policy cannot peek at either.

Layer: policy.
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from offramp._core.errors import InputError
from offramp._core.outputs import StageOutput
from offramp.policy.features import Distribution


@final
class Evidence:
    """Outputs of the visited stages for `m` examples that stand before a decision.

    Args:
        outputs: For each stage the outputs held, or None where no example has visited it; what is
            added to the sequence later is seen.
        visited: True where an example has visited a stage, `(m, s)`; None for those who all came
            one way and tell the policy which (`Policy.decide_at`, `Policy.answer_at`).
        ids: Keys of the examples, `(m,)`, int64: they key the random numbers of random policies.
        rows: Positions of the `m` examples within `outputs`, or None if they are all, in order.
        known: Class probabilities of single stages that views of the same examples have computed
            before, for the same policy; it is added to.
    """

    def __init__(
        self,
        outputs: Sequence[StageOutput | None],
        visited: Bool[Tensor, "m s"] | None,
        ids: Int[Tensor, " m"],
        rows: Int[Tensor, " m"] | None = None,
        known: dict[int, Distribution] | None = None,
    ) -> None:
        self._outputs = outputs
        self._rows = rows
        self.visited = visited
        self.ids = ids
        self.known = known

    def __len__(self) -> int:
        return len(self.ids)

    def output(self, stage: int) -> StageOutput:
        """Outputs of a visited stage, gathered on first use; what unvisited rows hold is void."""
        held = self._outputs[stage]
        if held is None:
            raise InputError(f"Stage {stage} has not been visited by any of these examples.")
        return held if self._rows is None else held.take(self._rows)

    def on(self, path: Sequence[int]) -> Bool[Tensor, " m"]:
        """True where an example has visited exactly the stages of `path`.

        Raises:
            InputError: If the view was not told what has been visited.
        """
        if self.visited is None:
            raise InputError(
                "visited must be given where examples came by several paths, got None."
            )
        pattern = torch.zeros(self.visited.shape[1], dtype=torch.bool, device=self.visited.device)
        pattern[list(path)] = True
        return (self.visited == pattern).all(dim=1)
