"""The registry of transforms, and chains of them.

Layer: stages.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, final

from torch import nn

from offramp._core.errors import InputError
from offramp._core.registry import Registry
from offramp._core.schema import OneOf, to_json
from offramp._core.types import Raw
from offramp.stages.transforms.columns import Columns
from offramp.stages.transforms.decode import Decode
from offramp.stages.transforms.normalize import Normalize
from offramp.stages.transforms.pad import Pad
from offramp.stages.transforms.resize import Resize
from offramp.stages.transforms.tokenize import Tokenize

#: What may happen to the raw input, by the "kind" that stands in a file.
TRANSFORMS: Registry[Callable[..., nn.Module]] = Registry(
    "transform",
    {
        "columns": Columns,
        "decode": Decode,
        "normalize": Normalize,
        "pad": Pad,
        "resize": Resize,
        "tokenize": Tokenize,
    },
)

#: What arguments take: one transform, several in order, or none.
Transforms = nn.Module | Sequence[nn.Module] | None


@final
class Chain(nn.Module):
    """Transforms one after the other; in a file a list of them.

    Args:
        steps: At least one, in order; chains among them become part of this one.

    Raises:
        InputError: If there is none, or one is no module.

    >>> import torch
    >>> Chain([Resize((2, 2)), Normalize(0.5)])(torch.full((1, 3, 4, 4), 2.0)).shape
    torch.Size([1, 3, 2, 2])
    """

    steps: nn.ModuleList

    def __init__(self, steps: Sequence[nn.Module]) -> None:
        super().__init__()
        flat: list[nn.Module] = []
        if not isinstance(steps, Sequence | nn.ModuleList) or isinstance(steps, str):
            raise InputError(
                f"transform must be a module or a list of modules, got {type(steps).__name__}."
            )
        for step in steps:
            if not isinstance(step, nn.Module):
                raise InputError(
                    f"transform must be a module or a list of modules, got {type(step).__name__}."
                )
            flat.extend(step.steps if isinstance(step, Chain) else [step])
        if not flat:
            raise InputError("transform must have at least one step, got an empty list.")
        self.steps: nn.ModuleList = nn.ModuleList(flat)
        self.reads_rows = getattr(flat[0], "reads_rows", False)

    def forward(self, x: Raw) -> Any:  # noqa: ANN401  (what the last step gives)
        """What the last step makes of what the one before it gives."""
        for step in self.steps:
            x = step(x)
        return x

    def __json__(self) -> list[nn.Module]:
        return list(self.steps)


def chained(transform: Transforms) -> nn.Module | None:
    """One module of one, several or no transforms.

    Raises:
        InputError: As `Chain`.

    >>> chained([Normalize(0.5)])
    Normalize(scale=0.5, mean=(0.0,), std=(1.0,))
    """
    if transform is None or isinstance(transform, nn.Module):
        return transform
    if not isinstance(transform, Iterable):
        raise InputError(f"transform must be a module, or a list of some, got {transform!r}.")
    made = Chain(transform)
    return made if len(made.steps) > 1 else made.steps[0]


def key_of(transform: nn.Module | None) -> str | None:
    """The same for equal transforms, which stages can share; None where nobody can tell."""
    if transform is None:
        return None
    try:
        value = to_json(transform)
    except TypeError:  # somebody's own, which no file can hold
        return None
    return json.dumps([value, [str(held.dtype) for held in transform.buffers()]])


#: A transform as it stands in a file: an object with its "kind", or a list of such.
Transform = Annotated[nn.Module, OneOf(TRANSFORMS, chain=chained)]
