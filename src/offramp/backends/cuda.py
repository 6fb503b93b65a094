"""Networks on a GPU: as they are, or as CUDA graphs of some batch sizes.

A graph replays the kernels of a network without the host asking for each; what it reads and writes
has fixed places and sizes. So a batch is padded to the next size for which there is a graph.

Layer: backends.  Source: torch.cuda.graphs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.batch import apply, flat
from offramp._core.errors import UnsupportedError
from offramp.backends.fold import fold
from offramp.backends.form import TensorSpec
from offramp.backends.task import Task

#: Sizes for which graphs are made; at most half of a padded batch is padding.
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_WARM_UP = 3


def run_cuda(task: Task) -> nn.Module:
    """A prepared copy on the GPU.

    Raises:
        UnsupportedError: If there is no GPU that torch can use.
    """
    _require_cuda(task)
    return fold(task.module).to("cuda")


def run_cuda_graph(task: Task) -> nn.Module:
    """A prepared copy on the GPU that replays graphs, each made when its size first comes."""
    _require_cuda(task)
    return CudaGraphs(fold(task.module).to("cuda"), TensorSpec.of(task.inputs))


def bucket_of(n: int, buckets: Sequence[int] = BUCKETS) -> int | None:
    """The smallest size that holds `n` examples, or None where none does.

    >>> bucket_of(33), bucket_of(5000)
    (48, None)
    """
    return next((size for size in buckets if size >= n), None)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorded:
    graph: Any  # a torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Any


@final
class CudaGraphs(nn.Module):
    """A network on the GPU with one graph for each padded batch size; larger ones run as they are.

    Args:
        module: On the GPU, in evaluation mode.
        inputs: What it takes.
    """

    reentrant = False  # what a graph reads and writes has one place

    def __init__(self, module: nn.Module, inputs: TensorSpec) -> None:
        super().__init__()
        self.module = module
        self._form = inputs
        self._graphs: dict[tuple[int | torch.Size, ...], _Recorded] = {}  # by batch and other sizes
        self._pool: Any = None
        self.eval()

    @torch.inference_mode()
    def forward(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401  (as the network)
        """Run a batch, given as to the network."""
        given = self._form.unpack(args, named)
        n = len(given[0])
        size = bucket_of(n)
        if size is None or n == 0 or not given[0].is_cuda:
            return apply(self.module, self._form.pack(given))
        key: tuple[int | torch.Size, ...] = (size, *[tensor.shape[1:] for tensor in given])
        recorded = self._graphs.get(key)
        if recorded is None:
            recorded = self._graphs[key] = self._record(given, size)
        for own, tensor in zip(recorded.inputs, given, strict=True):
            own[:n].copy_(tensor)  # what stands behind is of an earlier batch, and nobody's answer
        recorded.graph.replay()
        # The next replay writes to the same place, so what is handed out is a copy.
        results = [result[:n].clone() for result in flat(recorded.outputs)]
        return TensorSpec.of(recorded.outputs).pack(results)

    def _record(self, given: Sequence[Tensor], size: int) -> _Recorded:
        inputs = [t[:1].expand(size, *t.shape[1:]).clone() for t in given]
        batch = self._form.pack(inputs)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are chosen before the recording
            for _ in range(_WARM_UP):
                apply(self.module, batch)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # What other threads do meanwhile, such as a stage of their own, is none of its business.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = apply(self.module, batch)
        self._pool = graph.pool()
        return _Recorded(graph=graph, inputs=inputs, outputs=outputs)

    def _apply(self, fn: Any, recurse: bool = True) -> "CudaGraphs":  # noqa: ANN401  (of torch)
        self._graphs.clear()  # they read the weights where they were
        self._pool = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def __deepcopy__(self, memo: object) -> "CudaGraphs":
        return CudaGraphs(fold(self.module), self._form)


def is_cuda_there() -> bool:
    """Whether torch has a GPU to use.

    >>> is_cuda_there() in (True, False)
    True
    """
    return torch.cuda.is_available()


def _require_cuda(task: Task) -> None:
    if not is_cuda_there():
        raise UnsupportedError(
            f"{task.name} cannot run on CUDA: torch {torch.__version__} finds no GPU here. Install "
            "a build of torch with CUDA on a machine that has one, or take another backend."
        )
