"""Early exit: the stages that a cut network and heads at its cuts make.

Layer: stages.  Source: methods.md 1 (early exit).
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, product

from torch import nn

from offramp._core.checks import check_known, check_positive_int
from offramp._core.errors import InputError
from offramp._core.types import AnyBatch, Batch
from offramp.models import LayerShape, ModelSpec, build, default_head, head_arguments
from offramp.stages.cutting.choose import choose_points
from offramp.stages.cutting.cut import GIVES, answer, cut, input_names
from offramp.stages.cutting.points import CutPoint, cut_points
from offramp.stages.cutting.spec import CutSpec, SegmentSpec, synthetic_example
from offramp.stages.exit_checks import (
    check_first_tokens,
    check_head,
    check_kept,
    reads_first,
    tensors_of,
)
from offramp.stages.heads import attached, kept_inputs
from offramp.stages.stage import Stage, read_by
from offramp.stages.transforms import Transforms

Head = nn.Module | ModelSpec
#: A name of `offramp.models.HEADS`, or what makes a head for a shape and a number of classes.
Kind = str | Callable[[Sequence[int], int], Head]
AtOne = Head | Kind | Mapping[str, Head | Kind]
Exits = int | Sequence[str] | Sequence[CutPoint]


def exit_stages(
    net: nn.Module,
    exits: Exits,
    head: Kind | Mapping[str, AtOne] | None,
    example: AnyBatch,
    *,
    last: str,
    transform: Transforms,
    spec: ModelSpec | None,
    classes: int | None,
) -> list[Stage]:
    """Stages of a network that is cut, as `Cascade.from_network` documents them."""
    given = read_by(net, transform, example)
    at, shapes = _points(net, exits, given, classes)
    named = _named_heads(net, at, shapes, head, given, classes)
    built = {name: _built(head) for each in named.values() for name, head in each.items()}
    keep = kept_inputs(built.values())
    segments = cut(net, at, given, keep=keep, classes=classes)
    _check_reading(at, named, built, segments, given)
    again = None
    if spec is not None:
        made = synthetic_example(given)
        again = CutSpec(model=spec, at=tuple(at), example=made, keep=keep, classes=classes)
    source: str | None = None
    stages: list[Stage] = []
    for k, (point, segment) in enumerate(zip(at, segments, strict=False)):
        for name, own in named[point].items():
            stages.append(
                Stage(
                    name,
                    segment,
                    head=attached(built[name], segment, keep),
                    transform=transform if source is None else None,
                    source=source,
                    group=point,
                    spec=_segment_spec(again, k),
                    head_spec=own if isinstance(own, ModelSpec) else None,
                )
            )
        source = next(stage.name for stage in stages if stage.group == point)
    rest = _segment_spec(again, len(at))
    return [*stages, Stage(last, segments[-1], source=source, spec=rest)]


def chain_edges(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """From every head at a point to every head at the next one."""
    groups: dict[str, list[str]] = {}
    for stage in stages:
        groups.setdefault(stage.group, []).append(stage.name)
    return [pair for here, there in pairwise(groups.values()) for pair in product(here, there)]


def _points(
    net: nn.Module, exits: Exits, given: Batch, classes: int | None
) -> tuple[Sequence[str], Mapping[str, Sequence[int]] | None]:
    """Names of the layers, and what they give where it was asked already."""
    if isinstance(exits, str):
        raise InputError(
            f"exits must be a number, or a list of names of layers, got the text {exits!r}."
        )
    if isinstance(exits, int):
        exits = _spread(net, check_positive_int("exits", exits), given, classes)
    points = [point for point in exits if isinstance(point, CutPoint)]
    if len(points) < len(exits):
        return [point.name if isinstance(point, CutPoint) else point for point in exits], None
    return [p.name for p in points], {p.name: p.shape for p in points}


def _spread(net: nn.Module, count: int, given: Batch, classes: int | None) -> list[CutPoint]:
    """So many points, spread evenly over the computation."""
    points = cut_points(net, given, classes=classes)
    if count > len(ends := choose_points(points)):
        raise InputError(
            f"exits must be at most {len(ends)}, the number of ends of blocks, got {count}; inside "
            "blocks name layers of cut_points."
        )
    return choose_points(points, quantiles=count)


def _named_heads(
    net: nn.Module,
    at: Sequence[str],
    shapes: Mapping[str, Sequence[int]] | None,
    head: Kind | Mapping[str, AtOne] | None,
    given: Batch,
    classes: int | None,
) -> Mapping[str, Mapping[str, Head]]:
    """For each point its heads, by the names of their stages."""
    if isinstance(head, nn.Module | ModelSpec):
        raise InputError(
            f"head must make a head for each exit: a name of offramp.models.HEADS, a function of "
            f"shape and classes, or heads by exit; got one {type(head).__name__}."
        )
    each = head if isinstance(head, Mapping) else dict.fromkeys(at, head or default_head)
    for name in each:
        check_known("exit", name, at)
    missing = [name for name in at if not each.get(name)]
    if missing:
        raise InputError(f"head must have one for each of the exits; {missing} have none.")
    found: dict[str, dict[str, Head | Kind]] = {
        point: {f"{point}/{label}": kind for label, kind in own.items()}
        if isinstance(own := each[point], Mapping)
        else {point: own}
        for point in at
    }
    if all(isinstance(h, nn.Module | ModelSpec) for own in found.values() for h in own.values()):
        return found  # type: ignore[return-value]
    if shapes is None:
        segments = cut(net, at, given, classes=classes)
        shapes = {name: _gives(segment) for name, segment in zip(at, segments, strict=False)}
    count = answer(net, given, classes).shape[1]
    return {
        point: {name: _head_for(point, kind, shapes[point], count) for name, kind in own.items()}
        for point, own in found.items()
    }


def _head_for(point: str, kind: Head | Kind, shape: Sequence[int], classes: int) -> Head:
    if isinstance(kind, nn.Module | ModelSpec):
        return kind
    try:
        if not isinstance(kind, str):
            return kind(shape, classes)
        return ModelSpec(name=kind, arguments=head_arguments(kind, shape, classes))
    except InputError as error:
        raise InputError(f"There is no head for the exit {point!r}: {error}") from error


def _built(head: Head) -> nn.Module:
    return build(head) if isinstance(head, ModelSpec) else head


def _segment_spec(again: CutSpec | None, index: int) -> SegmentSpec | None:
    return None if again is None else SegmentSpec(cut=again, index=index)


def _gives(segment: nn.Module) -> LayerShape:
    shape: LayerShape = segment.meta[GIVES]  # type: ignore[index,assignment]
    return shape


def _check_reading(
    at: Sequence[str],
    named: Mapping[str, Mapping[str, Head]],
    built: Mapping[str, nn.Module],
    segments: Sequence[nn.Module],
    given: Batch,
) -> None:
    first: dict[int, str] = {}
    inputs = dict(zip(input_names(given), tensors_of(given), strict=True))
    for k, (point, segment) in enumerate(zip(at, segments, strict=False)):
        for name in named[point]:
            check_head(name, built[name], _gives(segment))
            check_kept(name, built[name], _gives(segment), inputs)
            if reads_first(built[name]):
                first[k] = name
    check_first_tokens(first, segments, given)
