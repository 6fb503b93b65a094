"""Cutting a trained network at named layers into segments that run one after the other.

Layer: stages.  Source: methods.md 1 (early exit: the segments of one network).
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from offramp._core.batch import apply, take_rows
from offramp._core.errors import InputError, UnsupportedError
from offramp._core.released import released
from offramp._core.types import Batch
from offramp.models import extract_logits
from offramp.stages.cutting.graph import capture, rows_of
from offramp.stages.cutting.layout import Layouts
from offramp.stages.cutting.plan import Plan
from offramp.stages.cutting.quiet import shortened
from offramp.stages.cutting.segments import build_segments
from offramp.stages.cutting.sizes import put_at_entry
from offramp.stages.cutting.tried import tried_sizes
from offramp.stages.reading import copied
from offramp.stages.weight_names import call_by_own_names, names_in

_log = logging.getLogger(__name__)

#: What a segment's `meta` calls the `LayerShape` of the first tensor that it gives.
GIVES = "gives"
_TOLERANCE = 1e-4  # of a float32 answer relative to the largest one; segments differ by rounding


@released()
def cut(
    net: nn.Module,
    at: Sequence[str],
    example: Batch,
    *,
    keep: Sequence[str] = (),
    classes: int | None = None,
) -> list[nn.Module]:
    """Split a network after some of its layers.

    The segments in sequence compute the network's logits; each reads what the one before gave: a
    tensor, or a tuple of tensors, batch first, of which the first is what the layer gave. So rows
    may be dropped between any two. They share the network's parameters and its convolution and
    batch-norm layers, which have the network's own names in their state dicts, and hold for
    evaluation mode.

    They hold for inputs of other sizes than the example's (heights, widths, lengths of texts) along
    each axis along which they were found to answer as the network does; the first segment refuses
    all others with `InputError`.

    Args:
        net: In evaluation mode; stays as it is.
        at: Names of layers, in the order in which they run; a segment ends after each. Where a
            layer runs more than once, "layer@2" is the end of its second run, counted from 1, and
            "layer" that of its last.
        example: Some raw input; only its kind and shapes matter, so one example is enough.
        keep: Names of inputs that every segment but the last hands on as they came, behind all
            else, so that heads can read them: an attention mask. The inputs of a tuple are called
            "input_0", "input_1", ...
        classes: Number of classes; where the network returns several tensors, its logits are the
            one with so many columns, and the others are left out.

    Returns:
        One segment more than names.

    Raises:
        UnknownNameError: If there is no such layer; near names are suggested.
        InputError: If the network is in training mode or does not run on the example; if a name is
            that of the last layer, of one that computes nothing or of a run that is none, the names
            are not in order or two are the same point, a tensor there has no elements, or there is
            no input to keep; or if the network returns several tensors and not one of them has
            `classes` columns.
        UnsupportedError: If the network cannot be followed (control flow that depends on values),
            or cannot be cut there: its examples mix. The nearest points that work are named.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> first, last = cut(net, ["1"], torch.zeros(1, 4))
    >>> x = torch.rand(5, 4)
    >>> torch.equal(last(first(x)), net(x))
    True
    """
    two = rows_of(net, example)
    reference = answer(net, two, classes)
    names = input_names(two)
    plan, positions, built = _built(net, at, two, names, keep, classes)
    segments: list[nn.Module] = list(built)
    _check_same(segments, two, reference)
    put_at_entry(built[0], tried_sizes(net, segments, plan.captured.followed, two, names, classes))
    layouts = Layouts(plan, net, two, names)
    for segment, position in zip(built, positions, strict=False):
        segment.meta[GIVES] = layouts.shape(position)
    own = names_in(net)
    for segment in built:
        call_by_own_names(segment, own)
    return segments


def _built(
    net: nn.Module,
    at: Sequence[str],
    two: Batch,
    names: Sequence[str],
    keep: Sequence[str],
    classes: int | None,
) -> tuple[Plan, list[int], list[fx.GraphModule]]:
    captured = capture(net, copied(two), classes=classes)
    plan = Plan(captured, net, _kept(names, captured.inputs, keep))
    positions = _located(plan, at)
    try:
        return plan, positions, build_segments(plan, positions, names)
    except UnsupportedError:
        if not captured.followed.lengths:
            raise
    # A length cannot be known everywhere.
    _log.info("The network is cut for the lengths of the example alone.")
    captured = capture(net, copied(two), lengths=False, classes=classes)
    plan = Plan(captured, net, _kept(names, captured.inputs, keep))
    positions = _located(plan, at)
    return plan, positions, build_segments(plan, positions, names)


def _kept(names: Sequence[str], inputs: Sequence[fx.Node], keep: Sequence[str]) -> list[fx.Node]:
    found = dict(zip(names, inputs, strict=True))
    for name in keep:
        if name not in found:
            raise InputError(
                f"A head reads the input {name!r}, but the network is given {names}. Name one of "
                "these as mask, or give an example that has it."
            )
    return [found[name] for name in keep]


def input_names(example: Batch) -> list[str]:
    """What the first segment calls its inputs."""
    if isinstance(example, Mapping):
        return list(example)
    return [f"input_{k}" for k in range(1 if isinstance(example, Tensor) else len(example))]


def answer(net: nn.Module, example: Batch, classes: int | None = None) -> Tensor:
    """Logits of the uncut network.

    Raises:
        InputError: If it does not run on the example.
    """
    try:
        with torch.no_grad():
            return extract_logits(apply(net, copied(example)), classes)  # it may write into it
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"The network does not run on the example: {shortened(str(error))} Give an example as "
            "the network takes it: a tensor, a tuple, or a mapping of its arguments, batch first."
        ) from error


def _located(plan: Plan, at: Sequence[str]) -> list[int]:
    if isinstance(at, str) or not at:
        raise InputError(f"at must list at least one layer, got {at!r}.")
    places = [(plan.locate(name), name) for name in at]
    ordered = sorted(places, key=lambda place: place[0])
    for (one, first), (other, second) in pairwise(ordered):
        if one == other:
            raise InputError(
                f"at names one point twice: nothing runs between the ends of {first!r} and "
                f"{second!r}. Keep one of them; alternative heads share a point."
            )
    if places != ordered:
        raise InputError(
            "at must name the layers in the order in which they run: "
            f"{[name for _, name in ordered]}, got {list(at)}."
        )
    return [position for position, _ in places]


def _check_same(segments: Sequence[nn.Module], two: Batch, reference: Tensor) -> None:
    """Run each segment on both rows and on one of them alone; the last gives the answer."""
    last = torch.tensor([len(reference) - 1], device=reference.device)
    whole: Batch = two
    with torch.no_grad():
        for k, segment in enumerate(segments):
            alone = apply(segment, take_rows(whole, last))
            whole = apply(segment, whole)
            for found, expected in zip(_parts(alone), _parts(whole), strict=True):
                _compare(found, expected[last], f"with an example dropped before segment {k}")
    _compare(_parts(whole)[0], reference, "in sequence")


def _compare(found: Tensor, expected: Tensor, how: str) -> None:
    found, expected = found.double(), expected.double()
    if torch.allclose(
        found, expected, atol=_TOLERANCE * max(1.0, _largest(expected)), equal_nan=True
    ):
        return
    raise UnsupportedError(
        f"The segments {how} differ from the network by {_largest(found - expected):.3g}. Either "
        "the answer for one example depends on the others, or the network computes something else "
        "each time (random numbers, or state that it changes)."
    )


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()].abs()
    return finite.max().item() if finite.numel() else 0.0


def _parts(batch: Batch) -> tuple[Tensor, ...]:
    return (batch,) if isinstance(batch, Tensor) else tuple(batch)  # type: ignore[arg-type]
