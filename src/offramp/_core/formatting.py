"""How numbers are written: another unit or sign of a number that was given, never a new one.

Layer: _core.
"""

from offramp._core.units import unit_of

NBSP = "\u00a0"  # a number never parts from its unit
MINUS = "\u2212"
NONE = "\u2013"
_TIMES = "\u00d7"


def percent(share: float | None, *, digits: int = 1) -> str:
    r"""A share in per cent; a tiny share never reads as zero.

    >>> percent(0.3921), percent(0.0), percent(0.0001), percent(None)
    ('39.2\xa0%', '0\xa0%', '<0.1\xa0%', '–')
    """
    if share is None:
        return NONE
    if share == 0:
        return f"0{NBSP}%"
    smallest = 10.0**-digits
    if 0 < 100 * share < smallest / 2:
        return f"<{smallest:.{digits}f}{NBSP}%"
    return f"{signed_minus(100 * share, digits)}{NBSP}%"


def saving(cost_ratio: float) -> str:
    r"""How far a cost ratio is from 1, in per cent.

    >>> saving(0.392), saving(1.02), saving(1.0)
    ('−60.8\xa0%', '+2.0\xa0%', '0\xa0%')
    """
    if cost_ratio == 1:
        return percent(0.0)
    return f"{MINUS if cost_ratio <= 1 else '+'}{percent(abs(1 - cost_ratio))}"


def change(difference: float | None) -> str:
    """A loss difference as the change of accuracy it means, in points: the sign is turned.

    >>> change(-0.0021), change(0.004), change(0.0)
    ('+0.21', '−0.40', '0.00')
    """
    if difference is None:
        return NONE
    text = f"{abs(100 * difference):.2f}"
    if text == "0.00":
        return text
    return f"{MINUS if difference > 0 else '+'}{text}"


def points(share: float) -> str:
    """A share as points of accuracy, without zeros at the end.

    >>> points(0.01), points(0.005), points(0.0)
    ('1', '0.5', '0')
    """
    return f"{100 * share:.4g}"


def changed_words(difference: float, measure: str = "accuracy") -> str:
    """A loss difference in words.

    >>> changed_words(-0.0021), changed_words(0.004), changed_words(0.0)
    ('gains 0.21 points of accuracy', 'loses 0.40 points of accuracy', 'keeps its accuracy')
    """
    points = f"{abs(100 * difference):.2f}"
    if points == "0.00":
        return f"keeps its {measure}"
    return f"{'loses' if difference > 0 else 'gains'} {points} points of {measure}"


def change_interval(interval: tuple[float, float] | None) -> str:
    r"""An interval of a loss difference as one of the change of accuracy, low end first.

    >>> change_interval((-0.01, 0.002))
    '−0.20\xa0to\xa0+1.00'
    """
    return NONE if interval is None else _range(change(interval[1]), change(interval[0]))


def share_interval(interval: tuple[float, float] | None) -> str:
    r"""An interval of shares, in per cent.

    >>> share_interval((0.35, 0.4))
    '35.0\xa0to\xa040.0\xa0%'
    """
    if interval is None:
        return NONE
    low, high = (signed_minus(100 * end, 1) for end in interval)
    return f"{_range(low, high)}{NBSP}%"


def times(ratio: float) -> str:
    """A ratio of speeds.

    >>> times(2.518), times(14.2)
    ('2.52×', '14.2×')
    """
    return (f"{ratio:.3g}" if ratio >= 10 else f"{ratio:.2f}") + _TIMES


def seconds(value: float) -> str:
    r"""A duration with a prefix.

    >>> seconds(0.00123), seconds(12.0), seconds(0.0)
    ('1.23\xa0ms', '12\xa0s', '0\xa0s')
    """
    return amount(value, "seconds")


def amount(value: float, unit: str) -> str:
    r"""A cost in its unit.

    >>> amount(81.1e6, "flops"), amount(0.0012, "seconds"), amount(0.015, "usd"), amount(3.0, "eur")
    ('81.1\xa0M', '1.2\xa0ms', '$0.015', '3')
    """
    return unit_of(unit).text(value, space=NBSP, alone=True)


def unit_name(unit: str) -> str:
    """A unit's name for a heading; unknown ones as they are.

    >>> unit_name("flops"), unit_name("credits")
    ('FLOPs', 'credits')
    """
    return unit_of(unit).words


def shortened(text: str, length: int = 24) -> str:
    """A name that fits into a figure: one line, the middle left out where it is long.

    >>> shortened("resnet56"), shortened("a" * 20 + "b" * 20, 11)
    ('resnet56', 'aaaaa…bbbbb')
    """
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    tail = (length - 1) // 2
    return f"{line[: length - 1 - tail]}…{line[len(line) - tail :]}"


def signed_minus(value: float, digits: int) -> str:
    """A number with a real minus sign.

    >>> signed_minus(-1.25, 1)
    '−1.2'
    """
    return f"{value:.{digits}f}".replace("-", MINUS)


def _range(low: str, high: str) -> str:
    return f"{low}{NBSP}to{NBSP}{high}"
