"""What goes over a link: how large it is, and what a carry is when it arrives.

Layer: tuning.
"""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from offramp._core.batch import batch_size, flat
from offramp._core.packing import Packing, packed, unpacked
from offramp._core.types import AnyBatch
from offramp.stages import Cascade, evaluating
from offramp.stages.segments import run_segments

RAW = ""  # stands for the raw input among the groups


def sizes_of(cascade: Cascade, example: AnyBatch, raw: Sequence[bytes] = ()) -> dict[str, Any]:
    """What one example takes of a link: by group the tensors of its carry, "" for the raw input.

    Args:
        cascade: Its segments run once.
        example: Some raw input.
        raw: The same examples as they came, such as the bytes of JPEG files.

    Returns:
        Of the raw input the bytes; of a carry the shapes of its tensors and whether they are
        float32, of which packing makes less.

    >>> cascade = Cascade.from_models({"a": nn.Linear(4, 3)})
    >>> sizes_of(cascade, torch.zeros(2, 4))[""]
    16.0
    """
    found: dict[str, Any] = {}
    with evaluating(cascade), torch.inference_mode():
        for stage, carry in run_segments(list(cascade), example):
            if stage.gives_carry:
                found[stage.group] = [
                    (tensor.numel() / len(tensor), tensor.element_size(), tensor.dtype)
                    for tensor in flat(carry)
                ]
    if raw:
        found[RAW] = float(np.mean([len(file) for file in raw]))
    else:
        tensors = flat(example)
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        found[RAW] = total / batch_size(example)
    return found


def rounded(cascade: Cascade, device: Sequence[str], packing: Packing) -> Cascade:
    """A cascade whose stages after a cut read carries as they arrive there.

    Args:
        cascade: As it is.
        device: Names of the stages before the cut.
        packing: How carries are sent.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> x = torch.rand(2, 4)
    >>> cascade = Cascade.from_network(net, 1, head="vector_linear", example=x)
    >>> there = rounded(cascade, ["1"], "int8")
    >>> torch.equal(there(x)[:, 0], cascade(x)[:, 0]), torch.equal(there(x), cascade(x))
    (True, False)
    """
    made: dict[str, nn.Module] = {}
    stages = []
    for stage in cascade:
        if stage.name not in device and stage.source in device:
            module = made.setdefault(stage.group, Arriving(stage.module, packing))
            stage = stage.replaced(module=module, spec=None)
        stages.append(stage)
    return cascade.with_stages(stages)


@final
class Arriving(nn.Module):
    """A segment that reads what it is given as it comes over a link."""

    def __init__(self, segment: nn.Module, packing: Packing) -> None:
        super().__init__()
        self.segment, self._packing = segment, packing

    def forward(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401  (as the segment takes it)
        """What the segment makes of it."""
        here = {name: self._sent(value) for name, value in named.items()}
        return self.segment(*map(self._sent, given), **here)

    def _sent(self, tensor: Tensor) -> Tensor:
        values = packed("carry", tensor.detach().cpu().numpy(), self._packing)
        return torch.from_numpy(unpacked(values, "carry")).to(tensor.device)
