"""Numbers as text: signs, units, nothing that reads as zero without being zero."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp._core import formatting as form


@given(difference=st.floats(-1, 1))
def test_a_loss_is_never_written_as_a_gain(difference):
    text = form.change(difference)
    if text != "0.00":
        assert text.startswith(form.MINUS if difference > 0 else "+")
        assert float(text[1:]) == pytest.approx(100 * abs(difference), abs=0.005001)


@given(low=st.floats(-1, 1), high=st.floats(-1, 1))
def test_an_interval_of_changes_starts_at_its_low_end(low, high):
    low, high = min(low, high), max(low, high)
    ends = form.change_interval((low, high)).split(f"{form.NBSP}to{form.NBSP}")
    numbers = [float(end.replace(form.MINUS, "-")) for end in ends]
    assert numbers[0] <= numbers[1]


@given(share=st.floats(1e-12, 1))
def test_a_share_above_zero_never_reads_as_zero(share):
    assert form.percent(share) not in (form.percent(0.0), f"0.0{form.NBSP}%")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "flops", "0"),
        (999.0, "flops", "999"),
        (2.5e9, "flops", "2.5 G"),
        (4e-10, "seconds", "0.4 ns"),
        (0.25, "joules", "250 mJ"),
        (1.5e-5, "usd", "$1.5e-05"),
        (0.0, "seconds", "0 s"),
        (12.5, "credits", "12.5"),
    ],
)
def test_costs_carry_their_unit(value, unit, text):
    assert form.amount(value, unit).replace(form.NBSP, " ") == text


def test_what_is_missing_is_a_dash():
    assert {form.percent(None), form.change(None), form.change_interval(None)} == {form.NONE}
    assert form.share_interval(None) == form.NONE


@given(text=st.text(max_size=80), length=st.integers(3, 40))
def test_a_shortened_name_fits_on_one_line(text, length):
    short = form.shortened(text, length)
    assert len(short) <= length
    assert "\n" not in short
