"""Networks of timm as stages.

Layer: adapters.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from offramp._core.checks import check_text
from offramp._core.errors import InputError, UnsupportedError
from offramp.adapters.answers import in_order
from offramp.adapters.pictures import picture_transform, refuse
from offramp.models import InOrder, ModelSpec, load_weights
from offramp.models.foreign import check_architecture, check_class_count, check_options, package
from offramp.stages import Stage, Transforms

_IMAGENET = ("in1k", "in12k")  # how tags of weights for all classes of a subset end


def from_timm(
    name: str,
    *,
    pretrained: bool | None = None,
    checkpoint: Path | str | None = None,
    class_names: Sequence[str] | None = None,
    transform: Transforms = None,
    **options: Any,  # noqa: ANN401  (what the network takes)
) -> Stage:
    """A network of timm as a stage, with the transform that its weights were made with.

    A bundle builds it again by its name and arguments, with timm installed and nothing downloaded.

    Args:
        name: As `timm.create_model` takes it: "efficientnet_b0", "resnet18.a1_in1k", or
            "hf-hub:timm/resnet18.a1_in1k".
        pretrained: True downloads the weights of the name, which is the default where there is no
            `checkpoint`; False makes random ones.
        checkpoint: File of weights, as `offramp.models.load_weights` takes it; nothing is
            downloaded.
        class_names: All classes in the order of the cascade, which the stage then answers in; by
            default those that timm knows of the weights. `[]` for none.
        transform: In place of the one of the weights.
        options: Arguments of the network, JSON values: num_classes, in_chans, img_size.

    Returns:
        A stage that reads uint8 images `(m, 3, h, w)`, or lists of bytes or images of any sizes.

    Raises:
        MissingExtraError: Without the extra "timm".
        UnknownNameError: If timm has no such network; the nearest is suggested.
        InputError: If timm refuses the arguments, or `class_names` are others than those known.
        UnsupportedError: If the transform cannot be said with ours; the field is named.
        FileFormatError: If the weights do not fit.
    """
    timm, name = package("timm", "timm"), check_text("name", name)
    if pretrained and checkpoint is not None:
        raise InputError("pretrained must be left out where a checkpoint is given, got True.")
    check_options(options)
    check_class_count(options)
    load = checkpoint is None if pretrained is None else pretrained
    architecture, saved = _resolved(timm, name)
    check_architecture(timm, architecture)
    try:
        net: Any = timm.create_model(name, pretrained=load, **options)
    except Exception as error:
        raise InputError(f"timm cannot make {name!r} with {options}: {error}") from error
    if not isinstance(getattr(net, "num_classes", None), int):
        raise InputError(f"timm makes no classifier of {name!r} with {options}.")
    net.eval()
    if checkpoint is not None:
        load_weights(net, checkpoint)
    says: Mapping[str, Any] = net.pretrained_cfg
    # Written out: with another version of timm the name may mean other weights, of other classes.
    arguments = {"num_classes": net.num_classes, **saved, **options, "architecture": architecture}
    named = load or checkpoint is None or "." in name
    stage = Stage(
        name,
        net,
        transform=_transform(timm, name, says, options) if transform is None else transform,
        spec=ModelSpec(name="timm", arguments=arguments),
        classes=int(net.num_classes) or None,
        class_names=_class_names(timm, net, says) if named else (),
    )
    return in_order(stage, class_names)


def timm_exits(stage: Stage) -> list[str]:
    """Layers of a network of timm after which exits suggest themselves, in order.

    They are those whose outputs `forward_intermediates` gives, but for the last: ends of blocks
    and of resolutions.

    Args:
        stage: Of `from_timm`.

    Returns:
        Names for `Cascade.from_network(stage.module, exits=...)`.

    Raises:
        UnsupportedError: If the network does not tell; `offramp.stages.cut_points` lists all.
    """
    turned = isinstance(stage.module, InOrder)
    net = stage.module.model if turned else stage.module
    told = getattr(net, "feature_info", None)
    infos = getattr(told, "info", told)
    names = [info.get("module", "") for info in infos] if isinstance(infos, list) else []
    if len(names) < 2 or not all(names):
        raise UnsupportedError(
            f"{stage.name!r} does not tell its blocks. Give a number of exits, or names out of "
            "offramp.stages.cut_points."
        )
    return [f"model.{name}" if turned else str(name) for name in names[:-1]]


def _resolved(timm: Any, name: str) -> tuple[str, dict[str, Any]]:  # noqa: ANN401
    """The architecture, and the arguments that the place of the weights brings along."""
    source, _, place = name.rpartition(":")
    if not source:
        return name.partition(".")[0], {}
    if source not in ("hf-hub", "hf_hub"):
        raise InputError(f"name must be a network of timm or 'hf-hub:owner/name', got {name!r}.")
    try:
        _, architecture, saved = timm.models.load_model_config_from_hf(place)
    except Exception as error:
        raise InputError(f"{name} cannot be found: {error}") from error
    return architecture, dict(saved or {})


def _transform(
    timm: Any,  # noqa: ANN401  (the package)
    name: str,
    says: Mapping[str, Any],
    options: Mapping[str, Any],
) -> nn.Module:
    given = {"in_chans": options.get("in_chans")}
    side = options.get("img_size")
    if side is not None:
        high, wide = (side, side) if isinstance(side, int) else side
        given["input_size"] = (given["in_chans"] or 3, high, wide)
    config = timm.data.resolve_data_config(given, pretrained_cfg=says)
    high, wide = config["input_size"][1:]
    mode = config["crop_mode"]
    if mode not in ("center", "squash"):
        refuse(name, "crop_mode", mode)
    if mode == "center" and high != wide:
        refuse(name, "input_size", config["input_size"])
    return picture_transform(
        name,
        size=high if mode == "center" else (high, wide),
        crop_pct=config["crop_pct"],
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )


def _class_names(timm: Any, net: Any, says: Mapping[str, Any]) -> tuple[str, ...]:  # noqa: ANN401
    """The names of the classes of the weights, where timm knows them."""
    count = net.num_classes
    if not count or count != says.get("num_classes"):
        return ()
    labels, texts = says.get("label_names"), says.get("label_descriptions") or {}
    if labels is not None:
        return tuple(texts.get(label, label) for label in labels) if len(labels) == count else ()
    subset = timm.data.infer_imagenet_subset(net)
    if subset is None or not str(says.get("tag", "")).endswith(_IMAGENET):
        return ()
    info = timm.data.ImageNetInfo(subset)
    return tuple(info.index_to_description(k) for k in range(count))
