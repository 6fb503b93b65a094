"""Networks in OpenVINO, in float32, bfloat16 or int8 with scales fixed beforehand.

Layer: backends.  Source: measured.md (int8 4 to 11 times eager PyTorch, bf16 2.7 to 10).
"""

import contextlib
import functools
import importlib.util
import io
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.batch import flat
from offramp._core.errors import FileFormatError, UnsupportedError
from offramp._core.optional import imported
from offramp.backends.compiled import Run
from offramp.backends.foreign import check_openvino
from offramp.backends.form import TensorSpec
from offramp.backends.onnx_export import INPUT, OUTPUT, has_lengths, to_onnx
from offramp.backends.task import Task

FLOAT, BF16, INT8 = "openvino", "openvino-bf16", "openvino-int8"
_EXTRA = "openvino"
_AT_ONCE = 32  # examples that calibration runs at a time


def run_openvino(task: Task) -> nn.Module:
    """The network in float32."""
    return _built(task, FLOAT, "f32")


def run_openvino_bf16(task: Task) -> nn.Module:
    """The network with products of bfloat16 values.

    Raises:
        UnsupportedError: If the processor has no instructions for it.
    """
    _require_bf16(task.name)
    return _built(task, BF16, "bf16")


def _require_bf16(name: str) -> None:
    if "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UnsupportedError(
            f"{name} cannot run in {BF16!r}: this processor has no instructions for bfloat16. "
            f"Take {FLOAT!r} or {INT8!r}."
        )


def run_openvino_int8(task: Task) -> nn.Module:
    """Convolutions and matrix products in int8, with fixed scales of the calibration batch."""
    return _built(task, INT8, "f32")


def _built(task: Task, backend: str, precision: str) -> nn.Module:
    core = _core()
    seen = flat(task.calibrated(backend)) if backend == INT8 else []
    made = to_onnx(task.module, task.inputs, name=task.name, others=task.others)
    content, free = made.SerializeToString(), has_lengths(made)
    try:
        model = core.read_model(content)
        if seen:
            model = _quantized(model, seen)
        run = _Requests(model, task.given(free=free), precision, task.threads)
    except RuntimeError as error:
        raise UnsupportedError(f"{task.name} cannot run in {backend!r}: {error}") from error
    content += b"".join(tensor.numpy(force=True).tobytes() for tensor in seen)
    return task.compiled(
        run,
        backend=backend,
        content=content,
        exact=backend == FLOAT,
        files=lambda: _files(model),
        free=free,
    )


def _files(model: Any) -> tuple[bytes, ...]:  # noqa: ANN401  (of OpenVINO)
    """The operations of a model, and its weights."""
    openvino = imported("openvino", _EXTRA)
    with tempfile.TemporaryDirectory() as folder:
        operations, weights = Path(folder, "model.xml"), Path(folder, "model.bin")
        openvino.serialize(model, operations, weights)
        return operations.read_bytes(), weights.read_bytes()


def open_openvino(
    files: Sequence[bytes], outputs: TensorSpec, name: str, threads: int, *, precision: str = "f32"
) -> Run:
    """What runs a model, from its files.

    Args:
        files: Operations and weights, as OpenVINO writes them.
        outputs: What it gives.
        name: Whose it is, for messages.
        threads: That it may use.
        precision: Of products, "f32" or "bf16".

    Raises:
        FileFormatError: If they are no model.
        MissingExtraError: Without the extra "openvino".
        UnsupportedError: If the processor has no instructions for the precision.
    """
    if precision == "bf16":
        _require_bf16(name)
    operations, weights = files
    check_openvino(operations, name)
    core = _core()
    try:
        # in memory, so that it cannot name a file of the machine as the place of its weights
        model = core.read_model(operations, weights)
        return _Requests(model, outputs, precision, threads)
    except (RuntimeError, TypeError) as error:
        raise FileFormatError(f"The model of {name} cannot be read: {error}") from error


@final
class _Requests:
    """Compiles and runs a network, with memory of torch for what it reads and writes."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401  (of OpenVINO)
        outputs: TensorSpec,
        precision: str,
        threads: int,
    ) -> None:
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._network = network = _core().compile_model(model, "CPU", options)
        self._own = threading.local()  # a request runs one batch at a time
        self._outputs = list(zip(outputs.shapes, outputs.torch_dtypes, strict=True))
        self._own_memory = [bool(axes) for axes in outputs.free] or [False] * len(outputs.shapes)
        self._inputs = [name for given in network.inputs for name in given.get_names()]

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        from openvino import Tensor as Shared

        request = getattr(self._own, "request", None)
        if request is None:
            request = self._own.request = self._network.create_infer_request()
        n = len(tensors[0])
        results = [torch.empty(n, *shape, dtype=dtype) for shape, dtype in self._outputs]
        # Shared memory is read and written during `infer` alone; both sides live until then.
        held = [t.contiguous().numpy(force=True) for t in tensors]
        for k, array in enumerate(held):
            if f"{INPUT}{k}" in self._inputs:
                request.set_tensor(f"{INPUT}{k}", Shared(array, shared_memory=True))
        for k, result in enumerate(results):
            if not self._own_memory[k]:
                request.set_tensor(f"{OUTPUT}{k}", Shared(result.numpy(), shared_memory=True))
        request.infer()
        for k in range(len(results)):
            if self._own_memory[k]:  # how long it is shows only now
                results[k] = torch.from_numpy(request.get_tensor(f"{OUTPUT}{k}").data.copy())
        return results


def _quantized(model: Any, seen: Sequence[Tensor]) -> Any:  # noqa: ANN401  (of OpenVINO)
    with _quietly():
        nncf = imported("nncf", _EXTRA)
        there = {name for given in model.inputs for name in given.get_names()}
        read = {f"{INPUT}{k}": t for k, t in enumerate(seen) if f"{INPUT}{k}" in there}
        batches = [
            {name: t[a : a + _AT_ONCE].numpy(force=True) for name, t in read.items()}
            for a in range(0, len(seen[0]), _AT_ONCE)
        ]
        # processors without VNNI add pairs of products in 16 bits: weights of half the range cannot
        # overflow there, and answers are the same on every machine
        halved = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
        return nncf.quantize(
            model, nncf.Dataset(batches), subset_size=len(batches), advanced_parameters=halved
        )


def is_openvino_there() -> bool:
    """Whether the packages of the extras "openvino" and "onnx" are installed; none is imported.

    >>> is_openvino_there() in (True, False)
    True
    """
    names = ("onnx", "onnxscript", "openvino", "nncf")
    return all(importlib.util.find_spec(name) is not None for name in names)


def _core() -> Any:  # noqa: ANN401  (an optional package)
    core, process = _started()
    if process != os.getpid():
        raise UnsupportedError(
            "OpenVINO was started in the process that this one was forked from, and its threads "
            "are not here, so compiling a model would wait for ever. Start processes by 'spawn' "
            "(multiprocessing.get_context('spawn')), or load after the fork alone; models that "
            "were loaded before it run here."
        )
    return core


@functools.cache
def _started() -> tuple[Any, int]:
    """OpenVINO, and the process that started it."""
    return imported("openvino", _EXTRA).Core(), os.getpid()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Quantization logs, and shows bars of its own."""
    logger = logging.getLogger("nncf")
    level = logger.level
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            logger.setLevel(logging.CRITICAL)
            yield
    finally:
        logger.setLevel(level)
