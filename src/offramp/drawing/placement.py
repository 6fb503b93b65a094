"""Where to write the labels of marked points so that nothing covers anything.

Layer: drawing.  Source: none, greedy search over positions around each point.
"""

import numpy as np

from offramp._core.types import FloatArray

_DISTANCES = (1.0, 1.7, 2.6, 3.8, 5.5, 8.0, 12.0, 18.0)  # in units of the gap
_DIRECTIONS = 16
_NEAR = 1.7  # cost per unit of distance, and of turning away from the right
_COVERED_MARK = 4.0
_COVERED_POINT = 200.0
_NEARER = 40.0  # another point is nearer to the label than its own
_CROSSED = 60.0  # a line from the point to its label runs over another point or label
_COVERED_LABEL = 1e6  # per pixel: must never pay

Bounds = tuple[float, float, float, float]


def place_labels(
    anchors: FloatArray,
    sizes: FloatArray,
    marks: FloatArray,
    bounds: Bounds,
    *,
    gap: float = 7.0,
) -> FloatArray:
    """Find a place for each label near its point, the first ones first.

    A label never lies on another one while there is room, stays within the bounds, and avoids
    marks and curves as far as it can without going far away.

    Args:
        anchors: The points that the labels name, `(k, 2)`, pixels.
        sizes: Width and height of the labels, `(k, 2)`, pixels.
        marks: Positions of what should not be covered, `(o, 2)`, pixels.
        bounds: Left, bottom, right, top of the area, pixels.
        gap: Distance between a point and the nearest place for its label, pixels.

    Returns:
        Lower left corners of the labels, `(k, 2)`, pixels.

    >>> import numpy as np
    >>> at = np.array([[50.0, 50.0]])
    >>> place_labels(at, np.array([[20.0, 8.0]]), at, (0, 0, 100, 100))
    array([[57., 46.]])
    """
    corners = np.empty_like(anchors)
    for i, (anchor, size) in enumerate(zip(anchors, sizes, strict=True)):
        found, cost = _candidates(anchor, size, bounds, gap)  # (q, 2), (q,)
        cost += _COVERED_MARK * _covered(found, size, marks, gap / 3)
        others = np.delete(anchors, i, axis=0)
        cost += _COVERED_POINT * _covered(found, size, others, gap / 1.5)
        cost += _NEARER * _nearer(found, size, anchor, others)
        leaders = _leaders(anchor, found, size)  # (q, t, 2)
        cost += _CROSSED * _runs_over(leaders, others - gap / 1.5, others + gap / 1.5)
        cost += _CROSSED * _runs_over(leaders, corners[:i], corners[:i] + sizes[:i])
        for corner, other in zip(corners[:i], sizes[:i], strict=True):
            cost += _COVERED_LABEL * _shared_area(found, size, corner, other)
        corners[i] = found[int(np.argmin(cost))]
    return corners


def _candidates(
    anchor: FloatArray, size: FloatArray, bounds: Bounds, gap: float
) -> tuple[FloatArray, FloatArray]:
    """Places around a point, `(q, 2)`, and what each costs by itself, `(q,)`."""
    angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    towards = np.column_stack([np.cos(angles), np.sin(angles)]).round(9)  # (d, 2)
    # The edge or corner of the label that faces the point: -1 its left or bottom, 1 the other.
    edge = np.sign(towards) * np.minimum(1.0, np.abs(towards) * np.sqrt(2))
    places = [anchor + gap * far * towards + (edge - 1) * size / 2 for far in _DISTANCES]
    cost = [_NEAR * (far**1.3 + (1 - towards[:, 0]) / 4) for far in _DISTANCES]
    low, high = np.array(bounds[:2]), np.array(bounds[2:]) - size
    inside = np.clip(np.concatenate(places), low, np.maximum(low, high))
    return inside, np.concatenate(cost)


def _covered(corners: FloatArray, size: FloatArray, marks: FloatArray, margin: float) -> FloatArray:
    """Number of marks under a label at each place, `(q,)`."""
    low, high = corners[:, None] - margin, corners[:, None] + size + margin  # (q, 1, 2)
    inside = np.all((marks[None] > low) & (marks[None] < high), axis=2)  # (q, o)
    count: FloatArray = np.sum(inside, axis=1, dtype=np.float64)
    return count


def _nearer(
    corners: FloatArray, size: FloatArray, anchor: FloatArray, others: FloatArray
) -> FloatArray:
    """Number of other points that are nearer to a label at each place than its own, `(q,)`."""
    points = np.concatenate([anchor[None], others])[None]  # (1, k, 2)
    nearest = np.clip(points, corners[:, None], corners[:, None] + size)  # (q, k, 2)
    away = np.hypot(points[..., 0] - nearest[..., 0], points[..., 1] - nearest[..., 1])
    count: FloatArray = np.sum(away[:, 1:] < away[:, :1], axis=1, dtype=np.float64)
    return count


def _leaders(anchor: FloatArray, corners: FloatArray, size: FloatArray) -> FloatArray:
    """Positions on the line from the point to the nearest part of its label, `(q, t, 2)`."""
    nearest = np.clip(anchor, corners, corners + size)  # (q, 2)
    steps = np.linspace(0.1, 1.0, 10)
    leaders: FloatArray = anchor + steps[None, :, None] * (nearest - anchor)[:, None]
    return leaders


def _runs_over(leaders: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Number of boxes that the line to each place runs over, `(q,)`."""
    at = leaders[:, :, None]  # (q, t, 1, 2)
    inside = np.all((at > low) & (at < high), axis=3)  # (q, t, boxes)
    count: FloatArray = np.sum(np.any(inside, axis=1), axis=1, dtype=np.float64)
    return count


def _shared_area(
    corners: FloatArray, size: FloatArray, corner: FloatArray, other: FloatArray
) -> FloatArray:
    """Pixels that a label at each place shares with one that is placed, `(q,)`."""
    low = np.maximum(corners, corner)
    high = np.minimum(corners + size, corner + other)
    sides: FloatArray = np.clip(high - low, 0, None)
    return sides[:, 0] * sides[:, 1]
