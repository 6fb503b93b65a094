"""Records of a report: what they refuse."""

import numpy as np
import pytest

from offramp._core.errors import InputError
from offramp.report import ExampleImage, TimingRow
from offramp.report.inline import image_uri

VISITS = (("small", (("cat", 0.9), ("dog", 0.1))),)


@pytest.mark.parametrize("shape", [(8,), (3, 8, 8), (8, 8, 4), (0, 8), (1, 8, 8, 3)])
def test_pixels_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match=r"pixels must have shape .*, got \("):
        ExampleImage(pixels=np.zeros(shape, np.uint8), label="cat", visits=VISITS,
                     exit_stage="small", correct=True)  # fmt: skip


def test_an_exit_that_was_not_visited_is_refused():
    with pytest.raises(InputError, match=r"visited stages \['small'\], got 'large'"):
        ExampleImage(pixels=np.zeros((8, 8), np.uint8), label="cat", visits=VISITS,
                     exit_stage="large", correct=True)  # fmt: skip


def test_a_probability_above_one_is_refused():
    with pytest.raises(InputError, match=r"the probability of 'cat' must be in \[0, 1\], got 90"):
        ExampleImage(pixels=np.zeros((8, 8), np.uint8), label="cat", exit_stage="small",
                     visits=(("small", (("cat", 90.0),)),), correct=True)  # fmt: skip


def test_a_timing_row_refuses_what_is_no_time():
    with pytest.raises(InputError, match="adaptive_s must be finite and at least 0, got nan"):
        TimingRow(batch_size=1, static_s=1.0, adaptive_s=float("nan"), speedup=1.0, rounds=3)
    with pytest.raises(InputError, match="batch_size must be an integer of at least 1, got 0"):
        TimingRow(batch_size=0, static_s=1.0, adaptive_s=1.0, speedup=1.0, rounds=3)


def test_cost_tables_must_fit_the_stages(make_content):
    with pytest.raises(InputError, match=r"costs in 'flops' must have .* \(2\), got 3"):
        make_content(stages=("a", "b"))


def test_a_gap_that_is_not_finite_is_refused(make_content):
    with pytest.raises(InputError, match="gap_closed must be finite or None, got inf"):
        make_content(gap_closed=float("inf"))


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3), (500, 30, 3)])
def test_an_image_becomes_a_small_data_uri(shape):
    assert image_uri(np.zeros(shape, np.uint8)).startswith("data:image/png;base64,")
    noise = np.random.default_rng(0).integers(0, 256, size=(1000, 1000, 3), dtype=np.uint8)
    assert len(image_uri(noise)) < 80_000
