"""The backends by name.

Layer: backends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

from offramp._core.registry import Registry
from offramp.backends import cuda, ort, ov, pytorch
from offramp.backends.compiled import Run
from offramp.backends.form import TensorSpec
from offramp.backends.task import Build

EAGER = "eager"
AUTO = "auto"


#: Opens a model: contents of its files, what it gives, whose it is, threads.
Open = Callable[[Sequence[bytes], TensorSpec, str, int], Run]


@final
@dataclass(frozen=True, slots=True)
class Kept:
    """How the models of a backend are kept as files.

    Args:
        endings: Of the files that one model makes.
        open: Makes what runs it, from their contents.
    """

    endings: tuple[str, ...]
    open: Open


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One way to run a network.

    Args:
        build: Makes the module that runs.
        suffix: What it adds to the name of a stage; empty where answers are equal to rounding.
        is_there: Whether this machine has what it needs; imports nothing.
        whole: Whether the transform and heads may go into one piece with the network.
        tried: Whether `choose_backends` tries it unasked.
        kept: How a bundle keeps its models; None where they are made of weights each time.
    """

    build: Build
    suffix: str = ""
    is_there: Callable[[], bool]
    whole: bool = False
    tried: bool = True
    kept: Kept | None = None

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


_ONNX = Kept((".onnx",), ort.open_onnx)
_OPENVINO = Kept((".xml", ".bin"), ov.open_openvino)

#: Backends by name.
BACKENDS: Registry[Backend] = Registry(
    "backend",
    {
        EAGER: Backend(build=pytorch.run_eager, is_there=_always),
        "folded": Backend(build=pytorch.run_folded, is_there=_always),
        # It takes up to two minutes for a network, so it is tried where somebody asks for it.
        "compile": Backend(build=pytorch.run_compiled, is_there=_always, tried=False),
        ort.FLOAT: Backend(
            build=ort.run_onnxruntime, is_there=ort.is_onnxruntime_there, whole=True, kept=_ONNX
        ),
        ort.INT8: Backend(
            build=ort.run_onnxruntime_int8,
            suffix="int8",
            is_there=ort.is_onnxruntime_there,
            whole=True,
            kept=_ONNX,
        ),
        ov.FLOAT: Backend(
            build=ov.run_openvino, is_there=ov.is_openvino_there, whole=True, kept=_OPENVINO
        ),
        ov.BF16: Backend(
            build=ov.run_openvino_bf16,
            suffix="bf16",
            is_there=ov.is_openvino_there,
            whole=True,
            kept=Kept(_OPENVINO.endings, partial(ov.open_openvino, precision="bf16")),
        ),
        ov.INT8: Backend(
            build=ov.run_openvino_int8,
            suffix="openvino-int8",
            is_there=ov.is_openvino_there,
            whole=True,
            kept=_OPENVINO,
        ),
        "cuda": Backend(build=cuda.run_cuda, is_there=cuda.is_cuda_there, tried=False),
        "cuda-graph": Backend(build=cuda.run_cuda_graph, is_there=cuda.is_cuda_there, tried=False),
    },
)


def backend_of(name: str) -> Backend:
    """A backend by name; raises `UnknownNameError` with the nearest.

    >>> backend_of("onnxruntime-int8").exact
    False
    """
    return BACKENDS[name]


def exact_backends() -> tuple[str, ...]:
    """Names of those whose answers are equal to rounding, and that can run here.

    >>> "eager" in exact_backends(), "onnxruntime-int8" in exact_backends()
    (True, False)
    """
    return tuple(name for name in BACKENDS if BACKENDS[name].exact and BACKENDS[name].is_there())
