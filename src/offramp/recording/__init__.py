"""Recording: a cascade run over data, once, into a trace.

Layer: recording.
"""

from offramp.recording.record import record

__all__ = ["record"]
