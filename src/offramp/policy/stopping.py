"""The stopping network: a small network on one stage's probabilities, as a rule of a policy.

It is trained elsewhere (`offramp.fitting.stopping.network`); here it only decides. Its sums are
taken pair by pair in a fixed order and in float32, never as a matrix product: BLAS picks kernels
by batch size, and the last bit of a decision must not depend on the rest of the batch.

Layer: policy.  Source: methods.md 3 and 6; Guan et al., IJCAI 2018, sections 3.2 and 4.3.
"""

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp._core.checks import check_probability
from offramp._core.errors import FileFormatError, InputError
from offramp._core.keys import keyed_uniform
from offramp._core.schema import stored
from offramp.policy.features import Distribution
from offramp.policy.situation import Situation

Layer = tuple[Tensor, Tensor]  # weight (outputs, inputs) and bias (outputs,)
_PRODUCTS = 2**22  # held at once while a layer is summed


@final
@stored("stopping")
class Stopping(nn.Module):
    """Leaves where a stopping network says so, at random or from a threshold on.

    The probability of stopping, pi, is a two-way softmax over what the last layer gives; compared
    are log-odds, log pi - log(1 - pi), which do not saturate into ties.

    Args:
        stage: Index of the stage whose probabilities the network reads.
        layers: Weight `(outputs, inputs)` and bias `(outputs,)` of each fully connected layer,
            ReLU between them, float32; the last gives (stop, go on).
        log_odds: Deterministic stop where the log-odds of pi are at least this; finite.
        seed: If given, the stop is drawn with probability pi instead, by (seed, example, stage).

    Raises:
        InputError: If layers do not fit together, hold NaN or infinity, or do not end in two.

    >>> one = Stopping(0, [(torch.tensor([[4.0, -4.0], [0.0, 0.0]]), torch.zeros(2))])
    >>> sure, unsure = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.1]])
    >>> [bool(one.log_odds(Distribution(x.log_softmax(dim=1))) >= 0) for x in (sure, unsure)]
    [True, False]
    """

    free = False
    threshold: Tensor

    def __init__(
        self,
        stage: int,
        layers: Sequence[Layer],
        *,
        log_odds: float = 0.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not math.isfinite(log_odds):
            raise InputError(f"log_odds must be finite, got {log_odds!r}.")
        _check_layers(layers)
        self.stage, self.seed, self.depth = stage, seed, len(layers)
        self.register_buffer("threshold", torch.tensor(log_odds, dtype=torch.float32))
        for k, (weight, bias) in enumerate(layers):
            self.register_buffer(f"weight{k}", weight.detach().clone())
            self.register_buffer(f"bias{k}", bias.detach().clone())

    @property
    def layers(self) -> list[Layer]:
        """Weight and bias of each layer."""
        return [
            (self.get_buffer(f"weight{k}"), self.get_buffer(f"bias{k}")) for k in range(self.depth)
        ]

    def drawn(self, seed: int) -> "Stopping":
        """The same network, its stops drawn at random."""
        return Stopping(self.stage, self.layers, seed=seed)

    def from_threshold(self, probability: float) -> "Stopping":
        """The same network, stopping where pi is at least `probability`, in (0, 1)."""
        check_probability("threshold", probability)
        return Stopping(self.stage, self.layers, log_odds=math.log(probability / (1 - probability)))

    def log_odds(self, distribution: Distribution) -> Float[Tensor, " m"]:
        """Log-odds of stopping; higher speaks for it.

        Raises:
            InputError: If the stage has another number of classes than the network reads.
        """
        x = distribution.log_probs.exp()  # (m, c)
        inputs = self.get_buffer("weight0").shape[1]
        if x.shape[1] != inputs:
            raise InputError(
                f"This stopping network reads {inputs} probabilities, but stage {self.stage} gives "
                f"{x.shape[1]}. It belongs to another cascade."
            )
        *inner, last = self.layers
        for weight, bias in inner:
            x = fixed_order_linear(x, weight, bias).relu()
        x = fixed_order_linear(x, *last)  # (m, 2)
        return x[:, 0] - x[:, 1]

    def score(self, at: Situation) -> Float[Tensor, " m"]:
        """Log-odds of stopping minus the threshold, or minus those of the example's number."""
        found = self.log_odds(at.distribution(self.stage))
        if self.seed is None:
            return found - self.threshold
        number = keyed_uniform(at.ids, self.seed, self.stage)  # in [0, 1), float64
        return found - (number.log() - (1 - number).log()).to(torch.float32)

    def __json__(self) -> dict[str, object]:
        layers = [_StoredLayer.of(*layer) for layer in self.layers]
        return {
            "stage": self.stage,
            "log_odds": self.threshold,
            "seed": self.seed,
            "layers": layers,
        }

    @classmethod
    def __from_json__(
        cls, *, stage: int, log_odds: float, seed: int | None, layers: tuple["_StoredLayer", ...]
    ) -> "Stopping":
        return cls(stage, [layer.read() for layer in layers], log_odds=log_odds, seed=seed)


@final
@dataclass(frozen=True)
class _StoredLayer:
    """A layer in a file: base64 of little-endian float32, so that the numbers survive exactly."""

    shape: tuple[int, int]  # (outputs, inputs)
    weight: str
    bias: str

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> "_StoredLayer":
        outputs, inputs = weight.shape
        return cls((outputs, inputs), _encoded(weight), _encoded(bias))

    def read(self) -> Layer:
        outputs, inputs = self.shape
        weight = _decoded(self.weight, outputs * inputs).reshape(outputs, inputs)
        return weight, _decoded(self.bias, outputs)


def fixed_order_linear(
    x: Float[Tensor, "m d"], weight: Float[Tensor, "k d"], bias: Float[Tensor, " k"]
) -> Float[Tensor, "m k"]:
    """`x @ weight.T + bias` in float32, each sum folded in halves: element-wise operations alone.

    A row's result is the same to the last bit in any batch.
    """
    if torch.compiler.is_compiling():  # a graph takes matrix products for its networks as well
        return x @ weight.T + bias
    outputs, inputs = weight.shape
    rows = max(1, _PRODUCTS // (outputs * inputs))
    columns = weight.T  # (d, k)
    parts = [_folded(part[:, :, None] * columns) for part in torch.split(x, rows)]
    return torch.cat(parts) + bias


def fixed_order_linear_reference(
    x: Float[Tensor, "m d"], weight: Float[Tensor, "k d"], bias: Float[Tensor, " k"]
) -> Float[Tensor, "m k"]:
    """As `fixed_order_linear`, one number at a time: slow and obvious."""
    found = torch.empty(len(x), len(weight))
    for i, row in enumerate(x):
        for j, coefficients in enumerate(weight):
            terms = list(row * coefficients)
            while len(terms) > 1:
                half = len(terms) // 2
                rest = terms[2 * half :]
                terms = [a + b for a, b in zip(terms[:half], terms[half:], strict=False)] + rest
            found[i, j] = terms[0] + bias[j]
    return found


def _folded(terms: Float[Tensor, "m d k"]) -> Float[Tensor, "m k"]:
    while terms.shape[1] > 1:
        half = terms.shape[1] // 2
        pairs = terms[:, :half] + terms[:, half : 2 * half]
        odd = terms[:, 2 * half :]
        terms = pairs if odd.shape[1] == 0 else torch.cat([pairs, odd], dim=1)
    return terms[:, 0]


def _check_layers(layers: Sequence[Layer]) -> None:
    if not layers:
        raise InputError("layers must hold at least one layer, got none.")
    for k, (weight, bias) in enumerate(layers):
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise InputError(
                f"Layer {k} must have a weight (outputs, inputs) and a bias (outputs,), got "
                f"{tuple(weight.shape)} and {tuple(bias.shape)}."
            )
        for values in (weight, bias):
            if values.dtype != torch.float32 or not bool(values.isfinite().all()):
                raise InputError(f"Layer {k} must be float32 and finite, got {values.dtype}.")
    for (before, _), (after, _) in pairwise(layers):
        if after.shape[1] != before.shape[0]:
            raise InputError(
                f"A layer must read as many numbers as the one before gives, {before.shape[0]}, "
                f"got {after.shape[1]}."
            )
    if layers[-1][0].shape[0] != 2:
        raise InputError(
            f"The last layer must give 2 numbers (stop, go on), got {layers[-1][0].shape[0]}."
        )


def _encoded(values: Tensor) -> str:
    return base64.b64encode(values.detach().cpu().numpy().astype("<f4").tobytes()).decode()


def _decoded(text: str, count: int) -> Tensor:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FileFormatError(f"Weights of a stopping network are no base64: {error}.") from error
    if len(raw) != 4 * count:
        raise FileFormatError(
            f"Weights of a stopping network must be {4 * count} bytes, got {len(raw)}."
        )
    return torch.from_numpy(np.frombuffer(raw, dtype="<f4").astype(np.float32))
