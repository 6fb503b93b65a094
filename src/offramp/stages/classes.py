"""How many classes the stages of a cascade answer, where a network returns more than its logits.

Layer: stages.
"""

from collections.abc import Iterable, Mapping, Sequence

from offramp._core.errors import InputError
from offramp._core.types import Raw
from offramp.models import SeveralLogitsError
from offramp.stages.segments import run_segments
from offramp.stages.stage import Stage


def check_same_classes(counts: Mapping[str, int]) -> None:
    """Raise `InputError` unless all stages, by name, have the same number of classes."""
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{name!r} gives {count}" for name, count in counts.items())
        raise InputError(
            f"All stages of a cascade must have the same classes; {each}. Train the stages for "
            "one task, or map their outputs to common classes first."
        )


def same_names(stages: Iterable[Stage], given: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of the classes: those given, else those that stages tell, or none.

    Raises:
        InputError: If a stage has other names, or the same in another order.
    """
    told = {stage.name: stage.class_names for stage in stages if stage.class_names}
    names = tuple(given) or next(iter(told.values()), ())
    for stage, theirs in told.items():
        if theirs == names:
            continue
        if sorted(theirs) == sorted(names):
            k = next(
                k for k, pair in enumerate(zip(names, theirs, strict=True)) if len({*pair}) > 1
            )
            how = f"in another order: class {k} is {theirs[k]!r} there and {names[k]!r} here"
        else:
            missing = [name for name in names if name not in theirs]
            how = f"otherwise: {list(theirs)[:5]}, {missing[:3]} not among them"
        raise InputError(
            f"class_names must be the same in all stages of a cascade, and stage {stage!r} has "
            f"them {how}. Give that adapter class_names= in the order of the cascade, which it "
            "then answers in."
        )
    return names


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
    for stage, result in run_segments(members, batch):
        try:
            widths = {stage.answer(result).width}
        except SeveralLogitsError as error:
            widths = set(error.widths)
        found = widths if found is None else found & widths
    if found is None or len(found) != 1:
        return False
    tell_classes(members, found.pop())
    return True
