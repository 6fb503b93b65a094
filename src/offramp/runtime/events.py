"""Marks: what the time of a batch went into, told by those who spend it.

One thread does everything in turn, so each mark ends a section that began at the mark before it.

Layer: runtime.
"""

from collections.abc import Callable
from typing import Final, Literal

Kind = Literal["stage", "head", "decision", "compaction", "wait", "other"]

#: In the order of reports. "stage" are segments, whole networks with their heads; "decision" is
#: the policy's arithmetic and the answers; "compaction" narrows and joins carries; "wait" is the
#: host waiting for the device, once for each such mark; "other" is what a batch takes anyway.
KINDS: Final[tuple[Kind, ...]] = ("stage", "head", "decision", "compaction", "wait", "other")

NO_STAGE: Final = -1

#: Called at the end of a section: (kind, stage or `NO_STAGE`, examples).
Mark = Callable[[Kind, int, int], None]
