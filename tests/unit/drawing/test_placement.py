"""Places for labels: apart, inside, near, off the marks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from offramp.drawing.placement import place_labels
from support.properties import examples

BOUNDS = (0.0, 0.0, 600.0, 400.0)


def shared(corners, sizes):
    """Largest area that two labels share, one pair at a time."""
    areas = [0.0]
    for i in range(len(corners)):
        for j in range(i):
            sides = [
                min(corners[i][d] + sizes[i][d], corners[j][d] + sizes[j][d])
                - max(corners[i][d], corners[j][d])
                for d in (0, 1)
            ]
            areas.append(max(sides[0], 0) * max(sides[1], 0))
    return max(areas)


@examples(40)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 10), spread=st.sampled_from([0.0, 5.0, 150.0]))
def test_labels_are_apart_and_inside_however_crowded_the_points(seed, k, spread):
    rng = np.random.default_rng(seed)
    anchors = np.array([300.0, 200.0]) + spread * rng.uniform(-1, 1, size=(k, 2))
    sizes = np.column_stack([rng.uniform(20, 80, k), np.full(k, 11.0)])
    corners = place_labels(anchors, sizes, anchors, BOUNDS)
    assert shared(corners, sizes) == 0
    assert (corners >= 0).all()
    assert (corners + sizes <= BOUNDS[2:]).all()


def test_the_check_above_can_fail():
    assert shared(np.zeros((2, 2)), np.full((2, 2), 3.0)) == 9


def test_a_label_at_the_edge_is_moved_inside():
    corners = place_labels(
        np.array([[598.0, 399.0]]), np.array([[50.0, 10.0]]), np.empty((0, 2)), BOUNDS
    )
    assert (corners[0] + [50.0, 10.0] <= [600.0, 400.0]).all()


def test_a_label_makes_way_for_a_curve():
    anchors, sizes = np.array([[100.0, 100.0]]), np.array([[40.0, 10.0]])
    curve = np.column_stack([np.arange(100.0, 200.0, 4.0), np.full(25, 100.0)])
    free = place_labels(anchors, sizes, anchors, BOUNDS)
    moved = place_labels(anchors, sizes, curve, BOUNDS)
    assert free[0][0] > 100
    low, high = moved[0], moved[0] + sizes[0]
    assert not ((curve > low) & (curve < high)).all(axis=1).any()


def test_no_points_need_no_places():
    nothing = np.empty((0, 2))
    assert place_labels(nothing, nothing, nothing, BOUNDS).shape == (0, 2)


def test_a_label_does_not_hide_another_point():
    anchors = np.array([[100.0, 100.0], [125.0, 100.0], [150.0, 100.0]])
    sizes = np.full((3, 2), [60.0, 10.0])
    for corner, size in zip(place_labels(anchors, sizes, anchors, BOUNDS), sizes, strict=True):
        assert not ((anchors > corner) & (anchors < corner + size)).all(axis=1).any()


def test_a_label_stands_nearer_to_its_own_point_than_to_any_other():
    anchors = np.array([[100.0, 100.0], [130.0, 108.0], [160.0, 96.0], [130.0, 85.0]])
    sizes = np.full((4, 2), [50.0, 10.0])
    corners = place_labels(anchors, sizes, anchors, BOUNDS)
    for i, (corner, size) in enumerate(zip(corners, sizes, strict=True)):
        away = np.hypot(*(anchors - np.clip(anchors, corner, corner + size)).T)
        assert int(away.argmin()) == i
