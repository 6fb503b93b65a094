"""Early exit: the stages that a cut network and heads at its cuts make.

Layer: stages.  Source: methods.md 1 (early exit).
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, product
from typing import Any, final

from torch import Tensor, fx, nn

from offramp._core.checks import check_known
from offramp._core.errors import InputError
from offramp._core.types import AnyBatch, Batch
from offramp.models import LayerShape, ModelSpec, build, default_head
from offramp.stages.cutting.cut import GIVES, answer, cut, input_names
from offramp.stages.cutting.spec import CutSpec, SegmentSpec, synthetic_example
from offramp.stages.exit_checks import (
    check_first_tokens,
    check_head,
    check_kept,
    reads_first,
    tensors_of,
)
from offramp.stages.stage import Stage, read_by
from offramp.stages.transforms import Transforms

Head = nn.Module | ModelSpec
Heads = Mapping[str, Head | Mapping[str, Head]]


@final
class OfFirst(nn.Module):
    """A head that reads the first tensor of a carry: what the layer before the cut gave.

    Args:
        head: Reads that tensor, and those of `also` as further arguments.
        also: Positions of what else it reads: inputs of the network that are carried along.

    >>> import torch
    >>> OfFirst(nn.Linear(2, 3))((torch.zeros(5, 2), torch.zeros(5, 7))).shape
    torch.Size([5, 3])
    """

    def __init__(self, head: nn.Module, also: Sequence[int] = ()) -> None:
        super().__init__()
        self.head = head
        self.also = tuple(also)

    def read(self, carry: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What of a carry the head reads."""
        return carry[0], *(carry[k] for k in self.also)

    def forward(self, carry: Sequence[Tensor]) -> Any:  # noqa: ANN401  (what the head gives)
        """Give what the head makes of what it reads."""
        return self.head(*self.read(carry))


def exit_stages(
    net: nn.Module,
    at: Sequence[str],
    heads: Heads | None,
    example: AnyBatch,
    *,
    last: str,
    transform: Transforms,
    spec: ModelSpec | None,
    classes: int | None,
) -> list[Stage]:
    """Stages of a network that is cut, as `Cascade.from_network` documents them."""
    given = read_by(net, transform, example)
    if heads is None:
        heads = default_heads(net, at, given, classes)
    _check_heads(at, heads)
    named = {point: _named_heads(point, heads[point]) for point in at}
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
        for name, head in named[point].items():
            stages.append(
                Stage(
                    name,
                    segment,
                    head=attached(built[name], segment, keep),
                    transform=transform if source is None else None,
                    source=source,
                    group=point,
                    spec=_segment_spec(again, k),
                    head_spec=head if isinstance(head, ModelSpec) else None,
                )
            )
        source = next(stage.name for stage in stages if stage.group == point)
    rest = _segment_spec(again, len(at))
    return [*stages, Stage(last, segments[-1], source=source, spec=rest)]


def default_heads(
    net: nn.Module, at: Sequence[str], given: Batch, classes: int | None = None
) -> Heads:
    """For each point the head that `offramp.models.default_head` chooses.

    Args:
        net: In evaluation mode.
        at: Names of layers.
        given: What the network reads.
        classes: As for `cut`.

    Raises:
        InputError, UnsupportedError: As `cut`, or if there is none for what a layer gives.
    """
    segments = cut(net, at, given, classes=classes)
    classes = answer(net, given, classes).shape[1]
    found = {}
    for name, segment in zip(at, segments, strict=False):
        try:
            found[name] = default_head(_gives(segment), classes)
        except InputError as error:
            raise InputError(f"There is no head for the exit {name!r}: {error}") from error
    return found


def kept_inputs(heads: Iterable[nn.Module]) -> tuple[str, ...]:
    """Inputs of the network that some heads read: what stands in their attribute `keeps`.

    >>> from offramp.models import token_linear
    >>> kept_inputs([nn.Linear(2, 3), token_linear(2, 3, pooling="mean", mask="attention_mask")])
    ('attention_mask',)
    """
    return tuple(dict.fromkeys(name for head in heads for name in _keeps(head)))


def attached(head: nn.Module, segment: nn.Module, keep: Sequence[str] = ()) -> nn.Module:
    """The head as it reads what a segment gives: of several tensors it takes the first.

    Args:
        head: May have an attribute `keeps`, names of inputs that it reads beside that.
        segment: Of `cut`.
        keep: Inputs that the segment hands on, as `cut` took them.

    Raises:
        InputError: If the head reads another input.

    >>> head = nn.Linear(2, 3)
    >>> attached(head, nn.Identity()) is head
    True
    """
    missing = [name for name in _keeps(head) if name not in keep]
    if missing:
        raise InputError(
            f"The head reads the inputs {missing}, which the segment does not hand on; cut with "
            f"keep={missing}."
        )
    count = _count_given(segment)
    if count is None:
        return head
    return OfFirst(head, [count - len(keep) + list(keep).index(name) for name in _keeps(head)])


def own_head(head: nn.Module) -> nn.Module:
    """The head that was attached, in whatever way.

    >>> head = nn.Linear(2, 3)
    >>> own_head(OfFirst(head)) is head
    True
    """
    return head.head if isinstance(head, OfFirst) else head


def chain_edges(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """From every head at a point to every head at the next one."""
    groups: dict[str, list[str]] = {}
    for stage in stages:
        groups.setdefault(stage.group, []).append(stage.name)
    return [pair for here, there in pairwise(groups.values()) for pair in product(here, there)]


def _check_heads(at: Sequence[str], heads: Heads) -> None:
    for name in heads:
        check_known("exit", name, at)
    missing = [name for name in at if not heads.get(name)]
    if missing:
        raise InputError(f"heads must have a head for each exit of at; {missing} have none.")


def _named_heads(point: str, heads: Head | Mapping[str, Head]) -> Mapping[str, Head]:
    if isinstance(heads, nn.Module | ModelSpec):
        return {point: heads}
    return {f"{point}/{label}": head for label, head in heads.items()}


def _built(head: Head) -> nn.Module:
    return build(head) if isinstance(head, ModelSpec) else head


def _segment_spec(again: CutSpec | None, index: int) -> SegmentSpec | None:
    return None if again is None else SegmentSpec(cut=again, index=index)


def _gives(segment: nn.Module) -> LayerShape:
    shape: LayerShape = segment.meta[GIVES]  # type: ignore[index,assignment]
    return shape


def _keeps(head: nn.Module) -> tuple[str, ...]:
    return tuple(getattr(head, "keeps", ()))


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


def _count_given(segment: nn.Module) -> int | None:
    """How many tensors a segment gives in a tuple; None where it gives one."""
    if not isinstance(segment, fx.GraphModule):
        return None
    output = next(node for node in segment.graph.nodes if node.op == "output")
    return len(output.args[0]) if isinstance(output.args[0], tuple) else None
