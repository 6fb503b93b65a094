"""What a frontier figure shows: lines, marked points, a stripe.

Layer: drawing.
"""

from dataclasses import dataclass
from typing import final

from offramp._core.checks import check_shape
from offramp._core.types import FloatArray
from offramp.drawing.palette import CurveKind, PointKind


@final
@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of the frontier figure.

    Args:
        name: Its name in the legend.
        kind: Decides color, marker and dash.
        cost_ratio: Mean cost over that of the reference network, `(p,)`, any order.
        accuracy: Share of right answers, `(p,)`, in [0, 1].
    """

    name: str
    kind: CurveKind
    cost_ratio: FloatArray
    accuracy: FloatArray

    def __post_init__(self) -> None:
        check_shape("accuracy", self.accuracy.shape, self.cost_ratio.shape)


@final
@dataclass(frozen=True, kw_only=True)
class Point:
    """A marked and labeled point of the frontier figure.

    Args:
        name: Its label; "" writes none.
        kind: Decides color and marker.
        cost_ratio: Mean cost over that of the reference network.
        accuracy: Share of right answers, in [0, 1].
        cost_ci: Interval of the cost, drawn as a line; None draws none.
        accuracy_ci: Likewise of the accuracy.
    """

    name: str
    kind: PointKind
    cost_ratio: float
    accuracy: float
    cost_ci: tuple[float, float] | None = None
    accuracy_ci: tuple[float, float] | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Band:
    """Accuracies that are promised, or allowed, as a tinted stripe.

    Args:
        name: What it is, for the legend.
        low: The lowest of them.
        high: The highest: the reference's own.
    """

    name: str
    low: float
    high: float


@final
@dataclass(frozen=True, kw_only=True)
class Area:
    """For each of several costs the accuracies between two ends, as a tinted area.

    Args:
        name: What it is, for the legend.
        cost_ratio: Mean cost over that of the reference network, `(p,)`, rising.
        low: Lower ends, `(p,)`.
        high: Upper ends, `(p,)`.
    """

    name: str
    cost_ratio: FloatArray
    low: FloatArray
    high: FloatArray

    def __post_init__(self) -> None:
        check_shape("low", self.low.shape, self.cost_ratio.shape)
        check_shape("high", self.high.shape, self.cost_ratio.shape)
