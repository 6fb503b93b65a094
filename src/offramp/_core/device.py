"""The device that somebody asks for, and that of a network.

Layer: _core.
"""

import torch
from torch import nn

from offramp._core.errors import InputError


def check_device(device: torch.device | str) -> torch.device:
    """Return the device, if it is one and is there.

    Args:
        device: Such as "cpu", "cuda" or "cuda:1".

    Raises:
        InputError: If torch knows no such device, or finds none on this machine.

    >>> check_device("cpu")
    device(type='cpu')
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"device must be one that torch knows, such as 'cpu', 'cuda' or 'cuda:1', got "
            f"{device!r}."
        ) from error
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise InputError(
                f"device must be on this machine, got {device!r}: torch {torch.__version__} finds "
                "no GPU. Take 'cpu', or install the torch that fits your driver."
            )
        if (found.index or 0) >= count:
            raise InputError(
                f"device must be on this machine, got {device!r}: torch finds {count} GPUs, "
                f"numbered from 0."
            )
    elif found.type != "cpu":
        _check_holds_numbers(found)
    return found


def device_of(module: nn.Module) -> torch.device:
    """Where the weights of a module lie; the CPU for one without any.

    >>> device_of(nn.Linear(2, 3)), device_of(nn.ReLU())
    (device(type='cpu'), device(type='cpu'))
    """
    return next((weight.device for weight in module.parameters()), torch.device("cpu"))


def _check_holds_numbers(device: torch.device) -> None:
    """Raise `InputError` unless tensors on a device of another kind can be written and read."""
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, ImportError) as error:  # each kind by its own
        raise InputError(
            f"device must be on this machine and hold numbers, got '{device}': torch "
            f"{torch.__version__} says {str(error).splitlines()[0]!r}. Take 'cpu'."
        ) from error
