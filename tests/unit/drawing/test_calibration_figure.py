"""The calibration figure: a panel for each stage, its groups where they belong."""

import numpy as np
import pytest

from offramp._core.errors import InputError
from offramp.drawing import Calibrated, calibration_figure


def panel(name="small", k=0.0):
    sure = [0.5, 0.7, 0.95]
    return Calibrated(
        name=name, confidence=sure, accuracy=[0.4 + k, 0.7, 0.9], counts=[5, 6, 7], error=0.0321
    )


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_each_stage_has_a_panel_and_none_covers_another(count, narrow):
    panels = [panel(f"stage {i}", 0.01 * i) for i in range(count)]
    figure = calibration_figure(panels, narrow=narrow)
    assert len(figure.axes) == count
    for axes, one in zip(figure.axes, panels, strict=True):
        drawn = [line.get_xydata() for line in axes.lines]
        want = np.column_stack([one.confidence, one.accuracy])
        assert any(d.shape == want.shape and np.allclose(d, want) for d in drawn)
        words = [text.get_text() for text in axes.texts]
        assert one.name in words
        assert any("3.2" in text for text in words)
    boxes = [axes.get_position() for axes in figure.axes]
    for i, one in enumerate(boxes):
        assert 0 <= one.x0 < one.x1 <= 1
        assert 0 <= one.y0 < one.y1 <= 1
        assert not any(one.overlaps(other) for other in boxes[:i])


def test_nothing_to_draw_is_an_error():
    with pytest.raises(InputError, match="at least one panel"):
        calibration_figure([])


def test_lengths_must_agree():
    with pytest.raises(InputError, match="counts"):
        Calibrated(name="s", confidence=[0.5], accuracy=[0.4], counts=[1, 2], error=0.1)
