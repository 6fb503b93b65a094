"""Units of cost: what they are called, and how an amount of one is written.

A unit that is not registered is written as it is called; so a registration is for those who want
prefixes, a sign, or other words. What measures a unit is registered in `offramp.stages.cost`.

Layer: _core.
"""

from dataclasses import dataclass
from typing import final

from offramp._core.registry import Registry

_LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """How a cost is written.

    Args:
        words: What there are many of, for headings: "FLOPs".
        symbol: Behind a number, with a prefix: "FLOP", "s".
        sign: Before a number: "$".
        prefixes: From which size on which prefix, falling; of what is smaller the last.
        counts: Whether a heading that names the unit is enough, and numbers stand alone.

    >>> Unit(words="grams", symbol="g").text(0.0031), Unit(words="euros", sign="€").text(0.5)
    ('0.0031 g', '€0.5')
    """

    words: str
    symbol: str = ""
    sign: str = ""
    prefixes: tuple[tuple[float, str], ...] = ()
    counts: bool = False

    def text(self, value: float, *, space: str = " ", alone: bool = False) -> str:
        """A number of it, three digits, or four where there is no prefix.

        Args:
            value: How many.
            space: Between the number and the symbol.
            alone: Under a heading that names the unit.
        """
        symbol = "" if alone and self.counts else self.symbol
        if value == 0 or not self.prefixes:
            return f"{self.sign}{value:.4g}{space}{symbol}".rstrip(space)
        factor, prefix = next((p for p in self.prefixes if abs(value) >= p[0]), self.prefixes[-1])
        return f"{self.sign}{value / factor:.3g}{space}{prefix}{symbol}".rstrip(space)


#: Units by name.
UNITS: Registry[Unit] = Registry(
    "unit",
    {
        "flops": Unit(words="FLOPs", symbol="FLOP", prefixes=_LARGE, counts=True),
        "seconds": Unit(words="seconds", symbol="s", prefixes=_SMALL),
        "joules": Unit(words="joules", symbol="J", prefixes=_SMALL),
        "usd": Unit(words="US dollars", sign="$"),
    },
)


def unit_of(name: str) -> Unit:
    """A unit by name; one that is not registered has its name for a symbol.

    >>> unit_of("seconds").text(0.00123), unit_of("credits").text(3.0)
    ('1.23 ms', '3 credits')
    """
    return UNITS[name] if name in UNITS else Unit(words=name, symbol=name, counts=True)
