"""A network whose branches read pooled maps of several layers, in a form that can be cut.

Cutting carries what is read later. Here the pooled maps of earlier layers are read later, by the
branches' taps, so they are carried beside the network's own tensors, and an exit behind a tap reads
them. A cascade of such exits is one of `Cascade.from_network` like any other.

Layer: stages.  Source: Bonato and Bouganis, class-specific early exit, section 3.2 and figure 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.checks import check_positive_int
from offramp._core.errors import InputError
from offramp._core.schema import to_json
from offramp.models import ModelSpec
from offramp.models.heads import averages
from offramp.stages.cutting.cut import cut
from offramp.stages.weight_names import own_names

_SEGMENTS = "segments."


def branch_pool(grid: int, axes: int = 2) -> nn.Sequential:
    """ReLU, average pooling to `grid` places along each axis (1: global), flattening.

    Args:
        grid: Averages per side.
        axes: Behind the channels: 2 for images, 1 for signals, 3 for volumes and videos.

    >>> branch_pool(2)(torch.zeros(5, 16, 8, 8)).shape
    torch.Size([5, 64])
    """
    check_positive_int("grid", grid)
    return nn.Sequential(nn.ReLU(), *averages(grid, axes))


_MOST_NUMBERS = 2**24  # of one input: what runs to build a network comes from a file


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """What one exit reads.

    Args:
        name: Of the exit, without dots.
        reads: Names of the points whose pooled maps it reads, in the order in which they run; it
            is attached behind the last one.
        pooled: False reads what its one point gives as it is; the head does what it likes with it.
    """

    name: str
    reads: tuple[str, ...]
    pooled: bool = True


@final
class _Join(nn.Module):
    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, dim=1)  # also of one part: a layer must compute something


@final
class LargestOfGroup(nn.Module):
    """Logits of superclasses: of each the largest logit of its classes.

    So the superclass predicted is that of the class predicted.

    Args:
        table: For each class its superclass, from 0 on.

    >>> LargestOfGroup([0, 1, 0])(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[3., 2.]])
    """

    members: Tensor

    def __init__(self, table: Sequence[int]) -> None:
        super().__init__()
        groups = [[k for k, g in enumerate(table) if g == group] for group in range(max(table) + 1)]
        if not all(groups):
            raise InputError(f"table must give every superclass a class, got {list(table)}.")
        most = max(len(group) for group in groups)
        padded = [group + group[:1] * (most - len(group)) for group in groups]
        self.register_buffer("members", torch.tensor(padded), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Map `(m, classes)` to `(m, superclasses)`."""
        groups, most = self.members.shape
        picked = logits.index_select(1, self.members.flatten())
        return picked.reshape(-1, groups, most).amax(dim=2)


