"""Images for a report: some that left at each stage, with what each visited stage thought.

Layer: cli.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp._core.topology import Path
from offramp.data import Examples
from offramp.evaluate import replay
from offramp.policy import Policy, Setting
from offramp.stages import Cascade, Normalize
from offramp.trace import Trace

if TYPE_CHECKING:
    from offramp.report import ExampleImage

_CLASSES_SHOWN = 3
_Visit = tuple[str, tuple[tuple[str, float], ...]]


def example_images(
    examples: Examples, part: Trace, setting: Setting, cascade: Cascade, *, per_stage: int = 6
) -> tuple["ExampleImage", ...]:
    """Some images for each stage at which anybody left, right and wrong ones if there are both.

    Args:
        examples: The data set with the images.
        part: A trace of some of its examples, with logits.
        setting: What decides.
        cascade: Says how raw values become numbers in [0, 1].
        per_stage: Most images for one stage.

    Returns:
        Nothing where the inputs are no images, or the trace has no scores.
    """
    from offramp.report import ExampleImage

    if examples[0][0].dim() != 3 or examples[0][0].shape[0] not in (1, 3):
        return ()
    if not part.output(0).scored:
        return ()
    where = {name: row for row, name in enumerate(examples.ids.tolist())}
    names = examples.class_names
    done = replay(part, setting.policy)
    found = []
    for stage in np.unique(done.last):
        for row in _some(np.flatnonzero(done.last == stage), done.wrong, per_stage):
            path = done.paths[done.path[row]]
            raw = examples[where[part.ids[row].item()]][0]
            answer = int(done.labels[row, 0])
            found.append(
                ExampleImage(
                    pixels=_pixels(raw, cascade),
                    label=names[int(part.labels[row])],
                    visits=_visits(part, setting.policy, int(row), path, names),
                    exit_stage=part.stages[stage],
                    correct=not done.wrong[row],
                    answer=names[answer] if 0 <= answer < len(names) else str(answer),
                )
            )
    return tuple(found)


def _some(rows: NDArray[np.int64], wrong: NDArray[np.bool_], most: int) -> list[int]:
    """The first rows, but at least one wrong one among them if there is any."""
    bad = [int(row) for row in rows if wrong[row]][:1]
    good = [int(row) for row in rows if not wrong[row]]
    return [*good[: most - len(bad)], *bad]


def _visits(
    part: Trace, policy: Policy, row: int, path: Path, names: tuple[str, ...]
) -> tuple[_Visit, ...]:
    found = []
    for k in path:
        scores = part.output(k).rows(torch.tensor([row])).scores()[0]
        shares = (scores / policy.temperatures[k]).softmax(dim=0)
        best = shares.topk(min(_CLASSES_SHOWN, len(shares)))
        classes = tuple(
            (names[c] if c < len(names) else "another", min(float(p), 1.0))
            for p, c in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        found.append((part.stages[k], classes))
    return tuple(found)


def _pixels(raw: Tensor, cascade: Cascade) -> NDArray[np.uint8]:
    """An image as bytes, channels last; the preprocessing says what the largest value is."""
    preprocess = cascade.stage(0).preprocess
    values = raw.double()
    if isinstance(preprocess, Normalize):
        values = values * preprocess.scale * 255
    elif raw.is_floating_point():
        values = values * 255
    return values.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
