"""Images for a report: some that left at each stage, with what each visited stage thought.

Layer: project.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp._core.errors import InputError
from offramp._core.naming import utf8_name
from offramp._core.topology import Path
from offramp._core.types import Batch
from offramp.data import Dataset
from offramp.evaluation import replay
from offramp.policy import Candidate, Policy
from offramp.policy.features import Distribution, scaled_log_probs
from offramp.policy.stopping import Stopping
from offramp.stages import Cascade, Normalize
from offramp.trace import Trace

if TYPE_CHECKING:
    from offramp.report import ExampleImage

_CLASSES_SHOWN = 3
_SHORT_WAY = 3  # stages
_Visit = tuple[str, tuple[tuple[str, float], ...]]


def example_images(
    examples: Dataset,
    part: Trace,
    candidate: Candidate,
    cascade: Cascade,
    *,
    per_stage: int = 6,
    baseline: Trace | None = None,
) -> tuple["ExampleImage", ...]:
    """Some images for each stage at which anybody left: right ones, and two kinds of wrong ones.

    Wrong are, where there are any, at least one that the reference gets right, and one that the
    reference gets wrong too.

    Args:
        examples: The data set with the images.
        part: A trace of some of its examples, with logits.
        candidate: What decides.
        cascade: Says how raw values become numbers in [0, 1].
        per_stage: Most images for one stage.
        baseline: Where the reference's answers stand, if not in `part`: the same examples, in the
            same order.

    Returns:
        Nothing where the inputs are no images, or the trace has no scores.
    """
    from offramp.report import ExampleImage

    first = examples[0][0]
    if not isinstance(first, Tensor) or first.dim() != 3 or first.shape[0] not in (1, 3):
        return ()
    if not part.output(0).scored:
        return ()
    where = {name: row for row, name in enumerate(examples.ids.tolist())}
    names = examples.class_names
    done = replay(part, candidate.policy, top=candidate.top)
    of_f = part if baseline is None else baseline
    f_wrong = of_f.wrong(of_f.topology.index(candidate.reference), top=candidate.top)
    found = []
    for stage in np.unique(done.last):
        for row in _some(np.flatnonzero(done.last == stage), done.wrong, f_wrong, per_stage):
            path = done.paths[done.path[row]]
            position = where[_known(part.ids[row].item(), where)]
            answer = int(done.labels[row, 0])
            found.append(
                ExampleImage(
                    pixels=_pixels(examples[position][0], cascade),
                    label=names[int(part.labels[row])],
                    visits=_visits(part, candidate.policy, int(row), path, names),
                    exit_stage=part.stages[stage],
                    correct=not done.wrong[row],
                    answer=names[answer] if 0 <= answer < len(names) else str(answer),
                    reference_correct=not f_wrong[row],
                    stops=_stops(part, candidate.policy, int(row), path),
                )
            )
    return tuple(found)


def _known(name: int | str, where: Mapping[int | str, int]) -> int | str:
    """The name by which the data set knows an example; old traces hold odd bytes unescaped."""
    return name if name in where or isinstance(name, int) else utf8_name(name)


def _some(
    rows: NDArray[np.int64], wrong: NDArray[np.bool_], f_wrong: NDArray[np.bool_], most: int
) -> list[int]:
    """The first right ones, then wrong ones that the reference gets right, then wrong too."""
    lost = [int(row) for row in rows if wrong[row] and not f_wrong[row]]
    hopeless = [int(row) for row in rows if wrong[row] and f_wrong[row]]
    bad = [*lost[: max(1, most // 3)], *hopeless[:1]][:most]
    good = [int(row) for row in rows if not wrong[row]]
    return [*good[: most - len(bad)], *bad]


def _visits(
    part: Trace, policy: Policy, row: int, path: Path, names: tuple[str, ...]
) -> tuple[_Visit, ...]:
    """What each visited stage held most probable; on a long way earlier stages say one class."""
    found = []
    for k in path:
        most = _CLASSES_SHOWN if k == path[-1] or len(path) <= _SHORT_WAY else 1
        scores = part.output(k).take(torch.tensor([row])).scores()[0]
        shares = (scores / policy.temperatures[k]).softmax(dim=0)
        best = shares.topk(min(most, len(shares)))
        classes = tuple(
            (names[c] if c < len(names) else "another", min(float(p), 1.0))
            for p, c in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        found.append((part.stages[k], classes))
    return tuple(found)


def _stops(part: Trace, policy: Policy, row: int, path: Path) -> tuple[float, ...]:
    """Probability of stopping after each visit; nothing where other rules decide."""
    found = []
    for k, stage in enumerate(path):
        if not policy.topology.children(stage):
            found.append(1.0)
            continue
        rule = policy.node(path[: k + 1]).leave
        if not isinstance(rule, Stopping):
            return ()
        scores = part.output(stage).take(torch.tensor([row])).scores()
        shares = scaled_log_probs(scores, policy.temperatures[stage])
        found.append(float(rule.log_odds(Distribution(shares)).sigmoid()))
    return tuple(found) if len(policy.topology.active) > 1 else ()


def _pixels(raw: Batch, cascade: Cascade) -> NDArray[np.uint8]:
    """An image as bytes, channels last; the transform says what the largest value is."""
    if not isinstance(raw, Tensor):
        raise InputError(f"Images must be tensors, got {type(raw).__name__}.")
    steps = [part for part in cascade.stage(0).modules() if isinstance(part, Normalize)]
    values = raw.double()
    if steps:
        values = values * steps[0].scale * 255
    elif raw.is_floating_point():
        values = values * 255
    return values.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
