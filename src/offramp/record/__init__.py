"""Recording: a cascade run over data, once, into a trace.

Layer: record.
"""

from offramp.record.record import record

__all__ = ["record"]
