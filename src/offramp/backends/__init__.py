"""Backends: what else than eager PyTorch can run a stage.

Layer: backends.
"""

from typing import TYPE_CHECKING

from offramp._core.lazy import lazy
from offramp.backends.fold import fold

if TYPE_CHECKING:
    from offramp.backends.apply import backends_of as backends_of
    from offramp.backends.apply import build_all as build_all
    from offramp.backends.apply import with_backend as with_backend
    from offramp.backends.build import Builder as Builder
    from offramp.backends.choose import choose_backends as choose_backends
    from offramp.backends.compiled import Compiled as Compiled
    from offramp.backends.compiled import thread_count as thread_count
    from offramp.backends.form import TensorSpec as TensorSpec
    from offramp.backends.measured import BackendTable as BackendTable
    from offramp.backends.onnx_export import require_onnx as require_onnx
    from offramp.backends.onnx_export import to_onnx as to_onnx
    from offramp.backends.restore import restored as restored
    from offramp.backends.table import BACKENDS as BACKENDS
    from offramp.backends.table import Backend as Backend
    from offramp.backends.table import backend_of as backend_of
    from offramp.backends.table import exact_backends as exact_backends

_HOME = {
    "BACKENDS": "offramp.backends.table",
    "Backend": "offramp.backends.table",
    "BackendTable": "offramp.backends.measured",
    "Builder": "offramp.backends.build",
    "Compiled": "offramp.backends.compiled",
    "TensorSpec": "offramp.backends.form",
    "backend_of": "offramp.backends.table",
    "backends_of": "offramp.backends.apply",
    "build_all": "offramp.backends.apply",
    "choose_backends": "offramp.backends.choose",
    "exact_backends": "offramp.backends.table",
    "require_onnx": "offramp.backends.onnx_export",
    "restored": "offramp.backends.restore",
    "thread_count": "offramp.backends.compiled",
    "to_onnx": "offramp.backends.onnx_export",
    "with_backend": "offramp.backends.apply",
}

__all__ = [
    *sorted(_HOME),
    "fold",
]

__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return list(__all__)
