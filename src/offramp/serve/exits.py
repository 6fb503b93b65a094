"""Where examples left, and what was expected of them.

Layer: serve.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from jaxtyping import Int


@final
class Exits:
    """Counts who left at which stage.

    Args:
        stages: Names of all stages.
        tested: For each gear how many left at each stage where it was tested; empty if unknown.

    >>> exits = Exits(["a", "b"], {"fast": (3, 1)})
    >>> exits.count("fast", np.array([0, 0, 1, -1]))
    >>> exits.told()
    [{'name': 'a', 'exits': 2, 'expected': 0.75}, {'name': 'b', 'exits': 1, 'expected': 0.25}]
    """

    def __init__(self, stages: Sequence[str], tested: Mapping[str, Sequence[int]]) -> None:
        self._stages, self._tested = tuple(stages), tested
        self._left = np.zeros(len(self._stages), dtype=np.int64)
        self._answered = Counter[str]()  # by gear

    def count(self, gear: str, stage: Int[np.ndarray, " n"]) -> None:
        """Some examples have left, at these stages; -1 where nobody knows."""
        self._left += np.bincount(stage[stage >= 0], minlength=len(self._left))
        self._answered[gear] += len(stage)

    def told(self) -> list[dict[str, Any]]:
        """For each stage its name, who left there, and the share expected in these gears."""
        expected = np.zeros(len(self._left))
        for gear, n in self._answered.items():
            tested = np.array(self._tested.get(gear) or (), dtype=np.float64)
            expected = expected + n * tested / tested.sum() if len(tested) else expected * np.nan
        share = expected / max(self._answered.total(), 1)
        known = bool(self._answered) and np.isfinite(share).all()
        return [
            {"name": name, "exits": int(left), "expected": float(part) if known else None}
            for name, left, part in zip(self._stages, self._left, share, strict=True)
        ]
