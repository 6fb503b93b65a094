"""Cutting a trained network at named layers into segments that run one after the other.

Layer: stages.  Source: methods.md 1 (early exit: the segments of one network).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from offramp._core.batch import apply, take_rows
from offramp._core.errors import InputError, UnsupportedError
from offramp._core.types import Batch
from offramp.models import extract_logits
from offramp.stages.cut_graph import capture, rows_of
from offramp.stages.cut_plan import Plan
from offramp.stages.cut_segments import build_segments
from offramp.stages.reading import copied

_TOLERANCE = 1e-4  # of a float32 answer relative to the largest one; segments differ by rounding


def cut(net: nn.Module, at: Sequence[str], example: Batch) -> list[nn.Module]:
    """Split a network after some of its layers.

    The segments in sequence compute the network's logits; each reads what the one before gave: a
    tensor, or a tuple of tensors, batch first, of which the first is what the layer gave. So rows
    may be dropped between any two. They share the network's parameters and its convolution and
    batch-norm layers, and hold for evaluation mode.

    Args:
        net: In evaluation mode; stays as it is.
        at: Names of layers, in the order in which they run; a segment ends after each. Where a
            layer runs more than once, its last run counts.
        example: Some raw input; only its kind and shapes matter, so one example is enough.

    Returns:
        One segment more than names.

    Raises:
        UnknownNameError: If there is no such layer; near names are suggested.
        InputError: If the network is in training mode or does not run on the example; if a name is
            that of the last layer or of one that computes nothing, the names are not in order or
            two are the same point, or a tensor there has no elements.
        UnsupportedError: If the network cannot be followed (control flow that depends on values),
            or cannot be cut there: its examples mix. The nearest points that work are named.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> first, last = cut(net, ["1"], torch.zeros(1, 4))
    >>> x = torch.rand(5, 4)
    >>> torch.equal(last(first(x)), net(x))
    True
    """
    two = rows_of(net, example)
    reference = answer(net, two)
    plan = Plan(capture(net, copied(two)), net)
    segments: list[nn.Module] = list(build_segments(plan, _located(plan, at), input_names(two)))
    _check_same(segments, two, reference)
    return segments


def input_names(example: Batch) -> list[str]:
    """What the first segment calls its inputs."""
    if isinstance(example, Mapping):
        return list(example)
    return [f"input_{k}" for k in range(1 if isinstance(example, Tensor) else len(example))]


def answer(net: nn.Module, example: Batch) -> Tensor:
    """Logits of the uncut network.

    Raises:
        InputError: If it does not run on the example.
    """
    try:
        with torch.no_grad():
            return extract_logits(apply(net, copied(example)))  # it may write into it
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"The network does not run on the example: {error} Give an example as the network "
            "takes it: a tensor, a tuple, or a mapping of its arguments, batch first."
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
