"""Networks of torchvision as stages.

Layer: adapters.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from offramp._core.checks import check_known
from offramp._core.errors import InputError, UnsupportedError
from offramp.adapters.answers import in_order
from offramp.adapters.pictures import picture_transform
from offramp.models import ModelSpec, build, load_weights
from offramp.models.foreign import SCALING, check_class_count, check_classifier, package
from offramp.stages import Stage, Transforms

_CLASSES = 1000  # of every classifier, unless it is told another number
_KEPT = ("transform_input", "aux_logits")  # what weights change of a network that is made


def from_torchvision(
    name: str,
    *,
    weights: str | None = "DEFAULT",
    checkpoint: Path | str | None = None,
    class_names: Sequence[str] | None = None,
    transform: Transforms = None,
    **options: Any,  # noqa: ANN401  (what the network takes)
) -> Stage:
    """A network of torchvision as a stage, with the transform and the categories of its weights.

    A bundle builds it again by its name and arguments, with torchvision installed and nothing
    downloaded.

    Args:
        name: A classifier of `torchvision.models.list_models()`, such as "resnet18".
        weights: Which of its weights: "IMAGENET1K_V1"; "DEFAULT" for the best. They are downloaded
            unless there is a `checkpoint`, and say transform and categories in any case. None
            knows neither, and makes random weights where there is no checkpoint.
        checkpoint: File of weights, as `offramp.models.load_weights` takes it.
        class_names: All classes in the order of the cascade, which the stage then answers in; by
            default the categories of the weights. `[]` for none.
        transform: In place of the one of the weights.
        options: Arguments of the network, JSON values: num_classes, dropout.

    Returns:
        A stage that reads uint8 images `(m, 3, h, w)`, or lists of bytes or images of any sizes;
        without weights and `transform` what the network reads.

    Raises:
        MissingExtraError: Without the extra "torchvision".
        UnknownNameError: If there is no such classifier, or it has no such weights.
        InputError: If the network refuses an option, or `class_names` are others than those known.
        UnsupportedError: If the transform cannot be said with ours.
        FileFormatError: If the checkpoint does not fit.
    """
    models = package("torchvision", "torchvision").models
    check_classifier(models, name)
    check_class_count(options)
    told = None
    if weights is not None:
        known = models.get_model_weights(name)
        told = known[check_known(f"weights of {name}", weights, ["DEFAULT", *known.__members__])]
        if name in SCALING:
            options.setdefault("transform_input", True)
    if told is None or checkpoint is not None:
        net = build(_spec(name, options))
    else:
        try:
            net = models.get_model(name, weights=told, **options).eval()
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"torchvision cannot make {name!r} with {options}: {error}") from error
    if checkpoint is not None:
        load_weights(net, checkpoint)
    kept = {field: getattr(net, field) for field in _KEPT if hasattr(net, field)}
    names = told.meta["categories"] if told else ()
    count = options.get("num_classes", len(names) or _CLASSES)
    stage = Stage(
        name,
        net,
        transform=_transform(name, told) if transform is None and told else transform,
        spec=_spec(name, {**options, **kept}),
        classes=count,
        class_names=names if count == len(names) else (),
    )
    return in_order(stage, class_names)


def _spec(name: str, options: Mapping[str, Any]) -> ModelSpec:
    return ModelSpec(name="torchvision", arguments={**options, "architecture": name})


def _transform(name: str, weights: Any) -> nn.Module:  # noqa: ANN401  (a member of an enumeration)
    says = weights.transforms()
    try:
        size, crop = says.resize_size, says.crop_size
        return picture_transform(
            f"{name} with {weights.name}",
            size=size[0] if len(size) == 1 else tuple(size),
            crop=crop[0] if len(crop) == 1 else tuple(crop),
            interpolation=says.interpolation.value,
            mean=says.mean,
            std=says.std,
        )
    except AttributeError as error:
        raise UnsupportedError(
            f"The transform of {name} must have the fields of torchvision's ImageClassification: "
            f"{error}. Give transform= to the adapter."
        ) from error
