"""A network in another runtime, as a module that is called as the network was.

Layer: backends.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, final

import torch
from torch import Tensor, nn

from offramp._core.checks import check_positive_int
from offramp._core.errors import InputError, UnsupportedError
from offramp.backends.form import TensorSpec

#: Runs tensors on the CPU, of the types and shapes that were promised; gives new tensors.
Run = Callable[[Sequence[Tensor]], list[Tensor]]

#: Gives the contents of a model's files.
Files = Callable[[], tuple[bytes, ...]]


@final
class Compiled(nn.Module):
    """Checks what comes in, runs it elsewhere, and gives it the form that the network gave.

    It holds no weights that torch could see, move or count; it runs on the CPU, and answers where
    the input was.

    Args:
        run: Does the work.
        inputs: What the network takes.
        outputs: What it gives.
        name: Whose it is, for messages: "stage 'small'".
        backend: Name of the backend, for messages.
        content: Bytes that differ where answers differ, so that recordings can be told apart.
        files: Makes the contents of the files from which a bundle opens it again; None where it
            is no model of another runtime.
    """

    _digest: Tensor

    def __init__(
        self,
        run: Run,
        *,
        inputs: TensorSpec,
        outputs: TensorSpec,
        name: str,
        backend: str,
        content: bytes,
        files: Files | None = None,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.name, self.backend = name, backend
        self.files = files
        self._run = run
        self._wanted = list(zip(inputs.shapes, inputs.torch_dtypes, strict=True))
        self._free = inputs.free or ((),) * len(inputs.shapes)
        digest = hashlib.sha256(backend.encode() + content).digest()
        self.register_buffer("_digest", torch.tensor(list(digest), dtype=torch.uint8))
        self.eval()

    def forward(self, *args: Any, **named: Tensor) -> Any:  # noqa: ANN401  (as the network)
        """Run a batch, given as to the network.

        Raises:
            InputError: If shapes or types are not those that the network was compiled for.
            UnsupportedError: If somebody counts its operations.
        """
        given = self.inputs.unpack(args, named)
        for tensor, (shape, dtype), free in zip(given, self._wanted, self._free, strict=True):
            same = tensor.shape[1:] == shape or (free and _differ(tensor.shape, shape) <= {*free})
            if not same or tensor.dtype != dtype:
                raise InputError(self._explained(given))
        if torch._C._len_torch_dispatch_stack():
            raise UnsupportedError(
                f"The operations of {self.name} cannot be counted: it runs in {self.backend!r}. "
                "Count them on the cascade that it was made from, and hand them over as costs, or "
                "measure seconds."
            )
        where = given[0].device
        if given[0].shape[0] == 0:
            return self.outputs.pack([t.to(where) for t in self.outputs.parts(0)])
        results = self._run(given)
        if not given[0].is_cpu:
            results = [result.to(where) for result in results]
        return self.outputs.pack(results)

    def _explained(self, given: Sequence[Tensor]) -> str:
        found = ", ".join(
            f"{tuple(t.shape)} of {str(t.dtype).removeprefix('torch.')}" for t in given
        )
        return (
            f"{self.name[:1].upper()}{self.name[1:]} was made for {self.inputs.described()} by the "
            f"backend {self.backend!r}, got {found}. Convert the batch, or make it again with an "
            "example of this kind."
        )

    def __deepcopy__(self, memo: object) -> "Compiled":
        return self  # nothing in it changes

    def __copy__(self) -> "Compiled":
        return self

    def __reduce__(self) -> NoReturn:
        raise UnsupportedError(
            f"{self.name} runs in {self.backend!r}, which cannot be pickled, nor sent to another "
            "process. Save a bundle and call offramp.load(path) there."
        )

    def extra_repr(self) -> str:
        """Its backend, for printing."""
        return f"backend={self.backend!r}, inputs={self.inputs.described()!r}"


def _differ(found: Sequence[int], wanted: Sequence[int]) -> set[int]:
    """Axes whose sizes are others than wanted; 0 if there are more or fewer, or one is empty."""
    if len(found) != len(wanted) + 1 or 0 in found[1:]:
        return {0}
    return {axis for axis, size in enumerate(wanted, 1) if found[axis] != size}


def thread_count(threads: int | None) -> int:
    """The threads asked for, or as many as torch uses."""
    return torch.get_num_threads() if threads is None else check_positive_int("threads", threads)
