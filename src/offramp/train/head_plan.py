"""What a training of heads is given, checked: candidates, examples, and whose training it is.

Layer: train.  Source: none.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from offramp._core.checks import (
    check_choice,
    check_known,
    check_not_negative,
    check_positive,
    check_positive_int,
    check_probability,
)
from offramp._core.division import stratified_order
from offramp._core.errors import InputError
from offramp.data import Dataset
from offramp.stages import Cascade
from offramp.train.cache import CacheDtype, cached_features
from offramp.train.features import Augment, Computed, Source, backbone_digest
from offramp.train.state import seed_for


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """The arguments of `train_heads` that do not belong to one head."""

    epochs: int
    seed: int
    patience: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    class_weights: tuple[float, ...] | None
    augment: Augment | None
    cache: Path | None
    cache_dtype: CacheDtype
    bfloat16: bool
    checkpoint: Path | None
    device: torch.device
    progress: bool

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size"):
            check_positive_int(name, getattr(self, name))
        check_not_negative("weight_decay", self.weight_decay)
        check_choice("cache_dtype", self.cache_dtype, ("float16", "float32"))
        check_positive("learning_rate", self.learning_rate)
        for weight in self.class_weights or ():
            check_positive("class_weights", weight)
        if self.cache is not None and self.augment is not None:
            raise InputError(
                "augment changes the features in each pass, so they cannot be kept; leave out "
                "either augment or cache."
            )


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """Some rows of a set of examples, and what heads read of them."""

    examples: Dataset
    rows: Tensor
    source: Source

    def labels(self, rows: Tensor) -> Tensor:
        """Their true labels, `(m,)`."""
        return self.examples.labels[rows]


def head_names(cascade: Cascade, heads: Sequence[str] | None) -> list[str]:
    """Stages whose heads are trained, in the order of the cascade, once they are checked.

    Raises:
        UnknownNameError: If there is no such stage.
        InputError: If a stage has no head, or a head has nothing to train or shares weights.
    """
    with_head = [stage.name for stage in cascade if stage.head is not None]
    if heads is None:
        names = with_head
    else:
        for name in heads:
            check_known("stage with a head", name, with_head)
        names = [name for name in with_head if name in heads]
    if not names:
        raise InputError("heads must name at least one stage with a head, got none.")
    _check_weights(cascade, names)
    return names


def head_of(cascade: Cascade, name: str) -> nn.Module:
    """The head of a stage that has one."""
    head = cascade.stage(name).head
    if head is None:
        raise InputError(f"Stage {name!r} has no head.")
    return head


def parts_of(
    cascade: Cascade,
    part: Dataset,
    validation: Dataset | float,
    names: Sequence[str],
    plan: Plan,
) -> tuple[Part, Part]:
    """The examples to train on, and those to judge on.

    Raises:
        InputError: If one of the parts would be too small, or a head's outputs do not fit.
    """
    _check_outputs(cascade, part, names, plan)
    source = _source(cascade, part, names, plan, "train")
    if isinstance(validation, Dataset):
        judged = Part(
            examples=validation,
            rows=torch.arange(len(validation)),
            source=_source(cascade, validation, names, plan, "validation"),
        )
        rows = torch.arange(len(part))
    else:
        share = check_probability("validation", validation)
        order = stratified_order(part.labels.numpy(), seed=seed_for(plan.seed, "validation"))
        count = max(1, round(share * len(part)))
        judged = Part(
            examples=part, rows=torch.from_numpy(order[:count]).sort().values, source=source
        )
        rows = torch.from_numpy(order[count:]).sort().values
    if len(rows) < 2:
        raise InputError(
            f"part must leave at least 2 examples to train on, got {len(rows)} of {len(part)}."
        )
    return Part(examples=part, rows=rows, source=source), judged


def identity_of(
    cascade: Cascade,
    part: Dataset,
    validation: Dataset | float,
    names: Sequence[str],
    plan: Plan,
) -> dict[str, str]:
    """What must be the same for a training to go on from a checkpoint."""
    shapes = {
        name: [[k, list(v.shape)] for k, v in head_of(cascade, name).state_dict().items()]
        for name in names
    }
    numbers = (
        "epochs",
        "seed",
        "patience",
        "batch_size",
        "learning_rate",
        "weight_decay",
        "bfloat16",
    )
    judged = validation.fingerprint if isinstance(validation, Dataset) else repr(validation)
    return {
        **{name: repr(getattr(plan, name)) for name in (*numbers, "class_weights")},
        "augment": getattr(plan.augment, "__qualname__", type(plan.augment).__qualname__),
        "cache": "none" if plan.cache is None else plan.cache_dtype,
        "backbone": backbone_digest(cascade),
        "examples": part.fingerprint,
        "validation": judged,
        "heads": json.dumps(shapes),
    }


def _source(
    cascade: Cascade, examples: Dataset, names: Sequence[str], plan: Plan, what: str
) -> Source:
    if plan.cache is None:
        return Computed(
            cascade, examples, plan.device, augment=plan.augment, bfloat16=plan.bfloat16
        )
    return cached_features(
        plan.cache / what,
        cascade,
        examples,
        names,
        dtype=plan.cache_dtype,
        bfloat16=plan.bfloat16,
        batch_size=plan.batch_size,
        device=plan.device,
        progress=plan.progress,
    )


def _check_weights(cascade: Cascade, names: Sequence[str]) -> None:
    """Each head must have weights to train, and they must be its own."""
    owner: dict[int, str] = {}
    for stage in cascade:
        kept = [stage.module] if stage.name in names else [stage.module, stage.head]
        for module in kept:
            if module is not None:
                owner.update((id(p), "what is not trained") for p in module.parameters())
    for name in names:
        own = [p for p in head_of(cascade, name).parameters() if p.requires_grad]
        if not own:
            raise InputError(
                f"The head of {name!r} has no weights to train. Leave it out: heads=[...] names "
                "those that are trained."
            )
        for parameter in own:
            other = owner.setdefault(id(parameter), f"the head of {name!r}")
            if other != f"the head of {name!r}":
                raise InputError(
                    f"The head of {name!r} shares weights with {other}; give it a copy of its own."
                )


def _check_outputs(cascade: Cascade, part: Dataset, names: Sequence[str], plan: Plan) -> None:
    source = Computed(cascade, part, plan.device)
    weights = plan.class_weights
    with torch.no_grad():
        for name, carry in source.carries(torch.tensor([0]), names):
            outputs = source.answer(name, carry).shape[1]
            if outputs < part.classes:
                raise InputError(
                    f"The head of {name!r} must give at least {part.classes} logits, one for each "
                    f"class of {part.name}, got {outputs}."
                )
            if weights is not None and len(weights) != outputs:
                raise InputError(
                    f"class_weights must have {outputs} entries, as many as the head of {name!r} "
                    f"gives logits, got {len(weights)}."
                )
