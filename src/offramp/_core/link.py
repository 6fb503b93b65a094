"""A link between two places: how much it carries, and how long an answer is on the way.

Layer: _core.
"""

import math
import re
from dataclasses import dataclass
from typing import final

from offramp._core.errors import InputError

_RATES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_RATE = re.compile(r"([0-9.]+)\s*([kKmMgG]?)(bit|B)(?:/s|ps)")
_TIME = re.compile(r"([0-9.]+)\s*(ms|s)", re.IGNORECASE)


@final
@dataclass(frozen=True, kw_only=True)
class Link:
    """What one example pays for going from one place to the next.

    Args:
        bandwidth: Bytes in a second, above 0.
        round_trip: Seconds, at least 0.
        handling: Seconds that client and server take for a call, beside the stages; at least 0.

    Raises:
        InputError: If a value is outside its domain.

    >>> link = Link.parse("20 Mbit/s, 50 ms")
    >>> link.bandwidth, link.round_trip, round(link.seconds(25_000), 3)
    (2500000.0, 0.05, 0.06)
    """

    bandwidth: float
    round_trip: float
    handling: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth < math.inf:
            raise InputError(
                f"The bandwidth of a link must be above 0 and finite, got {self.bandwidth!r} bytes "
                "in a second. Without a link, run the whole bundle on the device."
            )
        for name, value in (("round trip", self.round_trip), ("handling", self.handling)):
            if not 0 <= value < math.inf:
                raise InputError(
                    f"The {name} of a link must be at least 0 s and finite, got {value!r}."
                )

    @classmethod
    def parse(cls, text: str) -> "Link":
        """A link in words: bandwidth in bit/s or B/s, and round trip in s or ms.

        Raises:
            InputError: If it is written otherwise.
        """
        rate, comma, time = str(text).partition(",")
        found, lasts = _RATE.fullmatch(rate.strip()), _TIME.fullmatch(time.strip())
        try:
            if found is None or lasts is None or not comma:
                raise ValueError(text)
            scale = _RATES[found[2].lower()] / (8 if found[3] == "bit" else 1)
            bandwidth = float(found[1]) * scale
            round_trip = float(lasts[1]) * (1e-3 if lasts[2].lower() == "ms" else 1.0)
        except ValueError:
            raise InputError(
                f"link must be a bandwidth and a round trip, such as '20 Mbit/s, 50 ms', got "
                f"{text!r}."
            ) from None
        return cls(bandwidth=bandwidth, round_trip=round_trip)

    def seconds(self, size: float) -> float:
        """Time for so many bytes, for the answer to come, and for whoever handles both."""
        return self.round_trip + self.handling + size / self.bandwidth

    @property
    def unit(self) -> str:
        """Of `cost`."""
        return "seconds"

    def cost(self, size: float) -> float:
        """What so many bytes cost."""
        return self.seconds(size)

    def __str__(self) -> str:
        handled = f", {self.handling * 1e3:.3g} ms for a call" if self.handling else ""
        return f"{self.bandwidth * 8 / 1e6:g} Mbit/s, {self.round_trip * 1e3:g} ms{handled}"


@final
@dataclass(frozen=True, kw_only=True)
class Toll:
    """What a link costs in another unit than seconds: bytes, joules, dollars.

    Args:
        unit: As of the costs of the stages.
        per_call: For one example, at least 0.
        per_byte: At least 0.

    >>> Toll(unit="usd", per_call=1e-4, per_byte=1e-9).cost(1000)
    0.000101
    """

    unit: str
    per_call: float = 0.0
    per_byte: float = 0.0

    def __post_init__(self) -> None:
        for name in ("per_call", "per_byte"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"{name} must be finite and at least 0, got {getattr(self, name)!r}."
                )

    def cost(self, size: float) -> float:
        """What so many bytes cost."""
        return self.per_call + self.per_byte * size
