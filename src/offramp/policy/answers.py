"""Answers at the end of visit paths: whether they are wrong, and how sure they are.

Everything is computed once, in chunks, with the very arithmetic of the policy that replays it, so
that a threshold means the same in both.

Layer: policy.
"""

from collections.abc import Iterable, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from offramp._core.topology import Path
from offramp._core.types import BoolArray, IntArray
from offramp.policy.combination import Combination
from offramp.policy.features import CONFIDENCES, Distribution, Feature
from offramp.policy.policy import scaled_log_probs
from offramp.trace import Trace

_CHUNK = 16_384


@final
class Answers:
    """What `n` examples would be answered at the end of each path.

    Args:
        part: The examples; logits, or labels with confidences.
        paths: The paths.
        combination: How the visited stages are combined; it has weights for the paths.
        temperatures: One per stage.
        confidences: Statistics of the answer's distribution to hold.
        top: A label is right when it is among the `top` best.
    """

    def __init__(
        self,
        part: Trace,
        paths: Iterable[Path],
        *,
        combination: Combination,
        temperatures: Sequence[float],
        confidences: Sequence[str],
        top: int,
    ) -> None:
        self.n = len(part)
        self.combination = combination
        self.temperatures = tuple(temperatures)
        self._wrong = {path: np.empty(self.n, dtype=np.bool_) for path in paths}
        self._columns = {
            (kind, path): np.empty(self.n, dtype=np.float32)
            for path in self._wrong
            for kind in confidences
        }
        self._orders: dict[tuple[str, Path], IntArray] = {}
        for start in range(0, self.n, _CHUNK):
            rows = slice(start, min(start + _CHUNK, self.n))
            self._fill(part.rows(torch.arange(rows.start, rows.stop)), rows, top)

    def _fill(self, part: Trace, rows: slice, top: int) -> None:
        stages = {
            k: Distribution(
                scaled_log_probs(part.output(k).scores(), torch.tensor(self.temperatures[k]))
            )
            for k in {j for path in self._wrong for j in path}
        }
        answers = {}
        for path, wrong in self._wrong.items():
            answer = self.combination.of(path, [stages[k] for k in self.combination.inputs(path)])
            wrong[rows] = (_best(answer, top) != part.labels[:, None]).all(dim=1).numpy()
            answers[path] = answer
        for (kind, path), column in self._columns.items():
            held = answers[path]

            def distribution(_: int, held: Distribution = held) -> Distribution:
                return held

            column[rows] = Feature(kind, path[-1]).of(distribution).numpy()

    def wrong(self, path: Path) -> BoolArray:
        """True where the answer at the end of `path` is wrong, `(n,)`."""
        return self._wrong[path]

    def sureness(self, kind: str, path: Path) -> np.ndarray:
        """A statistic of the answer with the sign that makes higher surer, `(n,)`, float32."""
        return np.float32(CONFIDENCES[kind]) * self._columns[kind, path]

    def order(self, kind: str, path: Path) -> IntArray:
        """Examples from the surest to the least sure, `(n,)`, sorted once."""
        if (kind, path) not in self._orders:
            self._orders[kind, path] = np.argsort(-self.sureness(kind, path), kind="stable")
        return self._orders[kind, path]


def _best(answer: Distribution, top: int) -> Tensor:
    """The `top` best labels as a policy predicts them, ties to the lowest index, `(m, top)`."""
    if top == 1:  # much faster than sorting
        return answer.label[:, None]
    return answer.log_probs.sort(dim=1, descending=True, stable=True).indices[:, :top]
