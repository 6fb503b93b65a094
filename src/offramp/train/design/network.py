"""A network whose branches read pooled maps of several layers, in a form that can be cut.

Cutting carries what is read later. Here the pooled maps of earlier layers are read later, by the
branches' taps, so they are carried beside the network's own tensors, and an exit behind a tap reads
them. A cascade of such exits is one of `Cascade.of_exits` like any other.

Layer: train.  Source: Bonato and Bouganis, class-specific early exit, section 3.2 and figure 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.checks import check_positive_int
from offramp._core.errors import InputError
from offramp.models import ModelSpec, build
from offramp.stages import cut


def branch_pool(grid: int) -> nn.Sequential:
    """ReLU, average pooling to `grid` x `grid` places (1: global), flattening.

    >>> branch_pool(2)(torch.zeros(5, 16, 8, 8)).shape
    torch.Size([5, 64])
    """
    check_positive_int("grid", grid)
    return nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(grid), nn.Flatten())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """What one exit reads.

    Args:
        name: Of the exit, without dots.
        reads: Names of the points whose pooled maps it reads, in the order in which they run; it
            is attached behind the last one.
    """

    name: str
    reads: tuple[str, ...]


@final
class _Join(nn.Module):
    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, dim=1)


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
    head reads there is `(m, features)`.

    Args:
        net: In evaluation mode.
        taps: In the order of their points; several may share a point.
        example: What the network reads, after preprocessing.
        grid: Of `branch_pool`.
        table: For superclasses: for each class its superclass.

    Raises:
        InputError: If a name repeats or has a dot, taps are out of order, or one reads nothing.
    """

    def __init__(
        self,
        net: nn.Module,
        taps: Sequence[Tap],
        example: Tensor,
        *,
        grid: int = 2,
        table: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self._check(taps)
        order = {name: k for k, name in enumerate(_in_order(taps))}
        self.segments = nn.ModuleList(cut(net, list(order), example))
        self.pool = branch_pool(grid)
        self.exits = nn.ModuleDict({tap.name: _Join() for tap in taps})
        self.answer = nn.Identity() if table is None else LargestOfGroup(table)
        self._reads = {tap.name: tuple(order[name] for name in tap.reads) for tap in taps}
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Give the network's logits."""
        carry: Any = x
        pooled: list[Tensor] = []
        # The taps must take part in the answer, or nothing would need them. An empty sum is 0.
        nothing: Tensor | None = None
        for k, segment in enumerate(self.segments):
            carry = segment(carry) if isinstance(carry, Tensor) else segment(*carry)
            if k + 1 == len(self.segments):
                break
            pooled.append(self.pool(carry if isinstance(carry, Tensor) else carry[0]))
            for name, reads in self._reads.items():
                if reads[-1] == k:
                    features = self.exits[name](*(pooled[j] for j in reads))
                    empty = features[:, :0].sum(dim=1, keepdim=True)
                    nothing = empty if nothing is None else nothing + empty
        logits = self.answer(carry)
        return logits if nothing is None else logits + nothing

    @staticmethod
    def _check(taps: Sequence[Tap]) -> None:
        names = [tap.name for tap in taps]
        if not taps or len(set(names)) != len(names) or any("." in n or not n for n in names):
            raise InputError(f"taps must have different names without dots, got {names}.")
        if not all(tap.reads for tap in taps):
            raise InputError(f"Every tap must read at least one point, got {list(taps)}.")


@final
class ClassHead(nn.Module):
    """A dense layer on pooled features, as a head with one logit per class.

    For one class the layer gives its log-odds z; in the logits stand log p at the class and
    log((1 - p)/(c - 1)) elsewhere. For all classes it gives a logit of each.

    Args:
        features: That it reads.
        classes: Number of classes `c`.
        target: The class, an index, or None for all.

    Source: methods.md 2 (how a binary head stands in a trace).

    >>> head = ClassHead(3, 4, 2)
    >>> head.set_weights(torch.ones(3, 1), torch.zeros(1))
    >>> head(torch.zeros(1, 3)).softmax(dim=1)
    tensor([[0.1667, 0.1667, 0.5000, 0.1667]])
    """

    def __init__(self, features: int, classes: int, target: int | None) -> None:
        super().__init__()
        self.dense = nn.Linear(features, classes if target is None else 1)
        self.classes, self.target = classes, target
        self.eval()

    def set_weights(self, weight: Tensor, bias: Tensor) -> None:
        """Take weights `(features, outputs)` and biases `(outputs,)`."""
        with torch.no_grad():
            self.dense.weight.copy_(weight.T)
            self.dense.bias.copy_(bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(m, features)` to logits `(m, c)`."""
        return class_logits(self.dense(features), self.classes, self.target)


def class_logits(outputs: Tensor, classes: int, target: int | None) -> Tensor:
    """Logits `(m, c)` of what a branch's dense layer gives, as `ClassHead` documents them."""
    if target is None:
        return outputs
    rest = nn.functional.logsigmoid(-outputs) - torch.log(torch.tensor(classes - 1.0))
    own = nn.functional.logsigmoid(outputs)  # (m, 1)
    return torch.cat([rest.expand(-1, target), own, rest.expand(-1, classes - target - 1)], dim=1)


def tapped(
    model: Mapping[str, Any],
    taps: Sequence[Mapping[str, Any]],
    shape: Sequence[int],
    grid: int = 2,
    table: Sequence[int] | None = None,
) -> TappedNet:
    """Build a tapped network from JSON values; a `ModelSpec` names it.

    Args:
        model: A `ModelSpec` of the network, as JSON values.
        taps: Name and reads of each.
        shape: Of one input after preprocessing.
        grid: Of `branch_pool`.
        table: For superclasses: for each class its superclass.

    >>> net = tapped({"name": "resnet8", "arguments": {"width": 0.25}},
    ...              [{"name": "cat", "reads": ["layer1", "layer2"]}], [3, 16, 16])
    >>> net(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """
    made = [Tap(name=tap["name"], reads=tuple(tap["reads"])) for tap in taps]
    net = build(ModelSpec.from_dict(model), allow_import=False)
    return TappedNet(net, made, torch.zeros(1, *shape), grid=grid, table=table)


def tapped_spec(
    model: ModelSpec,
    taps: Sequence[Tap],
    shape: Sequence[int],
    *,
    grid: int = 2,
    table: Sequence[int] | None = None,
) -> ModelSpec:
    """How to build a tapped network again.

    >>> spec = tapped_spec(ModelSpec(name="resnet8"), [Tap(name="cat", reads=("layer1",))],
    ...                    [3, 32, 32])
    >>> spec.name
    'offramp.train.design:tapped'
    """
    arguments = {
        "model": ModelSpec(name=model.name, arguments=model.arguments).to_dict(),
        "taps": [{**asdict(tap), "reads": list(tap.reads)} for tap in taps],
        "shape": list(shape),
        "grid": grid,
        "table": None if table is None else [int(k) for k in table],
    }
    return ModelSpec(name="offramp.train.design:tapped", arguments=arguments)


def class_head(features: int, classes: int, target: int | None = None) -> ClassHead:
    """Build a `ClassHead`; a `ModelSpec` names it "offramp.train.design:class_head".

    >>> class_head(3, 4, 2)(torch.zeros(5, 3)).shape
    torch.Size([5, 4])
    """
    return ClassHead(features, classes, target)


def _in_order(taps: Sequence[Tap]) -> list[str]:
    """Every point that is read, in the order in which they run, as the taps' orders tell it."""
    order: list[str] = []
    for tap in taps:
        if order and tap.reads[-1] in order and tap.reads[-1] != order[-1]:
            raise InputError(f"taps must come in the order of their points, got {tap.name!r} late.")
        order += [name for name in tap.reads if name not in order]
    return order
