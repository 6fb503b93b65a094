"""The logits inside whatever a network returns.

Layer: models.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor

from offramp._core.errors import InputError


@final
class SeveralLogitsError(InputError):
    """A network returns several tensors that could be its logits.

    Args:
        message: What was found.
        widths: How many columns each of them has.
    """

    def __init__(self, message: str, widths: Sequence[int]) -> None:
        super().__init__(message)
        self.widths = tuple(widths)


def extract_logits(output: Any, classes: int | None = None) -> Tensor:  # noqa: ANN401  (foreign)
    """Find the logits in the output of a network.

    Args:
        output: A tensor; a mapping or an object with `logits` (Hugging Face's outputs, the named
            tuples of Inception and GoogLeNet); or a tuple, a list, or a mapping with other names.
            Of several tensors `(n, anything)` in it those with `classes` columns are meant.
        classes: Number of classes, where it is known.

    Returns:
        Logits, `(n, c)`, as they are: no copy, no change of type.

    Raises:
        SeveralLogitsError: If several tensors could be meant, or none of several has `classes`
            columns.
        InputError: If there is no such tensor, or it is not two-dimensional.

    >>> import torch
    >>> extract_logits({"logits": torch.zeros(1, 3), "loss": None}).shape
    torch.Size([1, 3])
    >>> extract_logits((torch.zeros(1, 64), torch.zeros(1, 3)), classes=3).shape
    torch.Size([1, 3])
    """
    found = output if isinstance(output, Tensor) else _find(output, classes)
    if found is None:
        raise InputError(
            "The output of a network must be a tensor, hold a tensor named 'logits', or be a "
            f"tuple with a tensor (examples, classes); got {_describe(output)}. Wrap the network "
            "in a module that returns its logits."
        )
    if found.ndim != 2:
        raise InputError(
            f"Logits must have shape (examples, classes), got {tuple(found.shape)}. Wrap the "
            "network in a module that pools or flattens its output."
        )
    return found


def _find(output: object, classes: int | None) -> Tensor | None:
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    if not isinstance(output, tuple | list | Mapping):
        return None
    parts = output.values() if isinstance(output, Mapping) else output
    tensors = [part for part in parts if isinstance(part, Tensor)]
    flat = [part for part in tensors if part.ndim == 2 and part.is_floating_point()]
    fitting = [part for part in flat if part.shape[1] == classes]
    if len(fitting) == 1:
        return fitting[0]
    if len(flat) < 2:  # of a map and a vector nobody knows whether the vector is meant
        return None if isinstance(output, Mapping) else next(iter(tensors), None)
    widths = [part.shape[1] for part in flat]
    known = "how many classes there are is not known" if classes is None else f"{classes} classes"
    raise SeveralLogitsError(
        f"The output is a {type(output).__name__} with {len(flat)} tensors that could be logits, "
        f"of {', '.join(map(str, widths))} columns ({known}). Give class_names, or classes, if one "
        "of them has as many columns, or wrap the network in a module that returns its logits "
        "alone.",
        widths,
    )


def _describe(output: object) -> str:
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"{kind} with the keys {sorted(str(key) for key in output)}"
    if isinstance(output, tuple | list):
        return f"{kind} of {[type(part).__name__ for part in output]}"
    return kind
