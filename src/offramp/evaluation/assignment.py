"""Who is assigned where, and what every stage would have answered there.

Layer: evaluation.  Source: Guan et al., IJCAI 2018, Figure 4.
"""

from dataclasses import dataclass
from typing import final

from offramp.evaluation.replay import replay
from offramp.policy import Candidate
from offramp.trace import Trace


@final
@dataclass(frozen=True, kw_only=True)
class Assignment:
    """How accurate each stage is on the examples that left at each stage.

    Args:
        stages: Names of the stages that the candidate uses, `(s,)`.
        share: Share of examples that left at each, `(s,)`, sums to 1.
        accuracy: `accuracy[i][j]`: share of right answers of stage i alone on the examples that
            left at stage j; None where nobody left.
    """

    stages: tuple[str, ...]
    share: tuple[float, ...]
    accuracy: tuple[tuple[float | None, ...], ...]


def assignment(part: Trace, candidate: Candidate) -> Assignment:
    """Replay a candidate and look at every stage's own answers, group by group.

    Args:
        part: The examples.
        candidate: What decides.

    >>> from offramp.trace.testing import make_trace
    >>> part = make_trace(n=100, stages=2, seed=0)
    >>> alone = Candidate.single(part.topology, "stage1", reference="stage1")
    >>> assignment(part, alone).share
    (1.0,)
    """
    active = candidate.policy.topology.active
    last = replay(part, candidate.policy, top=candidate.top).last  # (n,)
    right = [~part.wrong(k, top=candidate.top) for k in active]
    groups = [last == k for k in active]
    return Assignment(
        stages=tuple(part.stages[k] for k in active),
        share=tuple(float(group.mean()) for group in groups),
        accuracy=tuple(
            tuple(float(own[group].mean()) if group.any() else None for group in groups)
            for own in right
        ),
    )
