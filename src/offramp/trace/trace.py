"""The trace: everything that a policy is fitted, compared and certified on.

Layer: trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from offramp._core.checks import (
    check_class_names,
    check_labels,
    check_shape,
    check_split,
)
from offramp._core.costs import Bill, Costs, PricedCosts
from offramp._core.division import counts_of, random_order
from offramp._core.errors import InputError, SplitOverlapError
from offramp._core.ids import as_ids, shown_id
from offramp._core.outputs import StageOutput
from offramp._core.topology import Topology
from offramp._core.types import SPLITS, BoolArray, FloatArray, Ids, OutputForm, Split
from offramp.trace.values import check_losses, check_prices, counts_of_features, unknown


@final
@dataclass(frozen=True, kw_only=True)
class Trace:
    """Outputs of `s` stages on `n` labeled examples of `c` classes; or what their answers lost.

    Args:
        topology: The stages and the decision edges between them.
        labels: True labels, `(n,)`, int64, in [0, c). With `losses` all 0.
        classes: Number of classes `c`, at least 2. With `losses` 1.
        costs: Cost of each stage per example, as a policy knows it beforehand; `other_costs` holds
            further tables (other units).
        losses: Of tasks without classes: what each stage's answer to each example loses, `(n, s)`:
            float32 in [0, 1], or int8 where each is 0 or 1. NaN, of int8 -1, in the whole column of
            a stage that answers nothing, and after which another always follows.
        features: With `losses`: what a policy sees of each stage, `(n, s, d)`, float32, finite.
        feature_counts: How many of the `d` features each stage gives; the rest of its row is filled
            up. None for a stage of which nobody knows, as in files of before; by default `d` each.
        prices: Where the cost of a stage differs from example to example: that of each example and
            stage's segment, `(n, s)`, float64, finite, >= 0, in the unit of `costs`, which hold
            the means. None where all are equal to these.
        logits: Unnormalized scores, `(n, s, c)`, float32 (float16 if `lossy`), finite.
            Either these, or `ranked`, or `losses` with `features`.
        ranked: Predicted labels, best first, `(n, s, r)`, int64; any value is legitimate. Equal
            ones agree, so a negative one, for no answer, is of its stage alone.
        confidence: With `ranked`: probability that the first label is right, `(n, s)`.
        ids: Names of the examples, `(n,)`, int64 or str, unique; by default 0..n-1.
        split: Index into `SPLITS` of each example, `(n,)`, int8, or None where undecided.
        class_names: Names of the classes, for people.
        seen_in_training: True if the networks were trained on these examples; a policy fitted on
            them is biased towards the expensive stages and is never certified.
        lossy: True if the outputs were stored with less precision than computed.
        notes: What people should know of how it was recorded, such as examples left out.

    Raises:
        InputError: If shapes differ, a label lies outside [0, c), a logit is not finite, there
            are no examples, or neither or both of `logits` and `ranked` are given.

    >>> import torch
    >>> trace = Trace(topology=Topology.of(["a", "b"]), classes=2, labels=torch.tensor([0, 1]),
    ...               logits=torch.zeros(2, 2, 2), costs=Costs.simple("flops", [1.0, 4.0]))
    >>> len(trace), trace.topology.names
    (2, ('a', 'b'))
    """

    topology: Topology
    labels: Int[Tensor, " n"]
    classes: int
    costs: Costs
    logits: Float[Tensor, "n s c"] | None = None
    ranked: Int[Tensor, "n s r"] | None = None
    confidence: Float[Tensor, "n s"] | None = None
    losses: Float[Tensor, "n s"] | Int[Tensor, "n s"] | None = None
    features: Float[Tensor, "n s d"] | None = None
    feature_counts: tuple[int | None, ...] = ()
    prices: Float[Tensor, "n s"] | None = None
    ids: Ids = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    split: Int[Tensor, " n"] | None = None
    class_names: tuple[str, ...] = ()
    other_costs: tuple[Costs, ...] = ()
    seen_in_training: bool = False
    lossy: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n, s, c = len(self.labels), len(self.topology), self.classes
        if n == 0:
            raise InputError("A trace needs at least one example, got n = 0.")
        if (self.losses is None) != (self.features is None):
            raise InputError("losses and features belong together; give both or neither.")
        if self.losses is not None:
            check_losses(self.losses, n, self.topology)
            if c != 1:
                raise InputError(f"classes must be 1 where there are losses, got {c}.")
        elif c < 2:
            raise InputError(f"classes must be at least 2, got {c}.")
        if [self.logits, self.ranked, self.losses].count(None) != 2:
            raise InputError("Give one of logits, ranked labels and losses, and not several.")
        if self.features is not None:
            check_shape("features", self.features.shape, (n, s, None))
        given = counts_of_features(self.feature_counts, self.features, s)
        object.__setattr__(self, "feature_counts", given)
        if self.logits is not None:
            check_shape("logits", self.logits.shape, (n, s, c))
        if self.ranked is not None:
            check_shape("ranked", self.ranked.shape, (n, s, None))
        if self.confidence is not None:
            check_shape("confidence", self.confidence.shape, (n, s))
            if self.logits is not None:
                raise InputError("confidence belongs to ranked labels; logits need none.")
            inside = (self.confidence >= 0) & (self.confidence <= 1)  # False for NaN as well
            if not bool(inside.all()):
                row, stage = (int(v) for v in (~inside).nonzero()[0])
                raise InputError(
                    f"confidence must be in [0, 1], got {float(self.confidence[row, stage])!r} "
                    f"for example {row}, stage {self.topology.names[stage]!r}."
                )
        for table in (self.costs, *self.other_costs):
            if len(table) != s:
                raise InputError(f"costs must have one entry per stage ({s}), got {len(table)}.")
        if self.prices is not None:
            checked = check_prices(self.prices, n, self.topology, self.costs)
            object.__setattr__(self, "prices", checked)
        object.__setattr__(self, "labels", check_labels(self.labels, c))
        object.__setattr__(self, "class_names", check_class_names(self.class_names, c))
        self._check_finite()
        ids = np.arange(n, dtype=np.int64) if len(self.ids) == 0 else as_ids(self.ids)
        object.__setattr__(self, "ids", ids)
        check_shape("ids", self.ids.shape, (n,))
        names, counts = np.unique(self.ids, return_counts=True)
        if len(names) != n:
            raise InputError(
                f"ids must be unique, got {shown_id(names[counts > 1][0])} {counts.max()} times: "
                "an example recorded twice would count twice."
            )
        if self.split is not None:
            check_shape("split", self.split.shape, (n,))
            if bool(((self.split < 0) | (self.split >= len(SPLITS))).any()):
                raise InputError(f"split must hold indices into {SPLITS}.")

    def _check_finite(self) -> None:
        if self.features is not None and not bool(torch.isfinite(self.features).all()):
            row, stage, _ = (int(v) for v in (~torch.isfinite(self.features)).nonzero()[0])
            raise InputError(
                f"features must be finite, got NaN or infinity for example {row}, stage "
                f"{self.topology.names[stage]!r}."
            )
        if self.logits is None:
            return
        step = max(1, 2**22 // (self.logits.shape[1] * self.classes))  # the logits may be mapped
        for start in range(0, len(self.labels), step):
            part = self.logits[start : start + step]
            if not bool(torch.isfinite(part).all()):
                row, stage = (int(v) for v in (~torch.isfinite(part)).nonzero()[0][:2])
                raise InputError(
                    f"logits must be finite, got NaN or infinity for example "
                    f"{start + row}, stage {self.topology.names[stage]!r}. Find out why the "
                    "network gives such an output before recording."
                )

    def __len__(self) -> int:
        return len(self.labels)

    def _repr_html_(self) -> str:
        from offramp.trace.shown import trace_card  # for a notebook only

        return trace_card(self)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages, in topological order."""
        return self.topology.names

    @property
    def outputs(self) -> OutputForm:
        """The form of the stages' outputs: one of `OUTPUT_FORMS`."""
        if self.logits is not None:
            return "logits"
        if self.features is not None:
            return "features"
        return "labels" if self.confidence is None else "confidence"

    @property
    def labeled(self) -> bool:
        """False where losses are known, and neither labels nor classes."""
        return self.losses is None

    @property
    def graded(self) -> bool:
        """True where a loss may be another number than 0 and 1."""
        return self.losses is not None and self.losses.dtype != torch.int8

    @property
    def silent(self) -> frozenset[int]:
        """Stages that answer nothing."""
        if self.losses is None:
            return frozenset()
        return frozenset(unknown(self.losses[0]).nonzero()[:, 0].tolist())

    def output(self, stage: int) -> StageOutput:
        """What one stage said about every example."""
        given = self.features
        return StageOutput(
            classes=self.classes,
            logits=None if self.logits is None else self.logits[:, stage].float(),
            ranked=None if self.ranked is None else self.ranked[:, stage],
            confidence=None if self.confidence is None else self.confidence[:, stage],
            features=None if given is None else given[:, stage, : self.feature_counts[stage]],
        )

    def wrong(self, stage: int, *, top: int = 1) -> BoolArray:
        """True where the label is not among the `top` best of a stage, `(n,)`.

        Raises:
            InputError: If losses lie between 0 and 1, or the stage answers nothing.
        """
        if self.losses is not None:
            self._check_recorded(stage, top)
            if self.graded:
                raise InputError("Answers here are not right or wrong; read their loss instead.")
            return (self.losses[:, stage] == 1).numpy()
        best = self.output(stage).top(top)  # (n, top)
        return (best != self.labels[:, None]).all(dim=1).numpy()

    def loss(self, stage: int, *, top: int = 1) -> FloatArray:
        """Loss of a stage's answers, `(n,)`; of labels 1 where they are wrong."""
        if self.losses is None or not self.graded:
            return self.wrong(stage, top=top).astype(np.float64)
        self._check_recorded(stage, top)
        return self.losses[:, stage].double().numpy()

    def _check_recorded(self, stage: int, top: int) -> None:
        if top != 1:
            raise InputError(f"top must be 1 where losses were recorded and no labels, got {top}.")
        if stage in self.silent:
            raise InputError(
                f"The stage {self.topology.names[stage]!r} answers nothing, so that nothing is "
                "known of its answers, and nobody may leave there; others have to follow it."
            )

    def require_labels(self, what: str) -> None:
        """Raise `InputError` where losses were recorded and no labels.

        Args:
            what: What needs labels, for the message: "policy='agreement'".
        """
        if self.losses is not None:
            raise InputError(
                f"{what} needs labels, and this trace holds losses: answers without classes can "
                "be neither compared nor combined. The policies 'learned', 'threshold' and "
                "'random' need none."
            )

    def accuracy(self, stage: int, *, top: int = 1) -> float:
        """Share of examples that a stage gets right among its `top` best; or 1 - its mean loss."""
        return float(1.0 - self.loss(stage, top=top).mean())

    @property
    def bill(self) -> Bill:
        """What the examples are billed by: `costs`, or each by its own prices."""
        if self.prices is None:
            return self.costs
        return PricedCosts(mean=self.costs, prices=self.prices.numpy())

    @property
    def mean_costs(self) -> Costs:
        """The costs, with the mean prices of these very examples where they have their own."""
        if self.prices is None:
            return self.costs
        return replace(self.costs, segment=tuple(self.prices.mean(dim=0).tolist()))

    def mean_cost(self, stage: int) -> float:
        """Mean cost of a stage run alone on the raw input."""
        return self.mean_costs.alone(self.topology, stage)

    def stage_costs(self) -> FloatArray:
        """Mean cost of each stage run alone on the raw input, `(s,)`."""
        return np.array([self.mean_cost(k) for k in range(len(self.topology))])

    def most_accurate(self, *, top: int = 1) -> int:
        """The stage with the highest accuracy; the cheaper one where they tie."""
        costs = self.stage_costs()
        answering = [k for k in range(len(self.topology)) if k not in self.silent]
        return min(answering, key=lambda k: (-self.accuracy(k, top=top), costs[k]))

    def take(self, index: Tensor) -> "Trace":
        """The trace of some examples, by position or mask."""
        positions = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        return replace(
            self,
            labels=self.labels[positions],
            logits=None if self.logits is None else self.logits[positions],
            ranked=None if self.ranked is None else self.ranked[positions],
            confidence=None if self.confidence is None else self.confidence[positions],
            prices=None if self.prices is None else self.prices[positions],
            losses=None if self.losses is None else self.losses[positions],
            features=None if self.features is None else self.features[positions],
            ids=self.ids[positions.numpy()],
            split=None if self.split is None else self.split[positions],
        )

    def only(self, stages: Sequence[str]) -> "Trace":
        """The trace of some of the stages, as if no other had been recorded.

        Args:
            stages: Names, in topological order. One may follow another if it could before, with
                others between them or not.

        Raises:
            InputError: If a stage is unknown, or reads another that is left out.
        """
        topology = self.topology.only(stages)
        index = [self.topology.index(name) for name in topology.names]
        tables = ("logits", "ranked", "confidence", "losses", "features", "prices")
        given = ((name, getattr(self, name)) for name in tables)
        columns: dict[str, Any] = {n: None if v is None else v[:, index] for n, v in given}
        return replace(
            self,
            topology=topology,
            costs=self.costs.only(index),
            other_costs=tuple(table.only(index) for table in self.other_costs),
            feature_counts=tuple(self.feature_counts[k] for k in index if self.feature_counts),
            **columns,
        )

    def subset(self, split: Split) -> "Trace":
        """The examples of one split.

        Raises:
            InputError: If the trace has no splits, or none of its examples is in this one.
        """
        check_split("split", split)
        if self.split is None:
            raise InputError(
                "This trace has no splits; divide it first with trace.split_into({...}, seed=...)."
            )
        mask = self.split == SPLITS.index(split)
        if not bool(mask.any()):
            raise InputError(f"No example of this trace is in the split {split!r}.")
        return self.take(mask)

    def has_split(self, split: Split) -> bool:
        """True if at least one example is in this split."""
        return self.split is not None and bool((self.split == SPLITS.index(split)).any())

    def split_into(self, shares: dict[Split, float | int], *, seed: int) -> "Trace":
        """The same examples, split at random.

        Args:
            shares: For each split a fraction, all floats with a sum of at most 1 (a sum of 1 uses
                every example); or a number of examples each. What they leave over is dropped.
            seed: Of the random order.

        Raises:
            InputError: If the shares are mixed, sum to more than there is, or leave a split empty.
        """
        n = len(self)
        order = random_order(n, seed=seed)
        split = np.full(n, -1, dtype=np.int64)
        start = 0
        for name, count in counts_of(shares, n).items():
            split[order[start : start + count]] = SPLITS.index(name)
            start += count
        kept = torch.from_numpy(np.flatnonzero(split >= 0))
        whole = replace(self, split=None).take(kept)
        return replace(whole, split=torch.from_numpy(split[split >= 0]))

    def halved(self, *, seed: int) -> "Trace":
        """This trace with splits: where it has none, half `fit` and half `calibrate`, at random.

        More to fit on makes policies hardly better, more to calibrate on makes promises cheaper
        (`docs/adr/0067`).
        """
        if self.split is not None:
            return self
        return self.split_into({"fit": 0.5, "calibrate": 0.5}, seed=seed)

    def with_costs(self, costs: Costs) -> "Trace":
        """The same trace in another cost unit; the present table moves to `other_costs`.

        Prices of examples are those of the present table, and do not go along.
        """
        others = tuple(c for c in (self.costs, *self.other_costs) if c is not costs)
        prices = self.prices if costs is self.costs else None
        return replace(self, costs=costs, other_costs=others, prices=prices)

    def require_disjoint(self, other: "Trace") -> None:
        """Raise `SplitOverlapError` if an example stands in both traces."""
        both = np.intersect1d(self.ids, other.ids)
        if len(both):
            raise SplitOverlapError(
                f"{len(both)} examples are in both parts, e.g. {shown_id(both[0])}. Splits must be "
                "disjoint."
            )
