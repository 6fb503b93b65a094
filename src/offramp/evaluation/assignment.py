"""Who is assigned where, and what every stage would have answered there.

Layer: evaluation.  Source: Guan et al., IJCAI 2018, Figure 4.
"""

from dataclasses import dataclass
from typing import final

from offramp.evaluation.replay import replay
from offramp.policy import Setting
from offramp.trace import Trace


@final
@dataclass(frozen=True, kw_only=True)
class Assignment:
    """How accurate each stage is on the examples that left at each stage.

    Args:
        stages: Names of the stages that the setting uses, `(s,)`.
        share: Share of examples that left at each, `(s,)`, sums to 1.
        accuracy: `accuracy[i][j]`: share of right answers of stage i alone on the examples that
            left at stage j; None where nobody left.
    """

    stages: tuple[str, ...]
    share: tuple[float, ...]
    accuracy: tuple[tuple[float | None, ...], ...]


def assignment(part: Trace, setting: Setting) -> Assignment:
    """Replay a setting and look at every stage's own answers, group by group.

    Args:
        part: The examples.
        setting: What decides.

    >>> from offramp.trace.testing import make_trace
    >>> part = make_trace(n=100, stages=2, seed=0)
    >>> alone = Setting.single(part.topology, "stage1", reference="stage1")
    >>> assignment(part, alone).share
    (1.0,)
    """
    active = setting.policy.topology.active
    last = replay(part, setting.policy, top=setting.top).last  # (n,)
    right = [~part.wrong(k, top=setting.top) for k in active]
    groups = [last == k for k in active]
    return Assignment(
        stages=tuple(part.stages[k] for k in active),
        share=tuple(float(group.mean()) for group in groups),
        accuracy=tuple(
            tuple(float(own[group].mean()) if group.any() else None for group in groups)
            for own in right
        ),
    )
