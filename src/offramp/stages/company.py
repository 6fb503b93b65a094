"""Whether the answer for one example depends on the others of its batch.

Survivors run in other batches than were recorded. So a stage must answer an example alike in any
company: at its place in a batch of the same size, where rounding is the same as well, and alone.

Layer: stages.  Source: docs/adr/0030.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from offramp._core.batch import all_alike, batch_size, take_rows
from offramp._core.errors import OfframpError, UnsupportedError
from offramp._core.outputs import StageOutput
from offramp._core.topology import Topology
from offramp._core.types import Raw
from offramp.stages.classes import check_same_classes
from offramp.stages.segments import run_segments
from offramp.stages.stage import Stage

_ROWS = 8  # of the batch that are looked at
_ALONE = 3  # of those that also run alone
# Largest differences that count as rounding, of the span of an example's logits. Kernels are
# chosen by shape, so a batch of another size is rounded otherwise; one of the same size is not,
# but for sums in no fixed order.
_SAME_SIZE = 1e-4
_OTHER_SIZE = 0.05

Answers = dict[str, Tensor]


@torch.no_grad()
def check_company(
    stages: Sequence[Stage],
    batch: Raw,
    asked: Iterable[str] | None = None,
    whole: Sequence[Tensor] | None = None,
    topology: Topology | None = None,
) -> bool:
    """Run a few rows of a batch in other company and alone, and compare the answers.

    Stages that have passed once are not run for it again.

    Args:
        stages: In topological order, with all that they continue.
        batch: Raw input; at least two examples that differ can show something.
        asked: Names of the stages that answer; by default all.
        topology: Of the whole cascade, where not all of its stages are here.
        whole: What each of them answered to the whole batch, `compared`, where that is known.

    Returns:
        False if the batch could not show it.

    Raises:
        InputError: If the stages have different numbers of classes.
        UnsupportedError: If an answer depends on the rest of the batch, differs from run to run,
            or a stage does not run on one example alone. It names the stage.
    """
    names = {stage.name for stage in stages} if asked is None else set(asked)
    if all(stage.keeps_company for stage in stages if stage.name in names):
        return True
    kept = [k for k, stage in enumerate(stages) if not stage.asks_alone]  # nor is it paid for
    stages, names = [stages[k] for k in kept], names - {s.name for s in stages if s.asks_alone}
    whole = whole if whole is None else [whole[k] for k in kept]
    rows = _spread(batch_size(batch), _ROWS)
    if len(rows) < 2:
        return False
    some = take_rows(batch, torch.tensor(rows))
    if all_alike(some):
        return False
    run = partial(_answers, stages, names, topology)
    base = run(some)
    if any(len(answer) != len(rows) for answer in base.values()):
        return False  # whoever runs the batch tells
    if all(stage.form != "features" for stage in stages):  # those may give different ones
        check_same_classes({name: answer.shape[1] for name, answer in base.items()})
    coarse = {stage.name: _coarse(stage) for stage in stages}
    for places, stay in _companies(len(rows)):
        found = run(take_rows(some, torch.tensor(places)))
        for name, answer in found.items():
            gap = _gap(answer[stay], base[name][stay])
            if gap > max(_SAME_SIZE, 4 * coarse[name].step):
                again = run(some)[name]
                _blame(name, gap, _gap(again, base[name]), coarse[name].limit)
    if whole is not None:
        for stage, answer in zip(stages, whole, strict=True):
            _check_rounding(stage.name, base[stage.name], answer[rows], coarse, "in a small batch")
    for k in _spread(len(rows), _ALONE):
        for name, answer in _alone(run, some, k).items():
            _check_rounding(name, answer, base[name][k : k + 1], coarse, "alone")
    for stage in stages:
        stage.keeps_company |= stage.name in names
    return True


def _answers(
    stages: Sequence[Stage], asked: Collection[str], topology: Topology | None, batch: Raw
) -> Answers:
    """Scores `(m, c)` of the stages that are asked, by name; labels where there are no scores."""
    results = run_segments(stages, batch, topology)
    asked_of = ((stage, result) for stage, result in results if stage.name in asked)
    return {stage.name: compared(stage.answer(result)) for stage, result in asked_of}


def compared(said: StageOutput) -> Tensor:
    """What is compared of two answers: scores, or the labels alone."""
    if said.features is not None:
        return said.features
    return said.scores() if said.scored else said.top(1)


def _alone(run: Callable[[Raw], Answers], some: Raw, k: int) -> Answers:
    try:
        return run(take_rows(some, torch.tensor([k])))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, UnsupportedError):
            raise
        reason = (
            str(error) if isinstance(error, OfframpError) else f"{type(error).__name__}: {error}"
        )
        raise UnsupportedError(
            f"The stages run on {batch_size(some)} examples, but not on one alone: {reason} Often "
            "it is BatchNorm without running statistics, or a squeeze() that takes the batch's "
            "axis as well. Survivors of a cascade come in any number; mend the network so that it "
            "takes one."
        ) from error


def _check_rounding(
    name: str, found: Tensor, expected: Tensor, coarse: Mapping[str, "_Coarse"], how: str
) -> None:
    gap = _gap(found, expected)
    if gap > coarse[name].limit:
        raise UnsupportedError(_depends(name, gap, how))


def _blame(name: str, gap: float, noise: float, limit: float) -> None:
    """Raise, unless the difference is that between two equal runs, and small."""
    if noise > limit:
        raise UnsupportedError(
            f"Stage {name!r} gives another answer each time: two runs on the same batch differ by "
            f"{noise:.2g} of the span of the logits. Something in it draws at random, such as "
            "functional dropout without training=self.training. A trace and a policy need a "
            "network that repeats itself."
        )
    if gap > 4 * noise:
        raise UnsupportedError(_depends(name, gap, "in other company"))


def _depends(name: str, gap: float, how: str) -> str:
    return (
        f"Stage {name!r} answers an example otherwise {how}: the largest difference is {gap:.2g} "
        "of the span of its logits. In a cascade a stage runs on survivors only, so it would not "
        "answer as recorded. Usual reasons: dynamic int8 (one scale for the batch), BatchNorm "
        "without running statistics, standardization over the batch, experts of limited "
        "capacity. Quantize with fixed scales, fix the statistics, or wrap the network in a "
        "module that runs examples one by one."
    )


def _spread(n: int, count: int) -> list[int]:
    """At most `count` positions from first to last.

    >>> _spread(100, 3), _spread(2, 3)
    ([0, 50, 99], [0, 1])
    """
    if n <= count:
        return list(range(n))
    return [round(k * (n - 1) / (count - 1)) for k in range(count)]


def _companies(k: int) -> list[tuple[list[int], list[int]]]:
    """Batches in which every other example makes way for its neighbor, and who stays in them.

    >>> _companies(3)
    [([0, 0, 2], [0, 2]), ([1, 1, 1], [1])]
    """
    even = [j - j % 2 for j in range(k)]
    odd = [j + 1 - j % 2 if j + 1 - j % 2 < k else j - 1 for j in range(k)]
    return [(places, [j for j in range(k) if places[j] == j]) for places in (even, odd)]


class _Coarse(NamedTuple):
    """What counts as rounding for a stage: in a batch of another size, and its smallest step."""

    limit: float
    step: float


def _coarse(stage: Stage) -> _Coarse:
    kinds = {value.dtype for value in stage.state_dict().values() if isinstance(value, Tensor)}
    if torch.bfloat16 in kinds:
        return _Coarse(4 * _OTHER_SIZE, torch.finfo(torch.bfloat16).eps)
    return _Coarse(_OTHER_SIZE, torch.finfo(torch.float16).eps if torch.float16 in kinds else 0.0)


def _gap(found: Tensor, expected: Tensor) -> float:
    """Largest difference of two answers `(k, c)`, of the span of the logits of one example."""
    if not found.is_floating_point():  # labels
        return 0.0 if torch.equal(found, expected) else math.inf
    found, expected = found.float(), expected.float()
    whole, same = expected.isfinite().all(dim=1), found.isfinite().all(dim=1)
    if not torch.equal(whole, same):
        return math.inf
    found, expected = found[whole], expected[whole]
    if torch.equal(found, expected):
        return 0.0
    gap = (found - expected).abs().amax()
    span = (expected.amax(dim=1) - expected.amin(dim=1)).amax()
    size = expected.abs().amax()  # of logits that are all the same
    return float(gap / torch.maximum(span, 0.01 * size).clamp_min(1e-30))