@final
class TappedNet(nn.Module):
    """A network with taps; it gives the same logits.

    The exits' names are "exits.<name of the tap>": layers after which it can be cut, and what a
    head reads there is `(m, features)`, or what the point gives where the tap is not pooled.

    In `state_dict` the weights have the names that they have in the network.

    Args:
        net: In evaluation mode.
        points: Names of the layers that taps read, in the order in which they run.
        taps: Several may be attached at one point.
        example: What the network reads, after the transform.
        grid: Of `branch_pool`.
        table: For superclasses: for each class its superclass.

    Raises:
        InputError: If a name repeats or has a dot, a tap reads nothing or out of order, or `points`
            are not those that the taps read.
    """

    def __init__(
        self,
        net: nn.Module,
        points: Sequence[str],
        taps: Sequence[Tap],
        example: Tensor,
        *,
        grid: int = 2,
        table: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        order = {name: k for k, name in enumerate(points)}
        _check(points, taps)
        self.segments = nn.ModuleList(cut(net, list(order), example))
        self.pools = nn.ModuleDict({str(axes): branch_pool(grid, axes) for axes in (1, 2, 3)})
        self.exits = nn.ModuleDict({tap.name: _Join() for tap in taps})
        self.answer = nn.Identity() if table is None else LargestOfGroup(table)
        self._reads = {tap.name: tuple(order[name] for name in tap.reads) for tap in taps}
        self._pooled = {tap.name for tap in taps if tap.pooled}
        self._pools = {k for name in self._pooled for k in self._reads[name]}
        named = [
            (f"{_SEGMENTS}{k}.", held, own)
            for k, segment in enumerate(self.segments)
            for held, own in own_names(segment).items()
            if own is not None
        ]
        #: Names of the segments' weights, as these hold them and in their state dicts.
        self._held = {f"{segment}{held}": own for segment, held, own in named}
        self._own = {f"{segment}{own}": own for segment, _, own in named}
        self.register_state_dict_post_hook(_give_own_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_take_own_names)  # type: ignore[no-untyped-call]
        self.eval()

    def own_name(self, published: str) -> str | None:
        """The network's own name of a weight; None if it is computed anew when cutting.

        Files written before 0.2 have the names of the segments.
        """
        if published in self._own.values() or not published.startswith(_SEGMENTS):
            return published
        return self._held.get(published)

    def forward(self, x: Tensor) -> Tensor:
        """Give the network's logits."""
        carry: Any = x
        pooled: dict[int, Tensor] = {}
        # The taps must take part in the answer, or nothing would need them. An empty sum is 0.
        nothing: Tensor | None = None
        for k, segment in enumerate(self.segments):
            carry = segment(carry) if isinstance(carry, Tensor) else segment(*carry)
            if k + 1 == len(self.segments):
                break
            given = carry if isinstance(carry, Tensor) else carry[0]
            if k in self._pools:
                pooled[k] = self.pools[str(given.dim() - 2)](given)
            for name, reads in self._reads.items():
                if reads[-1] == k:
                    parts = [pooled[j] for j in reads] if name in self._pooled else [given]
                    features = self.exits[name](*parts)
                    empty = features.flatten(1)[:, :0].sum(dim=1, keepdim=True)
                    nothing = empty if nothing is None else nothing + empty
        logits: Tensor = self.answer(carry)
        return logits if nothing is None else logits + nothing


def _give_own_names(
    net: TappedNet, state: dict[str, Any], prefix: str, _metadata: Mapping[str, Any]
) -> None:
    """Call the weights of the segments as in the network."""
    inside = [name for name in net._own if prefix + name in state]
    state.update({prefix + net._own[name]: state.pop(prefix + name) for name in inside})


def _take_own_names(net: TappedNet, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Hand the network's weights to the segments that hold them."""
    own = {name for name in net._own.values() if prefix + name in state}
    given = {name: state.pop(prefix + name) for name in own}
    state.update({prefix + k: given[name] for k, name in net._own.items() if name in given})


def tapped(
    model: nn.Module,
    points: Sequence[str],
    taps: Sequence[Mapping[str, Any]],
    shape: Sequence[int],
    grid: int = 2,
    table: Sequence[int] | None = None,
) -> TappedNet:
    """Build a tapped network of another one; a `ModelSpec` names it "tapped".

    Args:
        model: The network; a `ModelSpec` says how to build it.
        points: As in `TappedNet`.
        taps: Name, reads, and whether it is pooled, of each.
        shape: Of one input after the transform.
        grid: Of `branch_pool`.
        table: For superclasses: for each class its superclass.

    Raises:
        InputError: As `TappedNet`, or if a size is out of all proportion.

    >>> from offramp.models import build
    >>> net = tapped(build(ModelSpec(name="resnet8", arguments={"width": 0.25})), ["layer1"],
    ...              [{"name": "cat", "reads": ["layer1"]}], [3, 16, 16])
    >>> net(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """
    for size in shape:
        check_positive_int("shape", size)
    if prod(shape) > _MOST_NUMBERS or grid > max(shape[1:], default=1):
        raise InputError(
            f"shape must have at most {_MOST_NUMBERS} numbers, and grid must be at most the larger "
            f"side, got {list(shape)} and {grid}."
        )
    made = [Tap(**{**tap, "reads": tuple(tap["reads"])}) for tap in taps]
    return TappedNet(model, points, made, torch.zeros(1, *shape), grid=grid, table=table)


def tapped_spec(
    model: ModelSpec,
    points: Sequence[str],
    taps: Sequence[Tap],
    shape: Sequence[int],
    *,
    grid: int = 2,
    table: Sequence[int] | None = None,
) -> ModelSpec:
    """How to build a tapped network again.

    >>> spec = tapped_spec(ModelSpec(name="resnet8"), ["layer1"],
    ...                    [Tap(name="cat", reads=("layer1",))], [3, 32, 32])
    >>> spec.name, spec.arguments["model"]["name"]
    ('tapped', 'resnet8')
    """
    arguments = {
        "model": to_json(ModelSpec(name=model.name, arguments=model.arguments)),
        "points": list(points),
        "taps": to_json(taps),
        "shape": list(shape),
        "grid": grid,
        "table": None if table is None else [int(k) for k in table],
    }
    return ModelSpec(name="tapped", arguments=arguments)


def _check(points: Sequence[str], taps: Sequence[Tap]) -> None:
    names = [tap.name for tap in taps]
    if not taps or len(set(names)) != len(names) or any("." in n or not n for n in names):
        raise InputError(f"taps must have different names without dots, got {names}.")
    for tap in taps:
        if not tap.pooled and len(tap.reads) != 1:
            raise InputError(
                f"A tap that is not pooled must read one point, got {list(tap.reads)} for "
                f"{tap.name!r}."
            )
        if not tap.reads or list(tap.reads) != [name for name in points if name in tap.reads]:
            raise InputError(
                f"A tap must read at least one of the points {list(points)}, in their order, got "
                f"{list(tap.reads)} for {tap.name!r}."
            )
    unread = [name for name in points if not any(name in tap.reads for tap in taps)]
    if unread:
        raise InputError(f"points must hold only what a tap reads, got {unread} besides.")
