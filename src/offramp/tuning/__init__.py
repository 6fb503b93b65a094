"""Tuning: measuring on this machine, and what is made faster by what was measured.

Layer: tuning.
"""

from offramp.tuning.fuse_for import join_for
from offramp.tuning.meter import measure_times
from offramp.tuning.profile import Profile, Span, StageProfile, profile
from offramp.tuning.quantize import Quantised, quantise

__all__ = [
    "Profile",
    "Quantised",
    "Span",
    "StageProfile",
    "join_for",
    "measure_times",
    "profile",
    "quantise",
]
