"""A cascade whose stages run in other backends: again a cascade.

Layer: backends.  Source: methods.md 6.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from offramp._core.checks import check_known
from offramp._core.errors import InputError
from offramp._core.types import AnyBatch
from offramp.backends.build import Builder
from offramp.backends.choose import choose_backends
from offramp.backends.compiled import thread_count
from offramp.backends.table import AUTO, BACKENDS, EAGER
from offramp.stages import Cascade, HeldStages, Stage

Stages = TypeVar("Stages", Cascade, HeldStages)


def with_backend(
    cascade: Stages,
    backend: str | Mapping[str, str],
    *,
    example: AnyBatch,
    calibration: AnyBatch | None = None,
    threads: int | None = None,
    head_in_segment: Collection[str] = (),
) -> Stages:
    """The same cascade, its stages run by other backends.

    What comes out is a cascade like any other, for `record` and `Adaptive`. Backends
    whose answers are equal to rounding keep the names of the stages. With int8 and bfloat16
    answers differ, so a stage, and all that continue it, get another name ("small@int8"): a policy
    that was fitted on the float32 answers is refused, and has to be fitted on a new recording
    (`offramp.tuning.quantize` does all that).

    Args:
        cascade: In PyTorch, or the part of one that somebody holds; stays as it is.
        backend: "eager", "folded", "compile", "onnxruntime", "onnxruntime-int8", "openvino",
            "openvino-bf16", "openvino-int8", "cuda" or "cuda-graph"; or "auto", the fastest of
            those with float32 answers on this machine; or one for each stage by name, where those
            that are not named stay as they are. Stages of one group have one.
        example: Some raw input of the kind that will come; one example is enough.
        calibration: For int8: a few hundred raw inputs such as will come, none of them used to
            test; their labels are not needed.
        threads: For ONNX Runtime and OpenVINO; by default as many as torch uses.
        head_in_segment: Stages whose heads run in one piece with their segments, which saves a
            call. Name those where the policy always asks; elsewhere heads would run for nothing.

    Raises:
        UnknownNameError: If there is no such backend or stage.
        MissingExtraError: If a backend is not installed.
        UnsupportedError: If a backend cannot run a stage; it names the stage, and the operator.
        InputError: If int8 has no calibration, or the stages of a group have several backends.

    >>> import torch
    >>> from torch import nn
    >>> from offramp.stages import Cascade
    >>> cascade = Cascade.from_models({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    >>> fast = with_backend(cascade, {"a": "onnxruntime"}, example=torch.zeros(1, 4))
    >>> fast.topology.names, bool(torch.allclose(fast(torch.ones(2, 4)), cascade(torch.ones(2, 4))))
    (('a', 'b'), True)
    """
    check_known_stages("head_in_segment", head_in_segment, cascade)
    if backend == AUTO:
        backend = choose_backends(cascade, example, threads=threads).best()
    chosen = backends_of(list(cascade), backend)
    builder = Builder(
        list(cascade),
        example,
        calibration,
        threads=thread_count(threads),
        head_in_segment=head_in_segment,
    )
    return cascade.with_stages(build_all(builder, chosen))


def build_all(builder: Builder, chosen: Mapping[str, str]) -> list[Stage]:
    """All stages in the backend that is chosen for the group of each."""
    for group, members in builder.groups().items():
        builder.keep(group, builder.build(group, chosen[members[0].name]))
    return builder.result()


def backends_of(stages: Sequence[Stage], backend: str | Mapping[str, str]) -> dict[str, str]:
    """The backend of each stage; those not named stay in PyTorch.

    Raises:
        UnknownNameError: If there is no such backend or stage.
        InputError: If stages of one group have different ones.
    """
    names = [stage.name for stage in stages]
    given = dict.fromkeys(names, backend) if isinstance(backend, str) else dict(backend)
    for name, chosen in given.items():
        check_known("stage", name, names)
        check_known("backend", chosen, BACKENDS)
    found = {name: given.get(name, EAGER) for name in names}
    groups: dict[str, Stage] = {}
    for stage in stages:
        first = groups.setdefault(stage.group, stage)
        if found[first.name] != found[stage.name]:
            raise InputError(
                f"backend must be the same for the stages of one group, which share their segment: "
                f"{first.name!r} has {found[first.name]!r}, {stage.name!r} {found[stage.name]!r}."
            )
    return found


def check_known_stages(
    argument: str, names: Collection[str], cascade: Cascade | HeldStages
) -> None:
    """Raise unless `names` are stages of a cascade."""
    if isinstance(names, str):
        raise InputError(f"{argument} must be a collection of names, got the text {names!r}.")
    for name in names:
        check_known("stage", name, cascade.topology.names)
