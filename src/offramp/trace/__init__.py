"""Traces: the recorded outputs of every stage on labeled examples.

Layer: trace.  Imports _core only: a trace knows neither networks nor data sets.
"""

from offramp.trace.files import load_trace, save_trace
from offramp.trace.import_files import from_npz, from_parquet
from offramp.trace.imports import (
    from_logits,
    from_predictions,
    from_probabilities,
)
from offramp.trace.losses import from_losses
from offramp.trace.testing import make_trace
from offramp.trace.trace import Trace

__all__ = [
    "Trace",
    "from_logits",
    "from_losses",
    "from_npz",
    "from_parquet",
    "from_predictions",
    "from_probabilities",
    "load_trace",
    "make_trace",
    "save_trace",
]
