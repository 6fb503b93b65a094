"""The stages of a bundle in a faster backend, built from its weights when it is loaded.

Layer: bundle.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from offramp._core.batch import map_tensors
from offramp._core.checks import check_known
from offramp._core.errors import InputError
from offramp._core.types import Batch
from offramp.backends import (
    BACKENDS,
    Builder,
    Compiled,
    backend_of,
    backends_of,
    build_all,
    thread_count,
)
from offramp.backends.table import AUTO, EAGER
from offramp.bundle.manifest import Manifest
from offramp.bundle.parts import is_compiled
from offramp.bundle.rebuild import segment_of
from offramp.stages import SegmentSpec, Stage

_log = logging.getLogger(__name__)


def in_backend(
    stages: Mapping[str, Stage],
    manifest: Manifest,
    backend: str | Mapping[str, str],
    *,
    example: Batch | None,
    threads: int | None,
) -> dict[str, Stage]:
    """The stages in a backend whose answers are equal to rounding, as `load` documents it.

    Args:
        stages: Of the bundle, in order.
        manifest: What was written about it.
        backend: One for all, "auto", or one for each by name.
        example: Some raw input, or None.
        threads: As for `with_backend`.
    """
    compiled = {name for name, stage in stages.items() if is_compiled(stage)}
    chosen = _chosen(stages, manifest, backend, compiled)
    for name, each in chosen.items():
        _log.info("Stage %r runs in %r.", name, each)
    for name, each in chosen.items():
        _check_exact(name, each, compiled)
    given, known = _example(stages, manifest, example)
    builder = Builder(
        list(stages.values()), given, None, threads=thread_count(threads), transform=known
    )
    built = build_all(builder, backends_of(list(stages.values()), chosen))
    return {stage.name: stage for stage in built}


def _chosen(
    stages: Mapping[str, Stage],
    manifest: Manifest,
    backend: str | Mapping[str, str],
    compiled: set[str],
) -> dict[str, str]:
    if backend == AUTO:
        table = manifest.backends
        if table is None:
            raise InputError(
                "backend='auto' needs measurements, and this bundle has none. Measure here, with "
                "`offramp tune` or offramp.bundle.tune(path, example), or name a backend."
            )
        best = table.best()
        return {name: best[name] for name in stages if name in best and name not in compiled}
    if isinstance(backend, str):
        check_known("backend", backend, (*BACKENDS, AUTO))
        return {name: backend for name in stages if name not in compiled}
    return dict(backend)


def _check_exact(stage: str, backend: str, compiled: set[str]) -> None:
    if stage in compiled and backend != EAGER:
        raise InputError(
            f"Stage {stage!r} is held in the backend that it was saved in; no other can be chosen "
            "for it."
        )
    if not backend_of(backend).exact:
        raise InputError(
            f"The backend {backend!r} changes what stage {stage!r} answers, so the policy of the "
            "bundle, fitted on other answers, does not fit. Use offramp.tuning.quantize, which "
            "records and fits anew, and save what it gives."
        )


def _example(
    stages: Mapping[str, Stage], manifest: Manifest, example: Batch | None
) -> tuple[Batch, bool]:
    """Raw input, and whether its type is that which will come, or any."""
    if example is not None:
        return example, True
    table = manifest.backends
    if table is not None:
        return table.inputs.zeros(1), True
    known = known_input(list(stages.values()), manifest.input_shape)
    if known is None:
        raise InputError(
            "A backend has to know what the input looks like, and this bundle does not say. Pass "
            "example=... with some raw input, or save it with input_shape."
        )
    return known


def known_input(
    stages: Sequence[Stage], input_shape: Sequence[int] | None
) -> tuple[Batch, bool] | None:
    """What stages tell of the raw input: one example, and whether its type is the one to come.

    Args:
        stages: In order.
        input_shape: Shape of one example, where somebody has said it.
    """
    for stage in stages:
        if stage.source is None and isinstance(stage.module, Compiled):
            return stage.module.inputs.zeros(1), True
        begins = isinstance(stage.spec, SegmentSpec) and stage.spec.index == 0
        if begins and stage.transform is None:
            return segment_of(stage).cut.example, True
    if input_shape is not None:
        return torch.zeros(1, *input_shape), False
    for stage in stages:
        if isinstance(stage.spec, SegmentSpec):
            # Of the shape that the transform gives; fractions might be none that it reads.
            return map_tensors(stage.spec.cut.example, _zero), False
    return None


def _zero(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.is_floating_point() else tensor
