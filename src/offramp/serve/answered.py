"""What an observer is told of a request, and what it makes of it.

Layer: serve.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from offramp._core.types import AnyBatch, BoolArray, FloatArray, Ids, IntArray
from offramp.policy.gears import REFERENCE
from offramp.runtime import REASONS, Prediction

#: Why answers are none of the policy: the server has cut them short. Nothing is promised of them.
CUT_SHORT = [REASONS.index(name) for name in ("deadline", "budget", "error")]


class Answered(NamedTuple):
    """A request that was answered.

    Args:
        came: When it came, in seconds of the observer's clock.
        rows: What was asked.
        ids: Of the examples, `(n,)`.
        prediction: What was answered.
        seconds: From the request to its answer.
        gear: What answered.
    """

    came: float
    rows: AnyBatch
    ids: Ids
    prediction: Prediction
    seconds: float
    gear: str

    @property
    def promised(self) -> BoolArray:
        """Whose answers a promise speaks of, `(n,)`."""
        if self.gear == REFERENCE:
            return np.zeros(len(self.ids), dtype=np.bool_)
        return ~np.isin(self.prediction.reason.cpu().numpy(), CUT_SHORT)


class Told(NamedTuple):
    """What drift is told of some answers.

    Args:
        gear: What answered.
        stage: Where each left, `(n,)`.
        confidence: How sure each answer is, `(n,)`; NaN where nobody says so.
        known: Whether the policy let it go there, `(n,)`.
    """

    gear: str
    stage: IntArray
    confidence: FloatArray
    known: BoolArray

    @classmethod
    def joined(cls, each: Sequence["Told"]) -> "Told | None":
        """Those of one gear, in order; None of none."""
        if not each:
            return None
        return cls(
            each[0].gear,
            *(np.concatenate(parts) for parts in zip(*(t[1:] for t in each), strict=True)),
        )


def told(heard: Sequence[Answered]) -> list[Told]:
    """What drift is told of each of some requests to one model."""
    if not heard:
        return []
    each = [one.prediction for one in heard]
    ends = np.cumsum([len(answer) for answer in each]).tolist()
    sure = [
        torch.full((len(answer),), torch.nan) if answer.confidence is None else answer.confidence
        for answer in each
    ]
    known = torch.cat([answer.reason for answer in each]).cpu().numpy() <= REASONS.index("last")
    stage = torch.cat([answer.stage for answer in each]).cpu().numpy()
    confidence = torch.cat([part.cpu() for part in sure]).double().numpy()
    return [
        Told(one.gear, stage[begin:end], confidence[begin:end], known[begin:end])
        for one, begin, end in zip(heard, [0, *ends], ends, strict=False)
    ]
