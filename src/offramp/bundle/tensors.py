"""Reading the tensors of a file that may be damaged, and building the network they belong to.

Layer: bundle.
"""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from offramp._core.errors import FileFormatError, UnsupportedError
from offramp.models import ModelSpec, build
from offramp.models.trial import check_spec
from offramp.models.weights import fill

_DAMAGED = (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError)
_MOST_HEADER = 8 * 2**20  # bytes that name the tensors: some 80,000
_LENGTH = 8  # bytes in front of them

#: What building or running a network raises when arguments, layers or sizes make no sense.
FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; raises `FileFormatError` that names it where it cannot be read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
        if length > _MOST_HEADER:
            raise ValueError(f"its header has {length} bytes, more than {_MOST_HEADER}")
        return load_file(path)
    except _DAMAGED as error:
        raise FileFormatError(f"{path} cannot be read as safetensors: {error}.") from error


def built(spec: ModelSpec, path: Path, where: str, *, allow_import: bool) -> nn.Module:
    """Build a network and give it the weights of a file, of which it must be no larger.

    Args:
        spec: How to build it.
        path: A safetensors file.
        where: Where that is said, for messages.
        allow_import: As for `offramp.models.build`.

    Raises:
        FileFormatError: If it cannot be built, or the weights are of another network.
        UnsupportedError: If an import is needed that is not allowed or not installed.
    """
    tensors = read_tensors(path)
    try:
        check_spec(spec, tensors, path)
        module = build(spec, allow_import=allow_import)
    except UnsupportedError:
        raise
    except FAILURES as error:
        raise FileFormatError(f"{where} cannot be built: {error}") from error
    fill(module, tensors, path)
    return module
