"""Backends: what else than eager PyTorch can run a stage.

Layer: runtime.
"""

from offramp.runtime.backends.apply import backends_of, build_all, thread_count, with_backend
from offramp.runtime.backends.build import Builder
from offramp.runtime.backends.choose import BackendTable, choose_backends
from offramp.runtime.backends.compiled import Compiled
from offramp.runtime.backends.form import Form
from offramp.runtime.backends.restore import restored
from offramp.runtime.backends.table import BACKENDS, Backend, backend_of, exact_backends
from offramp.runtime.backends.to_onnx import require_onnx, to_onnx

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendTable",
    "Builder",
    "Compiled",
    "Form",
    "backend_of",
    "backends_of",
    "build_all",
    "choose_backends",
    "exact_backends",
    "require_onnx",
    "restored",
    "thread_count",
    "to_onnx",
    "with_backend",
]
