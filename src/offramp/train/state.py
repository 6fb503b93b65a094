"""What every training does alike: seeds, batches, the check of a loss, weights and moments.

Layer: train.  Source: none.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.checks import check_seed
from offramp._core.errors import InputError
from offramp.stages import names_in

_STATE, _BEST, _MOMENTS = "state.", "best.", "moments."
_AT_ONCE = 32  # numbers for which a device is asked together


def seed_for(seed: int, *purpose: object) -> int:
    """A seed for one purpose, so that nothing depends on what else has been drawn.

    >>> seed_for(0, "order", 1) == seed_for(0, "order", 1), seed_for(0, "order", 2) == seed_for(0)
    (True, False)
    """
    return zlib.crc32(repr((check_seed(seed), *purpose)).encode())


def generator_for(
    seed: int, *purpose: object, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator for one purpose, on a device: those of two devices draw different numbers."""
    return torch.Generator(device=device).manual_seed(seed_for(seed, *purpose))


@contextmanager
def random_state_kept(device: torch.device | str = "cpu") -> Iterator[None]:
    """Within, layers may draw at random; afterwards the global random state is what it was."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_layers(seed: int, device: torch.device) -> None:
    """Fix what layers such as dropout draw next."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):  # or the present one would be seeded
            torch.cuda.manual_seed(seed)


def shuffled(rows: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """The batches of a pass, all of one size; what is left over is left out of that pass.

    >>> [len(rows) for rows in shuffled(torch.arange(7), 3, generator_for(0))]
    [3, 3]
    """
    size = min(batch_size, len(rows))
    order = torch.randperm(len(rows), generator=generator)
    return [rows[order[k : k + size]] for k in range(0, len(rows) - size + 1, size)]


def check_finite(
    number: float,
    what: str,
    epoch: int,
    rates: Mapping[str, float],
    checkpoint: Path | None = None,
) -> float:
    """Return a loss or a norm.

    Args:
        number: It.
        what: It is, for the message.
        epoch: The present one, from 0.
        rates: Learning rates, by the names of the arguments.
        checkpoint: File that holds the epoch before, if it is there.

    Raises:
        InputError: If it is NaN or infinite.
    """
    if math.isfinite(number):
        return number
    kept = "" if checkpoint is None or not checkpoint.exists() else f" {checkpoint} holds the epoch"
    said = " and ".join(f"{name}={rate!r}" for name, rate in rates.items())
    lower = "a lower learning rate" if len(rates) == 1 else "lower ones"
    raise InputError(
        f"The {what} became {number} in epoch {epoch + 1}, with {said}. Take {lower}, and look for "
        f"NaN or huge numbers in the inputs.{kept and kept + ' before.'}"
    )


@final
class Numbers:
    """Losses or norms of the steps of a pass, in order, each looked at.

    On a CPU that is at once. A device is asked for many together: the host would wait at every step
    until it has done everything, and then it would wait for the host.

    Args:
        check: Raises for a number that must not be; else returns it.

    >>> losses = Numbers(lambda loss: loss)
    >>> losses.add(torch.tensor(0.5))
    >>> losses.all()
    [0.5]
    """

    def __init__(self, check: Callable[[float], float]) -> None:
        self._check = check
        self._known: list[float] = []
        self._asked: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        """Take in the number of one more step, a tensor without axes."""
        self._asked.append(value.detach())
        if value.device.type == "cpu" or len(self._asked) == _AT_ONCE:
            self.all()

    def all(self) -> list[float]:
        """All numbers so far."""
        if self._asked:
            self._known += map(self._check, torch.stack(self._asked).tolist())
            self._asked = []
        return self._known


def copied_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module, copies on the CPU."""
    return {k: v.detach().cpu().clone() for k, v in module.state_dict().items()}


def state_tensors(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Weights, best weights and moments of an optimizer, under names of their own."""
    found = {_STATE + name: value for name, value in module.state_dict().items()}
    found |= {_BEST + name: value for name, value in (best or {}).items()}
    weights = _trained(module, optimizer)
    for k, moments in optimizer.state_dict()["state"].items():
        held = {what: value for what, value in moments.items() if isinstance(value, Tensor)}
        found |= {f"{_MOMENTS}{weights[k]}.{what}": value for what, value in held.items()}
    return found


def restore_state(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    groups: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Tensor]:
    """Go on from `state_tensors`; returns the best weights, none where none were given.

    Args:
        module: Changed in place.
        optimizer: Changed in place.
        tensors: Of `state_tensors`.
        groups: The optimizer's, as a schedule left them; by default as they are.

    Raises:
        RuntimeError, KeyError: If something does not fit the module.
    """
    best = _under(_BEST, tensors)
    own = {name: value.shape for name, value in module.state_dict().items()}
    if best and {name: value.shape for name, value in best.items()} != own:
        raise RuntimeError("the best weights are not those of this network")
    module.load_state_dict(_under(_STATE, tensors))
    place = {name: k for k, name in enumerate(_trained(module, optimizer))}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in _under(_MOMENTS, tensors).items():
        name, _, what = key.rpartition(".")
        moments.setdefault(place[name], {})[what] = value
    kept = optimizer.state_dict()["param_groups"] if groups is None else list(groups)
    optimizer.load_state_dict({"state": moments, "param_groups": kept})
    return best


def _trained(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the weights that an optimizer changes, in its own order, which is torch's."""
    names = names_in(module)
    return [names[id(weight)] for group in optimizer.param_groups for weight in group["params"]]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
