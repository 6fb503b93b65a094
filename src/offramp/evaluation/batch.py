"""Evaluation of many candidates on the same examples, which share what they look at.

Replaying a sweep one candidate after another would scale, combine and sort the same outputs
hundreds of times. Here every distribution is computed once for a run of examples and all
candidates; decisions are then a few sums of columns. Since a decision never depends on the rest of
the batch, the result is that of `evaluate`, figure for figure.

Layer: evaluation.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar, cast, final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from offramp._core.keys import example_keys
from offramp._core.outputs import best_labels
from offramp._core.progress import progress_bar
from offramp._core.threads import one_thread
from offramp._core.topology import Path
from offramp._core.types import BoolArray, FloatArray
from offramp.evaluation.evaluate import from_outcomes
from offramp.evaluation.outcomes import Outcomes, f_labels, first_labels, outcomes_of
from offramp.evaluation.replay import departures
from offramp.evaluation.results import Evaluation
from offramp.policy import Candidate, Policy
from offramp.policy.features import COMBINED, Distribution
from offramp.policy.of_labels import distribution_of
from offramp.trace import Trace

_NUMBERS = 400_000  # of one distribution held at once; there may be a hundred of them
_T = TypeVar("_T")


def evaluate_all(
    trace: Trace, candidates: Sequence[Candidate], *, progress: bool = False
) -> list[Evaluation]:
    """As `[evaluate(trace, candidate, bootstrap=0) for candidate in candidates]`, but much faster.

    Args:
        trace: The examples.
        candidates: What to evaluate, in any mixture.
        progress: Show a bar.

    >>> from offramp.evaluation.evaluate import evaluate
    >>> from offramp.fitting.baselines import fit_random
    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=50, stages=2, seed=0)
    >>> candidates = fit_random(trace, reference="stage1")
    >>> evaluate_all(trace, candidates) == [evaluate(trace, s, bootstrap=0) for s in candidates]
    True
    """
    for candidate in candidates:
        candidate.policy.topology.check_same_stages(trace.topology, "the trace")
        candidate.policy.check_reads(trace.outputs, "the trace", trace.feature_counts)
    outcomes: list[Outcomes | None] = [None] * len(candidates)
    size = min(16_384, max(256, _NUMBERS // trace.classes))
    small = one_thread(min(size, len(trace)) * trace.classes)
    with small, progress_bar("Replaying candidates", len(trace), enabled=progress) as step:
        for start in range(0, len(trace), size):
            part = trace.take(torch.arange(start, min(start + size, len(trace))))
            shared = _Shared(part)
            for i, candidate in enumerate(candidates):
                more, before = _outcomes(shared, candidate), outcomes[i]
                outcomes[i] = more if before is None else before + more
            step(len(part))
    return [
        from_outcomes(trace, candidate, found)
        for candidate, found in zip(candidates, outcomes, strict=True)
        if found is not None
    ]


@final
class _Shared:
    """What candidates look at, for a run of `m` examples, computed on first use."""

    def __init__(self, part: Trace) -> None:
        self.part = part
        self.keys = example_keys(part.ids)
        self._held: dict[Hashable, object] = {}

    def once(self, key: Hashable, compute: Callable[[], _T]) -> _T:
        if key not in self._held:
            self._held[key] = compute()
        return cast("_T", self._held[key])

    def stage(self, k: int, policy: Policy) -> Distribution:
        """Scaled probabilities of one stage."""
        temperature = policy.temperatures[k]
        return self.once(
            ("stage", k, float(temperature)),
            lambda: distribution_of(self.part.output(k), temperature),
        )

    def answer(self, path: Path, policy: Policy) -> Distribution:
        """The combination at the end of a path."""
        return self.once(
            self._answer_key(path, policy),
            lambda: policy.combination.of(
                path, [self.stage(k, policy) for k in policy.combination.inputs(path)]
            ),
        )

    def _answer_key(self, path: Path, policy: Policy) -> Hashable:
        inputs = policy.combination.inputs(path)
        scales = tuple(float(policy.temperatures[k]) for k in inputs)
        return (scales, policy.combination.key(path))

    def loss(self, path: Path, policy: Policy, top: int) -> FloatArray:
        """Loss of the answer at the end of a path, `(m,)`; 1 where it is wrong."""

        def compute() -> FloatArray:
            if not self.part.labeled:
                return self.part.loss(path[-1])
            best = self._best(path, policy, top)
            return (best != self.part.labels[:, None]).all(dim=1).double().numpy()

        return self.once(("loss", top, path[-1], self._answer_key(path, policy)), compute)

    def differs(self, path: Path, policy: Policy, reference: str) -> BoolArray:
        """True where the first label at the end of a path is not the reference's, `(m,)`."""
        stage = self.part.topology.index(reference)

        def compute() -> BoolArray:
            of_f = self.once(("The reference's", stage), lambda: f_labels(self.part, stage))
            first = first_labels(self._best(path, policy, 1).numpy(), self.part)
            return np.not_equal(first, of_f)

        return self.once(("differs", stage, path[-1], self._answer_key(path, policy)), compute)

    def _best(self, path: Path, policy: Policy, top: int) -> Tensor:
        """The `top` best labels of the answer at the end of a path, `(m, top)`."""

        def compute() -> Tensor:
            last = self.part.output(path[-1])
            if not last.scored:
                return last.top(top)
            return best_labels(self.answer(path, policy).log_probs, top)

        return self.once(("best", top, path[-1], self._answer_key(path, policy)), compute)

    def ranked(self, k: int, count: int) -> Tensor:
        """The best labels of one stage, `(m, count)`."""
        return self.once(("ranked", k, count), lambda: self.part.output(k).top(count))

    def reference_loss(self, reference: str, top: int) -> FloatArray:
        """Loss of the reference's own answer, `(m,)`."""
        stage = self.part.topology.index(reference)
        return self.once(("F", stage, top), lambda: self.part.loss(stage, top=top))


@final
class _Standing:
    """What rules see of the examples at the end of one path; a `Situation`."""

    def __init__(self, shared: _Shared, path: Path, policy: Policy) -> None:
        self._shared, self._path, self._policy = shared, path, policy
        self.ids = shared.keys

    def distribution(self, stage: int) -> Distribution:
        if stage == COMBINED:
            return self._shared.answer(self._path, self._policy)
        return self._shared.stage(stage, self._policy)

    def ranked(self, stage: int, count: int) -> Int[Tensor, "m count"]:
        return self._shared.ranked(stage, count)


def _outcomes(shared: _Shared, candidate: Candidate) -> Outcomes:
    """How many examples leave on each path and are of each class, by who is wrong."""
    policy, topology = candidate.policy, candidate.policy.topology
    m, labeled = len(shared.part), shared.part.labeled
    taken, loss = np.zeros(m, dtype=np.int64), np.zeros(m)
    differs = np.zeros(m, dtype=np.bool_)
    index = {path: i for i, path in enumerate(topology.paths())}

    def at(path: Path) -> _Standing:
        return _Standing(shared, path, policy)

    for path, _, leaving, _ in departures(policy, m, at):
        rows = leaving.numpy()
        if rows.any():
            taken[rows] = index[path]
            loss[rows] = shared.loss(path, policy, candidate.top)[rows]
            if labeled:
                differs |= rows & shared.differs(path, policy, candidate.reference)
    return outcomes_of(
        shared.part,
        candidate,
        path=taken,
        loss=loss,
        f_loss=shared.reference_loss(candidate.reference, candidate.top),
        differs=differs if labeled else None,
    )
