"""Fitting: policies from a trace, one fitter for each name that `fit` knows.

Layer: fitting.  Reads traces; never a network, never data.
"""

from offramp.fitting.registry import POLICIES

__all__ = ["POLICIES"]
