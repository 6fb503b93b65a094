"""Running a sweep: every branch of a network, attached behind every convolution, trained at once.

Layer: train.  Source: Bonato and Bouganis, class-specific early exit, sections 3.2 and 4.2.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from offramp._core.checks import check_choice, check_probability
from offramp._core.device import check_device
from offramp._core.division import stratified_order
from offramp._core.errors import InputError
from offramp._core.types import SPLITS, IntArray
from offramp.data import Dataset
from offramp.fitting.class_exits.data import class_index, superclass_table, to_superclasses
from offramp.models import ModelSpec
from offramp.stages import Cascade, Transforms, evaluating, read_by
from offramp.train.cache import CacheDtype
from offramp.train.class_exits.evidence import predictions
from offramp.train.class_exits.features import BranchFeatures, branch_features
from offramp.train.class_exits.layout import every_branch
from offramp.train.class_exits.points import attachment_points
from offramp.train.class_exits.sweep import VALIDATION, Attachment, Sweep
from offramp.train.class_exits.training import Recipe, train_branches
from offramp.train.features import backbone_digest

_JUDGED = SPLITS[1:]


def sweep_branches(
    net: nn.Module,
    examples: Dataset,
    folder: Path | str,
    *,
    targets: Sequence[int | str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    sampled: int | None = None,
    grid: int = 2,
    recipe: Recipe | None = None,
    validation: float = 0.1,
    transform: Transforms = None,
    spec: ModelSpec | None = None,
    batch_size: int = 128,
    cache_dtype: CacheDtype = "float16",
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Sweep:
    """Attach a branch behind every convolution, with and without the maps before, and train all.

    The network runs once on every example; what it gives, pooled, and the state of the training are
    kept in the folder, so that an interrupted sweep goes on, and a complete one is only read.

    Args:
        net: In evaluation mode; it does not change.
        examples: With the splits "train" and "fit", and best with "calibrate" and "test".
        folder: Made if it is not there.
        targets: Classes by index or name; by default all, which exits of all classes need too.
        groups: For each superclass the names of its classes; exits then answer superclasses.
        sampled: Attach at so many points only.
        grid: Averages per side of a map; 1 is global average pooling.
        recipe: How to train; by default `Recipe()`.
        validation: Share of "train", in (0, 1), that judges the epochs.
        transform: Applied to the raw input first.
        spec: How to build `net` again; a bundle needs to know.
        batch_size: Examples that the network runs on at once.
        cache_dtype: How features to train on are kept: "float16" rounds and takes half the room,
            "float32" holds features beyond 65,504 as well.
        device: Where everything runs.
        progress: Show bars.

    Raises:
        UnknownNameError: If there is no such class; the nearest is suggested.
        InputError: If a split is missing, superclasses miss a class, a feature does not fit
            float16, or the folder is of another sweep.
        UnsupportedError: If the network cannot be followed.

    >>> import tempfile
    >>> from offramp.data import arrays
    >>> from offramp.models import cifar_resnet
    >>> examples = arrays(torch.rand(40, 3, 8, 8), [k % 2 for k in range(40)])
    >>> parts = examples.split_into({"train": 20, "fit": 20}, seed=0, stratified=True)
    >>> net = cifar_resnet(8, width=0.25, classes=2).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = sweep_branches(net, parts, folder, recipe=Recipe(epochs=1), progress=False)
    ...     len(found.specs), found.data("fit").evidence.shape
    (28, (20, 41))
    """
    recipe, folder = recipe or Recipe(), Path(folder)
    check_choice("cache_dtype", cache_dtype, get_args(CacheDtype))
    table = None if groups is None else superclass_table(examples.class_names, groups)
    class_names = tuple(examples.class_names if groups is None else groups)
    wanted = range(len(class_names)) if targets is None else targets
    classes = sorted({class_index(target, class_names) for target in wanted})
    device = check_device(device)
    attachment = _attachment(net.to(device), examples, sampled, grid, transform, table, spec)
    parts = _parts(examples, validation, recipe.seed)
    labels = {name: _mapped(part.labels.numpy(), table) for name, part in parts.items()}
    features = {
        name: _kept(folder / name, attachment, part, cache_dtype, batch_size, device, progress)
        for name, part in parts.items()
    }
    trained = train_branches(
        features["train"],
        features[VALIDATION],
        every_branch(len(attachment.points), classes),
        recipe,
        labels=torch.from_numpy(labels["train"]),
        judged_labels=torch.from_numpy(labels[VALIDATION]),
        checkpoint=folder / "branches.safetensors",
        identity=_identity(attachment, parts),
        progress=progress,
    )
    with evaluating(net):
        found = {
            split: predictions(net, parts[split], transform=transform, batch_size=batch_size)
            for split in _JUDGED
            if split in parts
        }
    return Sweep(
        attachment=attachment,
        class_names=class_names,
        parts=(trained,),
        features=features,
        labels=labels,
        baselines={split: _mapped(predicted, table) for split, predicted in found.items()},
        recipe=recipe,
    )


def _attachment(
    net: nn.Module,
    examples: Dataset,
    sampled: int | None,
    grid: int,
    transform: Transforms,
    table: IntArray | None,
    spec: ModelSpec | None,
) -> Attachment:
    example = examples.batch(0, 1).inputs
    if not isinstance(example, Tensor):
        raise InputError(f"examples must be images, one tensor each, got {type(example).__name__}.")
    example = example.to(next((p.device for p in net.parameters()), example.device))
    given = read_by(net, transform, example)
    return Attachment(
        net=net,
        points=tuple(attachment_points(net, given, sampled=sampled, grid=grid)),
        example=example,
        grid=grid,
        transform=transform,
        table=None if table is None else tuple(int(k) for k in table),
        spec=spec,
    )


def _kept(
    folder: Path,
    attachment: Attachment,
    part: Dataset,
    cache_dtype: CacheDtype,
    batch_size: int,
    device: torch.device | str,
    progress: bool,
) -> BranchFeatures:
    """Features of one part; those to choose on are not rounded."""
    return branch_features(
        folder,
        attachment.net,
        attachment.points,
        part,
        grid=attachment.grid,
        transform=attachment.transform,
        dtype="float32" if folder.name in _JUDGED else cache_dtype,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )


def _parts(examples: Dataset, validation: float, seed: int) -> dict[str, Dataset]:
    """Examples of each split, those of "train" divided once more, class by class."""
    train = examples.subset("train")
    order = torch.from_numpy(stratified_order(train.labels.numpy(), seed=seed))
    count = max(1, round(check_probability("validation", validation) * len(train)))
    held, kept = order[:count].sort().values, order[count:].sort().values
    parts = {"train": train.take(kept), VALIDATION: train.take(held), "fit": examples.subset("fit")}
    for split in SPLITS[2:]:
        if examples.split is not None and bool((examples.split == SPLITS.index(split)).any()):
            parts[split] = examples.subset(split)
    return parts


def _mapped(labels: IntArray, table: IntArray | None) -> IntArray:
    return labels if table is None else to_superclasses(labels, table)


def _identity(attachment: Attachment, parts: Mapping[str, Dataset]) -> dict[str, str]:
    whole = Cascade.from_models({"net": attachment.net}, transform=attachment.transform)
    return {
        "network": backbone_digest(whole),
        "points": " ".join(point.name for point in attachment.points),
        "grid": str(attachment.grid),
        "superclasses": repr(attachment.table),
        "examples": f"{parts['train'].fingerprint} {parts[VALIDATION].fingerprint}",
    }
