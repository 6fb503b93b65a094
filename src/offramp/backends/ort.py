"""Networks in ONNX Runtime, in float32 or in int8 with scales fixed beforehand.

Layer: backends.  Source: measured.md (int8 3.5 to 10 times eager PyTorch, 1.4 to 5.4 in float32).
"""

import contextlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from offramp._core.batch import flat
from offramp._core.errors import FileFormatError, UnsupportedError
from offramp._core.optional import imported
from offramp.backends.compiled import Run
from offramp.backends.foreign import check_onnx
from offramp.backends.form import TensorSpec
from offramp.backends.onnx_export import INPUT, has_lengths, to_onnx
from offramp.backends.task import Task

if TYPE_CHECKING:
    import onnx

FLOAT, INT8 = "onnxruntime", "onnxruntime-int8"
_AT_ONCE = 32  # examples that calibration runs at a time


@final
class Session:
    """One ONNX model, ready to run; tensors share their memory with it in both directions.

    Threads do not spin while they wait: another stage's session, or torch, has use for the core.

    Args:
        model: The model as bytes, with inputs "in.0", "in.1"...
        threads: That it may use, the caller's included.

    Raises:
        MissingExtraError: Without the extra "onnx".
        UnsupportedError: If ONNX Runtime cannot run the model, or it is none.
    """

    def __init__(self, model: bytes, threads: int) -> None:
        ort = _onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # its warnings are about its own optimizations
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._failures = _failures()
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except self._failures as error:
            raise UnsupportedError(f"ONNX Runtime cannot load the model: {error}") from error
        # An input that no operation reads is not there any more.
        names = [given.name for given in self._session.get_inputs()]
        if others := [name for name in names if not name.removeprefix(INPUT).isdecimal()]:
            raise UnsupportedError(f"The model must read in.0, in.1 and so on, got {others}.")
        self._inputs = [(name, int(name.removeprefix(INPUT))) for name in names]
        self._outputs = [given.name for given in self._session.get_outputs()]

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Run a batch on the CPU."""
        feed = {name: tensors[k].numpy(force=True) for name, k in self._inputs}
        try:
            results = self._session.run(self._outputs, feed)
        except self._failures as error:
            raise UnsupportedError(f"ONNX Runtime cannot run the model: {error}") from error
        return [torch.from_numpy(array) for array in results]


def run_onnxruntime(task: Task) -> nn.Module:
    """The network in float32."""
    _onnxruntime()
    made = to_onnx(task.module, task.inputs, name=task.name, others=task.others)
    return _compiled(task, made.SerializeToString(), FLOAT, exact=True, free=has_lengths(made))


def run_onnxruntime_int8(task: Task) -> nn.Module:
    """Convolutions and matrix products in int8, with fixed scales of the calibration batch."""
    _onnxruntime()
    seen = flat(task.calibrated(INT8))
    made = to_onnx(task.module, task.inputs, name=task.name, others=task.others)
    return _compiled(task, quantized(made, seen), INT8, exact=False, free=has_lengths(made))


def _compiled(task: Task, model: bytes, backend: str, *, exact: bool, free: bool) -> nn.Module:
    run = Session(model, task.threads)
    return task.compiled(
        run, backend=backend, content=model, exact=exact, files=lambda: (model,), free=free
    )


def open_onnx(files: Sequence[bytes], outputs: TensorSpec, name: str, threads: int) -> Run:
    """What runs a model, from its file.

    Args:
        files: The content of one.
        outputs: What it gives; the caller looks.
        name: Whose it is, for messages.
        threads: That it may use.

    Raises:
        FileFormatError: If it is no model that ONNX Runtime can run, or refers to other files.
        MissingExtraError: Without the extra "onnx".
    """
    (model,) = files
    _onnxruntime()
    check_onnx(model, name)
    try:
        return Session(model, threads)
    except UnsupportedError as error:
        raise FileFormatError(f"The model of {name} cannot be opened: {error}") from error


def quantized(model: "onnx.ModelProto", seen: Sequence[Tensor]) -> bytes:
    """The model with 8-bit weights, one scale a channel, and 8-bit activations, one scale each.

    Scales are fixed here, from the smallest and largest values that occur on `seen`: scales taken
    from each batch would make an answer depend on the rest of the batch.

    Args:
        model: Of `to_onnx`.
        seen: Its inputs, at least one example.
    """
    _onnxruntime()
    from onnxruntime import quantization as q

    reader = _Batches([tensor.numpy(force=True) for tensor in seen])
    with tempfile.TemporaryDirectory() as folder, _quietly():
        float32, result = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        float32.write_bytes(model.SerializeToString())
        q.quantize_static(
            float32,
            result,
            reader,
            quant_format=q.QuantFormat.QDQ,
            per_channel=True,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            # without VNNI pairs of products are added in 16 bits: seven bits cannot overflow there
            reduce_range=True,
        )
        return result.read_bytes()


@final
class _Batches:
    """What ONNX Runtime asks for calibration inputs."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        starts = range(0, len(arrays[0]), _AT_ONCE)
        self._left = iter(
            {f"{INPUT}{k}": array[start : start + _AT_ONCE] for k, array in enumerate(arrays)}
            for start in starts
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


def is_onnxruntime_there() -> bool:
    """Whether the packages of the extra "onnx" are installed; nothing is imported.

    >>> is_onnxruntime_there() in (True, False)
    True
    """
    names = ("onnx", "onnxscript", "onnxruntime")
    return all(importlib.util.find_spec(name) is not None for name in names)


def _onnxruntime() -> Any:  # noqa: ANN401  (an optional package)
    return imported("onnxruntime", "onnx")


def _failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises; its classes have no root of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented")
    own = (getattr(state, name) for name in (*names, "RuntimeException", "EPFail"))
    return (*own, RuntimeError, ValueError)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The quantizer logs advice to the root logger and prints."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
