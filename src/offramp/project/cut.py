"""What `offramp cut` measures, as JSON values.

Layer: project.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offramp._core.errors import InputError
from offramp._core.types import Batch
from offramp.project.config.sections import RunConfig
from offramp.project.networks import network_of, planned, with_heads
from offramp.stages import (
    batch_size,
    choose_points,
    cut_points,
    measure_flops,
    measure_points,
    measure_seconds,
    take_rows,
)
from offramp.stages.cutting.cut import answer

_ROUNDS = 15


def point_rows(
    settings: RunConfig,
    folder: Path,
    batch: Batch,
    class_names: Sequence[str] = (),
    *,
    inside: bool,
    device: str,
) -> dict[str, Any]:
    """Points of the network with what has run by then.

    Args:
        settings: With a network.
        folder: Where modules named by "module:callable" are looked for as well.
        batch: Raw inputs; so many run at a time when time is measured.
        class_names: They tell the logits of a network that returns more.
        inside: Also points inside blocks.
        device: Where time is measured.
    """
    if settings.network is None:
        raise InputError(f"{settings.file} must have the section [network].")
    net, given = network_of(settings.network, folder, batch)
    classes = len(class_names) or None
    points = cut_points(net, given, classes=classes)
    shown = choose_points(points, inside=inside)
    size = batch_size(batch)
    seconds = measure_points(
        net, given, shown, batch_size=size, rounds=_ROUNDS, device=device, classes=classes
    )
    last = points[-1]
    return {
        **_candidate(batch, device),
        "model": settings.network.model,
        "points_in_all": len(points),
        "flops": last.flops / last.share if last.share else 0.0,
        "seconds": seconds[-1],
        "points": [
            {
                "name": point.name,
                "aliases": list(point.aliases),
                "shape": list(point.shape),
                "live": [list(tensor) for tensor in point.live],
                "flops": point.flops,
                "flops_share": point.share,
                "seconds": until,
                "seconds_share": until / seconds[-1],
            }
            for point, until in zip(shown, seconds, strict=False)
        ],
    }


def exit_rows(
    settings: RunConfig,
    folder: Path,
    batch: Batch,
    class_names: Sequence[str] = (),
    *,
    device: str,
) -> dict[str, Any]:
    """The exits of a configuration, once the network is cut.

    Shares are of the network without exits; up to an exit its segments count, and no head.

    Args:
        settings: With a network and exits.
        folder: As in `point_rows`.
        batch: As in `point_rows`; the cut network is compared with the uncut one on it.
        class_names: As in `point_rows`.
        device: As in `point_rows`.
    """
    plan = planned(settings, folder, batch, class_names)
    whole = answer(plan.net, plan.given, plan.classes)
    cascade = with_heads(settings, plan, batch)
    with torch.no_grad():
        difference = float((cascade(batch)[:, -1] - whole).abs().max())
    size, stages = batch_size(batch), cascade.topology
    flops = measure_flops(cascade, take_rows(batch, torch.arange(1)))
    seconds = measure_seconds(cascade, batch, batch_sizes=[size], rounds=_ROUNDS, device=device)[
        size
    ]
    end = len(cascade) - 1
    all_flops, all_seconds = flops.alone(stages, end), seconds.alone(stages, end)
    return {
        **_candidate(batch, device),
        "max_difference": difference,
        "flops": all_flops,
        "seconds": all_seconds,
        "exits": [
            {
                "name": stage.name,
                "shape": list(plan.points[stage.group].shape),
                "head": stage.head_spec.name if stage.head_spec else "",
                "arguments": dict(stage.head_spec.arguments) if stage.head_spec else {},
                "flops_share": (flops.alone(stages, k) - flops.head[k]) / all_flops,
                "head_flops_share": flops.head[k] / all_flops,
                "seconds_share": (seconds.alone(stages, k) - seconds.head[k]) / all_seconds,
                "head_seconds_share": seconds.head[k] / all_seconds,
            }
            for k, stage in enumerate(cascade)
            if k != end
        ],
    }


def _candidate(batch: Batch, device: str) -> dict[str, Any]:
    where = torch.device(device)
    return {
        "input": _shape(batch),
        "batch_size": batch_size(batch),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else device,
        "threads": torch.get_num_threads(),
    }


def _shape(batch: Batch) -> Any:  # noqa: ANN401  (a list, or a list for each name)
    """Shape of one example, or of each of its tensors."""
    if isinstance(batch, Tensor):
        return list(batch.shape[1:])
    if isinstance(batch, Mapping):
        return {name: list(tensor.shape[1:]) for name, tensor in batch.items()}
    return [list(tensor.shape[1:]) for tensor in batch]
