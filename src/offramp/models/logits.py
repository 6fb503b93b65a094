"""The logits inside whatever a network returns.

Layer: models.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from offramp._core.errors import InputError


def extract_logits(output: Any) -> Tensor:  # noqa: ANN401  (what a foreign network returns)
    """Find the logits in the output of a network.

    Args:
        output: A tensor; a mapping or an object with `logits` (Hugging Face's outputs, the named
            tuples of Inception and GoogLeNet); or a tuple or list whose first entry is a tensor.

    Returns:
        Logits, `(n, c)`, as they are: no copy, no change of type.

    Raises:
        InputError: If there is no such tensor, or it is not two-dimensional.

    >>> import torch
    >>> extract_logits({"logits": torch.zeros(1, 3), "loss": None}).shape
    torch.Size([1, 3])
    """
    found = _find(output)
    if found is None:
        raise InputError(
            "The output of a network must be a tensor, hold a tensor named 'logits', or be a "
            f"tuple whose first entry is a tensor; got {_describe(output)}. Wrap the network in "
            "a module that returns its logits."
        )
    if found.ndim != 2:
        raise InputError(
            f"Logits must have shape (examples, classes), got {tuple(found.shape)}. Wrap the "
            "network in a module that pools or flattens its output."
        )
    return found


def _find(output: object) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    return None


def _describe(output: object) -> str:
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"{kind} with the keys {sorted(str(key) for key in output)}"
    if isinstance(output, tuple | list):
        return f"{kind} of {[type(part).__name__ for part in output]}"
    return kind
