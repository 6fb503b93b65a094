"""The transform of an image processor of Hugging Face.

Layer: adapters.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from offramp._core.errors import UnsupportedError
from offramp.adapters.pictures import picture_transform, refuse

_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # as Pillow counts
_READ = (
    *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"),
    *("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std", "crop_pct"),
)
_STEPS = 8.0  # of a byte: how far a trial may be from the processor, where images are smooth
_SQUARE_FROM = 384  # ConvNext's processor cuts nothing from this size on


def processor_transform(name: str, processor: Any) -> nn.Module:  # noqa: ANN401
    """`Resize` and `Normalize` that do what an image processor does, which is tried.

    The middle that is cut out may lie one pixel beside that of the processor, which rounds down.

    Args:
        name: For messages.
        processor: Of `transformers.AutoImageProcessor`.

    Raises:
        UnsupportedError: If there are none; the field is named.
    """
    says = {k: v for k, v in processor.to_dict().items() if v is not None and v is not False}
    for field in says:
        if field not in _READ and field.startswith(("do_", "rescale_")):
            refuse(name, field, says[field])
    if not says.get("do_resize"):
        refuse(name, "do_resize", False)
    size, crop, crop_pct = _sizes(name, says)
    made = picture_transform(
        name,
        size=size,
        crop=crop,
        crop_pct=crop_pct,
        interpolation=_RESAMPLE.get(int(says.get("resample", 2)), str(says.get("resample"))),
        scale=says["rescale_factor"] if says.get("do_rescale") else 1.0,
        mean=says["image_mean"] if says.get("do_normalize") else 0.0,
        std=says["image_std"] if says.get("do_normalize") else 1.0,
    )
    _try(name, processor, made, says)
    return made


def _sizes(name: str, says: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Size, crop and crop_pct, as `Resize` takes them."""
    size = says.get("size", {})
    crop = says.get("crop_size") if says.get("do_center_crop") else None
    cut = None if crop is None else (crop["height"], crop["width"])
    share = says.get("crop_pct")
    if set(size) == {"height", "width"} and share is None:
        return (size["height"], size["width"]), cut, None
    if set(size) != {"shortest_edge"}:
        refuse(name, "size", size)
    edge = size["shortest_edge"]
    if share is None:
        return edge, cut, None
    if cut is not None:
        refuse(name, "crop_pct", share)
    return ((edge, edge), None, None) if edge >= _SQUARE_FROM else (edge, None, share)


def _try(name: str, processor: Any, made: nn.Module, says: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Raise where both are further apart on a made-up image than roundings bring them."""
    rows, columns = torch.meshgrid(torch.arange(258.0), torch.arange(316.0), indexing="ij")
    planes = [rows * 0.9, columns * 0.8, 128 + 100 * (rows / 90).sin() * (columns / 80).cos()]
    image = torch.stack(planes).round().to(torch.uint8)
    array = image.permute(1, 2, 0).numpy()
    theirs = torch.as_tensor(processor(array, return_tensors="pt")["pixel_values"])
    ours: Tensor = made(image[None])
    if ours.shape != theirs.shape:
        raise UnsupportedError(
            f"The transform of {name} gives {tuple(theirs.shape[1:])}, and what its fields say "
            f"{tuple(ours.shape[1:])}. Give transform= to the adapter."
        )
    step = says.get("rescale_factor", 1.0) if says.get("do_rescale") else 1.0
    least = min(says["image_std"]) if says.get("do_normalize") else 1.0
    apart = float((ours - theirs).abs().max()) * least / step
    if apart > _STEPS:
        raise UnsupportedError(
            f"The transform of {name} does something that its fields {sorted(set(says) & {*_READ})}"
            f" do not say: it is {apart:.0f} steps of a byte apart from them. Give transform= to "
            "the adapter."
        )
