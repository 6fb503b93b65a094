"""Where to write the labels of marked points so that nothing covers anything.

Layer: report.  Source: none, greedy search over positions around each point.
"""

import numpy as np

from offramp._core.types import FloatArray

_DISTANCES = (1.0, 2.2, 3.8, 6.0, 9.0, 13.0, 18.0)  # in units of the gap
_DIRECTIONS = 16
_COVERED_LABEL = 1e6  # what it costs to cover one pixel of another label; must never pay
_COVERED_MARK = 1.0


def place_labels(
    anchors: FloatArray,
    sizes: FloatArray,
    marks: FloatArray,
    bounds: tuple[float, float, float, float],
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
    placed: list[FloatArray] = []
    for i, (anchor, size) in enumerate(zip(anchors, sizes, strict=True)):
        candidates = _candidates(anchor, size, bounds, gap)  # (q, 2)
        away = np.arange(len(candidates), dtype=np.float64)  # nearer and rightwards first
        cost = away + _COVERED_MARK * 8 * _covered_marks(candidates, size, marks, gap / 3)
        for corner, other in zip(corners[:i], placed, strict=True):
            cost += _COVERED_LABEL * _shared_area(candidates, size, corner, other)
        corners[i] = candidates[int(np.argmin(cost))]
        placed.append(size)
    return corners


def _candidates(
    anchor: FloatArray, size: FloatArray, bounds: tuple[float, float, float, float], gap: float
) -> FloatArray:
    # Right, left, above, below, then between; the label's nearest edge or corner faces the point.
    steps = sorted(range(_DIRECTIONS), key=lambda d: (d % (_DIRECTIONS // 4) != 0, d % 8 != 0, d))
    angles = 2 * np.pi * np.array(steps) / _DIRECTIONS
    towards = np.column_stack([np.cos(angles), np.sin(angles)])  # (d, 2)
    edge = np.sign(np.round(towards, 6)) * np.minimum(1.0, np.abs(towards) * np.sqrt(2))
    places = [
        anchor + gap * distance * towards + (edge - 1) * size / 2 for distance in _DISTANCES
    ]
    corners = np.concatenate(places)
    low, high = np.array(bounds[:2]), np.array(bounds[2:]) - size
    return np.clip(corners, low, np.maximum(low, high))  # type: ignore[no-any-return]


def _covered_marks(
    corners: FloatArray, size: FloatArray, marks: FloatArray, margin: float
) -> FloatArray:
    low = corners[:, None] - margin  # (q, 1, 2)
    high = corners[:, None] + size + margin
    inside = ((marks[None] > low) & (marks[None] < high)).all(axis=2)  # (q, o)
    return inside.sum(axis=1).astype(np.float64)


def _shared_area(
    corners: FloatArray, size: FloatArray, corner: FloatArray, other: FloatArray
) -> FloatArray:
    low = np.maximum(corners, corner)
    high = np.minimum(corners + size, corner + other)
    return np.prod(np.clip(high - low, 0, None), axis=1)  # type: ignore[no-any-return]
