"""How many classes the stages of a cascade answer, where a network returns more than its logits.

Layer: stages.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp._core.types import Raw
from offramp.models import SeveralLogitsError
from offramp.stages.stage import Stage, with_shared


def results_of_all(
    stages: Iterable[Stage], batch: Raw, topology: Topology | None = None
) -> Iterator[tuple[Stage, Any]]:
    """Each stage with what its segment gives; a segment that stages share runs once.

    Args:
        stages: In topological order; of each group that others continue at least one.
        batch: Raw input.
        topology: Of the whole cascade, where not all of its stages are here.
    """
    groups: dict[str, str] = {}
    if topology is not None:
        groups = dict(zip(topology.names, topology.groups, strict=True))
    held: dict[str, Any] = {}
    stages = list(stages)
    batch = with_shared(stages, batch)
    for stage in stages:
        groups[stage.name] = stage.group
        if stage.group not in held:
            carry = batch if stage.source is None else held[groups[stage.source]]
            held[stage.group] = stage.segment(carry)
        yield stage, held[stage.group]


def check_same_classes(counts: Mapping[str, int]) -> None:
    """Raise `InputError` unless all stages, by name, have the same number of classes."""
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{name!r} gives {count}" for name, count in counts.items())
        raise InputError(
            f"All stages of a cascade must have the same classes; {each}. Train the stages for "
            "one task, or map their outputs to common classes first."
        )


def tell_classes(stages: Iterable[Stage], classes: int) -> None:
    """Tell the number of classes to all stages that do not know it."""
    for stage in stages:
        if stage.classes is None:
            stage.classes = classes


def settle_classes(stages: Iterable[Stage], batch: Raw) -> bool:
    """Find it out from what all stages return: the one width that each of them has.

    Returns:
        Whether there is one, which the stages then know.
    """
    found: set[int] | None = None
    members = list(stages)
    if all(stage.classes is not None for stage in members):
        return False
    for stage, result in results_of_all(members, batch):
        try:
            widths = {stage.answer(result).shape[1]}
        except SeveralLogitsError as error:
            widths = set(error.widths)
        found = widths if found is None else found & widths
    if found is None or len(found) != 1:
        return False
    tell_classes(members, found.pop())
    return True
