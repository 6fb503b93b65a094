"""The backends by name.

Layer: backends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

from offramp._core.lazy import Later
from offramp._core.registry import Registry
from offramp.backends.compiled import Run
from offramp.backends.form import TensorSpec

if TYPE_CHECKING:
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

    build: "Build"
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


_FOR = "offramp.backends"  # what builds is imported when it is asked for
_ORT, _OV = f"{_FOR}.ort:is_onnxruntime_there", f"{_FOR}.ov:is_openvino_there"
_CUDA = f"{_FOR}.cuda:is_cuda_there"
_ONNX = Kept((".onnx",), Later(f"{_FOR}.ort:open_onnx"))
_OPEN = Later(f"{_FOR}.ov:open_openvino")
_OPENVINO = Kept((".xml", ".bin"), _OPEN)
_BF16 = Kept(_OPENVINO.endings, partial(_OPEN, precision="bf16"))


def _backend(build: str, there: str | None = None, **said: Any) -> Backend:  # noqa: ANN401
    is_there = _always if there is None else Later(there)
    return Backend(build=Later(f"{_FOR}.{build}"), is_there=is_there, **said)


#: Backends by name.
BACKENDS: Registry[Backend] = Registry(
    "backend",
    {
        EAGER: _backend("pytorch:run_eager"),
        "folded": _backend("pytorch:run_folded"),
        # It takes up to two minutes for a network, so it is tried where somebody asks for it.
        "compile": _backend("pytorch:run_compiled", tried=False),
        "onnxruntime": _backend("ort:run_onnxruntime", _ORT, whole=True, kept=_ONNX),
        "onnxruntime-int8": _backend(
            "ort:run_onnxruntime_int8", _ORT, suffix="int8", whole=True, kept=_ONNX
        ),
        "openvino": _backend("ov:run_openvino", _OV, whole=True, kept=_OPENVINO),
        "openvino-bf16": _backend(
            "ov:run_openvino_bf16", _OV, suffix="bf16", whole=True, kept=_BF16
        ),
        "openvino-int8": _backend(
            "ov:run_openvino_int8", _OV, suffix="openvino-int8", whole=True, kept=_OPENVINO
        ),
        "cuda": _backend("cuda:run_cuda", _CUDA, tried=False),
        "cuda-graph": _backend("cuda:run_cuda_graph", _CUDA, tried=False),
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
