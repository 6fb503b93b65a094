"""The cloud's part of a cascade: it goes on from what a device has computed.

The stages of the device stand in it as stages that answer what the device says they answered, so
the policy, what it combines and what it costs are those of the whole.

Layer: edge.  Source: docs/adr/0056.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from offramp._core.cut import Cut
from offramp._core.errors import FileFormatError, InputError
from offramp._core.packing import SCALE
from offramp._core.topology import RAW_INPUT, Topology
from offramp.backends.table import AUTO, EAGER
from offramp.bundle import load, read_extra, read_manifest
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Columns, HeldStages, Stage
from offramp.stages.fusing.piece import InPiece

EDGE = "edge.json"
FORMAT = 1


@final
class Given(nn.Module):
    """What a device has computed, as it comes.

    Args:
        logits: Name of the tensor `(m, k, c)` with what its stages answered.
        columns: Which of these are of stages that stand for this network.
        carry: Names of the tensors that are its carry.
    """

    def __init__(self, logits: str, columns: Sequence[int], carry: Sequence[str]) -> None:
        super().__init__()
        self._logits, self._columns, self._carry = logits, list(columns), tuple(carry)
        # Where it is, the next stage is.
        self.place = nn.Parameter(torch.zeros(0), requires_grad=False)

    def forward(self, **given: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the carry, and the logits behind them."""
        carry = [_unpacked(given, name) for name in self._carry]
        return (*carry, given[self._logits][:, self._columns])


@final
class Called(nn.Module):
    """Columns by the names that a network has for them."""

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        self._names = dict(names)

    def forward(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The same columns."""
        return {self._names[name]: column for name, column in given.items()}


def _unpacked(given: Mapping[str, Tensor], name: str) -> Tensor:
    values = given[name]
    if name + SCALE in given:
        scale = given[name + SCALE]
        return values.to(scale.dtype) * scale.reshape(-1, *(1,) * (values.dim() - 1))
    return values.float() if values.dtype == torch.float16 else values


def load_resumed(path: Path | str, **how: Any) -> Adaptive:  # noqa: ANN401  (of `offramp.load`)
    """As `offramp.load`, of a cloud's part of a split the rest of the cascade; raises as both.

    Raises:
        InputError: If a backend is wanted that would be made for other types than devices send.
    """
    backend = how.get("backend")
    if backend not in (None, EAGER, AUTO) and EDGE in read_manifest(path).files:
        types = read_extra(path, EDGE).get("types", [])
        if "uint8" in types:  # pictures as they come, where networks in PyTorch read both
            raise InputError(
                f"backend must be None for {path}, got {backend!r}: devices send {types}, and a "
                "backend chosen now is made for float32. Split with the cloud in that backend: "
                "offramp edge split --cloud-backend."
            )
    return resumed(load(path, **how), path)


def resumed(model: Adaptive, folder: Path | str) -> Adaptive:
    """The model of a bundle as `split` means it: the rest of a cascade, if it is the cloud's part.

    Args:
        model: As `offramp.load` gives it.
        folder: Of the bundle.

    Raises:
        FileFormatError: If what stands in the bundle of the split does not fit it.
    """
    if EDGE not in read_manifest(folder).files:
        return model
    told = read_extra(folder, EDGE)
    if told.get("version") != FORMAT:
        raise FileFormatError(
            f"{Path(folder) / EDGE} was written by another version of offramp: its version is "
            f"{told.get('version')!r}, this one reads {FORMAT}. Split again with this version."
        )
    try:
        cut = Cut.of(
            model.policy.topology,
            told["device"],
            told["send"],
            reference=model.candidate.reference,
        )
        sends = {group: list(names) for group, names in told["carries"].items()}
        stages = rest_of(model.cascade, cut, told["logits"], sends, told["raw"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{Path(folder) / EDGE} does not fit the bundle: {error}") from error
    held = HeldStages(
        topology=model.cascade.topology,
        stages=stages,
        class_names=model.cascade.class_names,
    )
    return Adaptive(held, model.choice, costs=model.costs)


def rest_of(
    cascade: Any,  # noqa: ANN401  (a cascade or what is held of one)
    cut: Cut,
    logits: str,
    carries: Mapping[str, Sequence[str]],
    raw: Mapping[str, str],
) -> dict[str, Stage]:
    """The stages of the cloud by name, in order.

    Args:
        cascade: All stages that the cloud runs, and for their names those of the device.
        cut: Where it is cut.
        logits: Name of the tensor with what the device's stages answered.
        carries: By group the names of the tensors that are sent.
        raw: Of each tensor of the raw input what it is sent as.
    """
    topology: Topology = cascade.topology
    held = list(cascade) if isinstance(cascade, Cascade) else list(cascade.stages.values())
    lineages = {k: topology.lineage(k) for k in range(len(topology))}
    found: dict[str, Stage] = {}
    for stage in held:
        k = topology.index(stage.name)
        if k not in cut.here or k in cut.again:
            found[stage.name] = reading(stage, raw) if stage.source is None else stage
            continue
        column = cut.asked.index(k) if k in cut.asked else None
        if topology.sources[k] != RAW_INPUT:
            part = InPiece(ran=True, column=_within(cut, lineages, k, column))
            found[stage.name] = _stands(stage, nn.Identity(), part, source=stage.source)
            continue
        columns = _columns(cut, lineages, k)
        group = _sent(topology, cut, k)
        names = [] if group is None else list(carries[group])
        module = Given(logits, columns, [n for n in names if not n.endswith(SCALE)])
        part = InPiece(gives_logits=True, column=_within(cut, lineages, k, column))
        columns_of = Columns((logits, *names), stack=False)
        found[stage.name] = _stands(stage, module, part, transform=columns_of)
    return found


def _stands(stage: Stage, module: nn.Module, part: InPiece, **others: Any) -> Stage:  # noqa: ANN401
    return Stage(
        stage.name, module, group=stage.group, classes=stage.classes, part=part, **others
    ).eval()


def reading(stage: Stage, raw: Mapping[str, str]) -> Stage:
    """A stage that takes the raw input out of what comes."""
    sent = tuple(raw.values())
    steps: list[nn.Module] = [Columns(sent[0] if len(sent) == 1 else sent, stack=False)]
    if len(sent) > 1:
        steps.append(Called({name: own for own, name in raw.items()}))
    steps += [] if stage.transform is None else [stage.transform]
    return stage.replaced(transform=steps)


def _columns(cut: Cut, lineages: Mapping[int, Sequence[int]], root: int) -> list[int]:
    """Which of the logits are of the network that begins at a stage."""
    return [i for i, k in enumerate(cut.asked) if lineages[k][0] == root or _beside(cut, k, root)]


def _beside(cut: Cut, k: int, root: int) -> bool:
    topology = cut.topology
    return topology.groups[topology.lineage(k)[0]] == topology.groups[root]


def _within(
    cut: Cut, lineages: Mapping[int, Sequence[int]], k: int, column: int | None
) -> int | None:
    """Where a stage's logits are among those of its network."""
    return None if column is None else _columns(cut, lineages, lineages[k][0]).index(column)


def _sent(topology: Topology, cut: Cut, root: int) -> str | None:
    """The group of a network whose carry is sent, or None."""
    own = {
        topology.groups[k]
        for k in cut.here
        if topology.groups[topology.lineage(k)[0]] == topology.groups[root]
    }
    return next((group for group in cut.carries if group in own), None)
