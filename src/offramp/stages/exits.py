"""Early exit: the stages that a cut network and heads at its cuts make.

Layer: stages.  Source: methods.md 1 (early exit).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any, final

from torch import Tensor, fx, nn

from offramp._core.checks import check_known
from offramp._core.errors import InputError
from offramp._core.types import Batch
from offramp.models import ModelSpec, build
from offramp.stages.cut import cut
from offramp.stages.cut_spec import CutSpec, SegmentSpec, stand_in
from offramp.stages.stage import Stage

Head = nn.Module | ModelSpec
Heads = Mapping[str, Head | Mapping[str, Head]]


@final
class OfFirst(nn.Module):
    """A head that reads the first tensor of a carry: what the layer before the cut gave.

    >>> import torch
    >>> OfFirst(nn.Linear(2, 3))((torch.zeros(5, 2), torch.zeros(5, 7))).shape
    torch.Size([5, 3])
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, carry: Sequence[Tensor]) -> Any:  # noqa: ANN401  (what the head gives)
        """Give what the head makes of the first tensor."""
        return self.head(carry[0])


def exit_stages(
    net: nn.Module,
    at: Sequence[str],
    heads: Heads,
    example: Batch,
    *,
    last: str,
    preprocess: nn.Module | None,
    spec: ModelSpec | None,
) -> list[Stage]:
    """Stages of a network that is cut, as `Cascade.of_exits` documents them."""
    _check_heads(at, heads)
    given = example if preprocess is None else preprocess(example)
    segments = cut(net, at, given)
    again = None if spec is None else CutSpec(model=spec, at=tuple(at), example=stand_in(given))
    source: str | None = None
    stages: list[Stage] = []
    for k, (point, segment) in enumerate(zip(at, segments, strict=False)):
        for name, head in _named_heads(point, heads[point]).items():
            stages.append(
                Stage(
                    name,
                    segment,
                    head=attached(_built(head), segment),
                    preprocess=preprocess if source is None else None,
                    source=source,
                    group=point,
                    spec=_segment_spec(again, k),
                    head_spec=head if isinstance(head, ModelSpec) else None,
                )
            )
        source = next(stage.name for stage in stages if stage.group == point)
    rest = _segment_spec(again, len(at))
    return [*stages, Stage(last, segments[-1], source=source, spec=rest)]


def attached(head: nn.Module, segment: nn.Module) -> nn.Module:
    """The head as it reads what a segment gives: of several tensors it takes the first.

    >>> head = nn.Linear(2, 3)
    >>> attached(head, nn.Identity()) is head
    True
    """
    return OfFirst(head) if _gives_several(segment) else head


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


def _gives_several(segment: nn.Module) -> bool:
    if not isinstance(segment, fx.GraphModule):
        return False
    output = next(node for node in segment.graph.nodes if node.op == "output")
    return isinstance(output.args[0], tuple)
