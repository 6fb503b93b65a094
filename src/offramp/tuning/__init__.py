"""Tuning: measuring on this machine, and what is made faster by what was measured.

Layer: tuning.
"""

from offramp.tuning.carries import rounded, sizes_of
from offramp.tuning.compile import compile
from offramp.tuning.edge import EdgePlan, Offline, plan_edge
from offramp.tuning.fuse_for import fuse_for
from offramp.tuning.meter import measure_times
from offramp.tuning.profile import Profile, Span, StageProfile, profile
from offramp.tuning.quantize import Quantized, quantize

__all__ = [
    "EdgePlan",
    "Offline",
    "Profile",
    "Quantized",
    "Span",
    "StageProfile",
    "compile",
    "fuse_for",
    "measure_times",
    "plan_edge",
    "profile",
    "quantize",
    "rounded",
    "sizes_of",
]
