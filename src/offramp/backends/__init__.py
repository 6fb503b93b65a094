"""Backends: what else than eager PyTorch can run a stage.

Layer: backends.
"""

from offramp.backends.apply import backends_of, build_all, thread_count, with_backend
from offramp.backends.build import Builder
from offramp.backends.choose import BackendTable, choose_backends
from offramp.backends.compiled import Compiled
from offramp.backends.fold import fold
from offramp.backends.form import TensorSpec
from offramp.backends.restore import restored
from offramp.backends.table import BACKENDS, Backend, backend_of, exact_backends
from offramp.backends.to_onnx import require_onnx, to_onnx

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendTable",
    "Builder",
    "Compiled",
    "TensorSpec",
    "backend_of",
    "backends_of",
    "build_all",
    "choose_backends",
    "exact_backends",
    "fold",
    "require_onnx",
    "restored",
    "thread_count",
    "to_onnx",
    "with_backend",
]
