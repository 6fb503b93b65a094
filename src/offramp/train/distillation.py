"""Soft labels: what a larger network answers teaches a smaller one, beside the labels.

Layer: train.  Source: Hinton, Vinyals, Dean, arXiv:1503.02531, section 2 and 2.1 (the square of the
temperature keeps both parts of the loss in proportion).  Weight and temperature: docs/adr/0068.
"""

import copy
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offramp._core.batch import apply
from offramp._core.errors import InputError
from offramp._core.types import Batch
from offramp.models import extract_logits
from offramp.stages import copied, weights_digest

WEIGHT = 0.9  # of the soft labels; the labels have the rest
TEMPERATURE = 4.0


def soft_label_loss(
    logits: Float[Tensor, "m c"], soft: Float[Tensor, "m c"], labels: Int[Tensor, " m"]
) -> Float[Tensor, " m"]:
    """0.9 of what is lost on the teacher's probabilities, and 0.1 of what is lost on the labels.

    Args:
        logits: Of the network that learns.
        soft: Logits of the teacher; no gradient leads into them.
        labels: True labels.

    Returns:
        0.9 * 16 * KL(teacher || network), both at temperature 4, plus 0.1 * cross-entropy, in nats.

    >>> same = torch.tensor([[3.0, 1.0]])
    >>> soft_label_loss(same, same, torch.tensor([0]))  # a tenth of the cross-entropy
    tensor([0.0127])
    """
    wanted = (soft.detach() / TEMPERATURE).log_softmax(dim=1)
    given = (logits / TEMPERATURE).log_softmax(dim=1)
    distance = (wanted.exp() * (wanted - given)).sum(dim=1)
    hard = nn.functional.cross_entropy(logits, labels, reduction="none")
    return WEIGHT * TEMPERATURE**2 * distance + (1 - WEIGHT) * hard


@final
class Teacher:
    """A trained network that gives soft labels: a copy, in evaluation mode.

    Args:
        network: Gives logits `(m, c)` of what the network that learns reads; left as it is.
        device: Where both run.

    Raises:
        InputError: If it is no module.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        if not isinstance(network, nn.Module):
            raise InputError(
                f"distill_from must be a torch.nn.Module that is trained, got "
                f"{type(network).__name__}."
            )
        self._network = copy.deepcopy(network).to(device).eval()
        self._looked_at = False

    def identity(self) -> dict[str, str]:
        """What must be the same for a training to go on from a checkpoint.

        Weights and kinds of modules; numbers that are neither, such as a factor, are not seen.
        """
        kinds = ",".join(type(part).__qualname__ for part in self._network.modules())
        return {"distill_from": weights_digest({"": self._network}), "teacher": kinds}

    def logits(self, inputs: Batch, like: Tensor) -> Tensor:
        """What it answers, `(m, c)`, without gradients.

        Args:
            inputs: What the network that learns reads.
            like: Logits of that network.

        Raises:
            InputError: If it cannot run on them, or its logits are of another shape, or not finite
                on the first batch.
        """
        with torch.no_grad():
            try:
                soft = extract_logits(apply(self._network, copied(inputs)))  # it may write there
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise InputError(
                    "distill_from must be a trained network that reads what the network that "
                    f"learns reads: it cannot run on a batch of it. {error}"
                ) from error
        if soft.shape != like.shape:
            raise InputError(
                f"distill_from must give as many logits as the network that learns, "
                f"{tuple(like.shape)} for a batch, got {tuple(soft.shape)}."
            )
        # Of the first batch alone: to look means to wait for the device.
        looked_at, self._looked_at = self._looked_at, True
        if not looked_at and not bool(soft.isfinite().all()):
            raise InputError(
                "distill_from must give finite logits, got NaN or infinity. A class that it never "
                "names is a large negative number, such as -100."
            )
        return soft.float()
