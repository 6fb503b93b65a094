"""Reading the tensors of a file that may be damaged.

Layer: bundle.
"""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from offramp._core.errors import FileFormatError

_DAMAGED = (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; raises `FileFormatError` that names it where it cannot be read."""
    try:
        return load_file(path)
    except _DAMAGED as error:
        raise FileFormatError(f"{path} cannot be read as safetensors: {error}.") from error
