"""The rule of a deferral policy: a small network on what the visited stages said.

It is fitted elsewhere (`offramp.fitting.deferral`); here it only decides. Sums are taken in a fixed
order and in float32, as in `offramp.policy.stopping`: a decision must not depend on its batch.

Layer: policy.  Source: docs/adr/0066.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from offramp._core.errors import InputError
from offramp._core.schema import stored
from offramp.policy.features import Feature
from offramp.policy.situation import Situation
from offramp.policy.stopping import (
    Layer,
    StoredLayer,
    check_layer,
    decoded,
    encoded,
    fixed_order_linear,
)


@final
@stored("deferral")
class Deferral(nn.Module):
    """Takes the action where a network of one hidden layer gives at least 0.

    `k + 1` sums are taken of the features, and of a row of each table: that of the class which a
    stage named. The first `k` pass a ReLU and are summed up by the last layer; the last sum is
    added as it is. That is a weighted sum of features and of indicators of classes, beside a hidden
    layer on the same; a row is looked up where indicators would be multiplied.

    Args:
        features: What is read, `(d,)`, of any visited stages.
        sums: Weight `(k + 1, d)` and bias `(k + 1,)`, float32.
        last: Weight `(1, k)` and bias `(1,)`, float32.
        named: For visited stages what each class adds to the sums, `(classes + 1, k + 1)`, float32;
            the last row is for a label that is no class.

    Raises:
        InputError: If the layers do not fit together, or hold NaN or infinity.

    >>> sums = (torch.tensor([[1.0], [0.0]]), torch.tensor([-0.5, 0.0]))
    >>> last = (torch.tensor([[2.0]]), torch.tensor([-0.5]))  # 0 at a probability of 0.75
    >>> Deferral([Feature("max_prob", 0)], sums, last).free
    False
    """

    free = False

    def __init__(
        self,
        features: Sequence[Feature],
        sums: Layer,
        last: Layer,
        named: Mapping[int, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        check_layer(0, *sums)
        check_layer(1, *last)
        outputs, read = sums[0].shape
        if read != len(self.features):
            raise InputError(
                f"sums must read one number per feature ({len(self.features)}), got {read}."
            )
        if last[0].shape != (1, outputs - 1):
            raise InputError(
                f"last must have a weight of shape (1, {outputs - 1}), for all sums but the last, "
                f"got {tuple(last[0].shape)}."
            )
        for name, (weight, bias) in (("sums", sums), ("last", last)):
            self.register_buffer(f"{name}_weight", weight.detach().clone())
            self.register_buffer(f"{name}_bias", bias.detach().clone())
        self.named = tuple(sorted(named or {}))
        for stage in self.named:
            table = (named or {})[stage]
            check_layer(stage, table, table.new_zeros(len(table)))
            if table.shape[1] != outputs:
                raise InputError(
                    f"named must add to {outputs} sums, got {table.shape[1]} of stage {stage}."
                )
            self.register_buffer(f"named{stage}", table.detach().clone())

    def score(self, at: Situation) -> Float[Tensor, " m"]:
        """What the network gives, float32.

        Raises:
            InputError: If a stage has more classes than the policy was fitted on.
        """
        x = torch.stack([feature.of(at.distribution) for feature in self.features], dim=1)
        sums = fixed_order_linear(x, *self._layer("sums"))  # (m, k + 1)
        for stage in self.named:
            distribution, table = at.distribution(stage), self.get_buffer(f"named{stage}")
            if distribution.log_probs.shape[1] > len(table):
                raise InputError(
                    f"This policy was fitted on {len(table) - 1} classes, but stage {stage} gives "
                    f"{distribution.log_probs.shape[1]}. It belongs to another cascade."
                )
            sums = sums + table[distribution.label]
        inner = fixed_order_linear(sums[:, :-1].relu(), *self._layer("last"))
        return inner[:, 0] + sums[:, -1]

    def _layer(self, name: str) -> Layer:
        return self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias")

    def __json__(self) -> dict[str, object]:
        return {
            "features": self.features,
            "sums": StoredLayer.of(*self._layer("sums")),
            "last": StoredLayer.of(*self._layer("last")),
            "named": [_StoredTable.of(k, self.get_buffer(f"named{k}")) for k in self.named],
        }

    @classmethod
    def __from_json__(
        cls,
        *,
        features: tuple[Feature, ...],
        sums: StoredLayer,
        last: StoredLayer,
        named: tuple["_StoredTable", ...],
    ) -> "Deferral":
        return cls(features, sums.read(), last.read(), {t.stage: t.read() for t in named})


@final
@dataclass(frozen=True)
class _StoredTable:
    stage: int
    shape: tuple[int, int]  # (classes + 1, sums)
    rows: str  # base64 of little-endian float32

    @classmethod
    def of(cls, stage: int, table: Tensor) -> "_StoredTable":
        rows, columns = table.shape
        return cls(stage, (rows, columns), encoded(table))

    def read(self) -> Tensor:
        return decoded(self.rows, self.shape[0] * self.shape[1]).reshape(self.shape)
