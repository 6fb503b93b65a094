"""What a candidate does to each class: recall, cost, and how many leave early.

Layer: evaluation.  Source: none, counts that an evaluation keeps, divided.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from offramp._core.checks import check_class_names, check_kind
from offramp.evaluation.results import Evaluation


@final
@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class under one candidate.

    Args:
        name: Its name.
        n: Number of examples of the class, at least 1.
        recall: Share of them that the candidate gets right.
        reference_recall: Share of them that the reference gets right.
        lost: Share that the reference alone gets right: new errors.
        early: Share that leaves before the last stage that the candidate may visit.
        cost_ratio: Their mean cost over that of the reference.
    """

    name: str
    n: int
    recall: float
    reference_recall: float
    lost: float
    early: float
    cost_ratio: float

    @property
    def drop(self) -> float:
        """Recall lost against the reference, in [-1, 1]."""
        return self.reference_recall - self.recall


def by_class(found: Evaluation, class_names: Sequence[str] = ()) -> tuple[ClassRow, ...]:
    """Each class of which there are examples, in the order of the classes.

    Args:
        found: An evaluation of labeled examples.
        class_names: Names of the classes, `(c,)`; by default their indices.

    Returns:
        None where the evaluation keeps no counts by class, as those of losses do.

    Raises:
        InputError: If there is not one name for each class.

    >>> from offramp.evaluation import evaluate
    >>> from offramp.policy import Candidate
    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=400, stages=2, classes=2, seed=0)
    >>> small = Candidate.single(trace.topology, "stage0", reference="stage1")
    >>> [(row.name, row.cost_ratio) for row in by_class(evaluate(trace, small, bootstrap=0))]
    [('0', 0.25), ('1', 0.25)]
    """
    check_kind("found", found, Evaluation)
    outcomes = np.array(found.class_outcomes, dtype=np.int64)  # (4, c)
    paths = np.array(found.class_paths, dtype=np.int64)  # (p, c)
    if outcomes.size == 0 or paths.size == 0:
        return ()
    names = check_class_names(class_names, outcomes.shape[1])
    both, corrected, lost, _ = outcomes
    topology = found.candidate.policy.topology
    last = topology.active[-1]
    early = paths[[path[-1] != last for path in topology.paths()]].sum(axis=0)
    spent = np.array(found.path_cost_ratio, dtype=np.float64) @ paths
    sizes = outcomes.sum(axis=0)
    return tuple(
        ClassRow(
            name=names[c] if names else str(c),
            n=int(n),
            recall=float((both[c] + corrected[c]) / n),
            reference_recall=float((both[c] + lost[c]) / n),
            lost=float(lost[c] / n),
            early=float(early[c] / n),
            cost_ratio=float(spent[c] / n),
        )
        for c, n in enumerate(sizes.tolist())
        if n > 0
    )
