"""The backends by name.

Layer: runtime.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from offramp._core.checks import check_known
from offramp.runtime.backends import cuda, ort, ov, pytorch
from offramp.runtime.backends.task import Build

EAGER = "eager"
AUTO = "auto"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One way to run a network.

    Args:
        build: Makes the module that runs.
        suffix: What it adds to the name of a stage; empty where answers are equal to rounding.
        is_there: Whether this machine has what it needs; imports nothing.
        whole: Whether preprocessing and heads may go into one piece with the network.
        tried: Whether `choose_backends` tries it unasked.
    """

    build: Build
    suffix: str = ""
    is_there: Callable[[], bool]
    whole: bool = False
    tried: bool = True

    @property
    def calibrated(self) -> bool:
        """Whether it needs a calibration batch."""
        return self.suffix.endswith("int8")

    @property
    def exact(self) -> bool:
        """Whether answers are those of PyTorch to rounding."""
        return not self.suffix


def _always() -> bool:
    return True


BACKENDS: dict[str, Backend] = {
    EAGER: Backend(build=pytorch.run_eager, is_there=_always),
    "prepared": Backend(build=pytorch.run_prepared, is_there=_always),
    # It takes up to two minutes for a network, so it is tried where somebody asks for it.
    "compile": Backend(build=pytorch.run_compiled, is_there=_always, tried=False),
    ort.FLOAT: Backend(build=ort.run_onnxruntime, is_there=ort.is_onnxruntime_there, whole=True),
    ort.INT8: Backend(
        build=ort.run_onnxruntime_int8,
        suffix="int8",
        is_there=ort.is_onnxruntime_there,
        whole=True,
    ),
    ov.FLOAT: Backend(build=ov.run_openvino, is_there=ov.is_openvino_there, whole=True),
    ov.BF16: Backend(
        build=ov.run_openvino_bf16, suffix="bf16", is_there=ov.is_openvino_there, whole=True
    ),
    ov.INT8: Backend(
        build=ov.run_openvino_int8,
        suffix="openvino-int8",
        is_there=ov.is_openvino_there,
        whole=True,
    ),
    "cuda": Backend(build=cuda.run_cuda, is_there=cuda.is_cuda_there, tried=False),
    "cuda-graph": Backend(build=cuda.run_cuda_graph, is_there=cuda.is_cuda_there, tried=False),
}


def backend_of(name: str) -> Backend:
    """A backend by name; raises `UnknownNameError` with the nearest.

    >>> backend_of("onnxruntime-int8").exact
    False
    """
    return BACKENDS[check_known("backend", name, BACKENDS)]


def exact_backends() -> tuple[str, ...]:
    """Names of those whose answers are equal to rounding, and that can run here.

    >>> "eager" in exact_backends(), "onnxruntime-int8" in exact_backends()
    (True, False)
    """
    return tuple(name for name, made in BACKENDS.items() if made.exact and made.is_there())
