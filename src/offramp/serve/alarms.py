"""What an observer tells: alarms, and what came of late labels.

Layer: serve.
"""

from dataclasses import dataclass
from typing import NamedTuple, final


class Feedback(NamedTuple):
    """What came of late labels.

    Args:
        counted: How many belong to audited answers, and were counted.
        unknown: How many do not: never audited, counted before, or forgotten.
    """

    counted: int
    unknown: int


@final
@dataclass(frozen=True, kw_only=True)
class Alarm:
    """Something that was refuted.

    Args:
        kind: "promise", "exits" or "scores".
        gear: Of which gear.
        text: What, in one sentence.
    """

    kind: str
    gear: str
    text: str
