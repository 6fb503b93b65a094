"""What policies, rules and features promise.

What may differ between policies is how they are fitted. What they are afterwards may not: a policy
decides by what it is shown, each example on its own, and never by a label.

Layer: testing.
"""

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor

from offramp._core.keys import example_keys
from offramp._core.outputs import StageOutput
from offramp._core.schema import from_json, to_json
from offramp._core.topology import Path
from offramp.evaluation import replay
from offramp.fitting.registry import POLICIES
from offramp.policy import Candidate, Evidence, Node, Policy
from offramp.policy.features import FEATURES, Distribution
from offramp.policy.rules import RULES, AnyRule, Rule
from offramp.testing.promise import documented, member, require
from offramp.testing.slow import replay_slow
from offramp.trace import Trace, make_trace

_SWEPT = 4  # candidates of a sweep that are looked at
_FIRST = ["part", "reference", "top"]

Fitter = Callable[..., list[Candidate]]
Act = Callable[[Evidence], tuple[Tensor, ...]]


def check_policy(
    fitter: Fitter | str,
    *,
    kind: Literal["logits", "labels"] = "logits",
    **options: Any,  # noqa: ANN401  (of the fitter)
) -> None:
    """Raise unless a fitter, and the policies that it gives, keep what every policy promises.

    Args:
        fitter: From a trace to candidates; or its name in `POLICIES`.
        kind: What the stages of the trace answer with.
        **options: Of the fitter, to make the sweep small; the promises are the same.

    Raises:
        AssertionError: If a promise is broken; it says which.

    >>> check_policy("random")
    """
    name, fit = member(POLICIES, fitter)
    _check_signature(name, fit)
    part = make_trace(160, stages=3, classes=4, seed=0, kind=kind)
    before = to_json(part.topology), part.labels.clone()
    candidates = fit(part, reference="stage2", **options)
    require(candidates, "it finds a candidate", whose=name)
    _check_candidates(name, fitter, candidates)
    again = fit(part, reference="stage2", **options)
    alike = [to_json(c) for c in candidates] == [to_json(c) for c in again]
    require(alike, "fitting twice gives the same", whose=name)
    kept = (to_json(part.topology), part.labels.tolist()) == (before[0], before[1].tolist())
    require(kept, "fitting changes nothing that it was given", whose=name)
    trace = make_trace(60, stages=3, classes=4, seed=1, kind=kind)
    some = candidates[:: max(1, len(candidates) // _SWEPT)]
    exits = np.concatenate([replay(trace, c.policy).last for c in some])
    require(len(np.unique(exits)) >= 2, "its policies leave at different stages", whose=name)
    for candidate in some:
        _check_decisions(f"{name}, {candidate.label}", candidate, trace)
    for candidate in fit(part.take(torch.arange(1)), reference="stage2", **options)[:3]:
        walked = len(replay(part.take(torch.arange(1)), candidate.policy).path)
        require(walked == 1, "one example is enough to fit on", whose=name)


def check_rule(rule: Rule, *, classes: int = 4) -> None:
    """Raise unless a rule keeps what every rule promises.

    Args:
        rule: For a decision at the first of two stages.
        classes: How many the outputs have.

    Raises:
        AssertionError: If a promise is broken; it says which.

    >>> from offramp.policy import Feature, Linear
    >>> check_rule(Linear.threshold(Feature("margin", 0), 0.5))
    """
    name = type(rule).__name__
    documented(type(rule), name)
    trace = make_trace(40, stages=2, classes=classes, seed=0)
    policy = Policy(trace.topology, {(0,): Node(rule)})
    require(isinstance(rule.free, bool), "it says whether it looks at nothing", whose=name)
    score = rule.score(_Seen(trace))
    require(score.shape == (len(trace),), "there is one number for each example", whose=name)
    require(score.dtype == torch.float32, "a score is float32", whose=name)
    _check_each_alone(name, policy, trace)
    if type(rule) in RULES.values():  # only what is registered can stand in a file
        again = from_json(AnyRule, json.loads(json.dumps(to_json(rule), allow_nan=False)))
        alike = to_json(again) == to_json(rule) and score.equal(again.score(_Seen(trace)))
        require(alike, "it survives JSON bit by bit", whose=name)


def check_feature(feature: Callable[[Distribution], Tensor] | str) -> None:
    """Raise unless a statistic of a distribution keeps what every feature promises.

    Args:
        feature: From a distribution of `m` examples to `(m,)`; or its name in `FEATURES`.

    Raises:
        AssertionError: If a promise is broken; it says which.

    >>> check_feature("entropy")
    """
    name, compute = member(FEATURES, feature)
    generator = torch.Generator().manual_seed(0)
    logits = torch.cat([4 * torch.randn(9, 5, generator=generator), torch.zeros(1, 5)])
    log_probs = logits.log_softmax(dim=1)
    whole = compute(Distribution(log_probs))
    require(whole.shape == (10,), "there is one number for each example", whose=name)
    require(whole.dtype == torch.float32, "it is float32", whose=name)
    require(whole.isfinite().all(), "it is finite", whose=name)
    alone = torch.cat([compute(Distribution(row[None])) for row in log_probs])
    require(torch.equal(whole, alone), "it does not depend on the rest of the batch", whose=name)
    sure = compute(Distribution(torch.tensor([[200.0, 0.0, -200.0]]).log_softmax(dim=1)))
    require(sure.isfinite().all(), "it is finite where a class is all but certain", whose=name)


@final
class _Seen:
    """The examples of a trace as a rule sees them: a `Situation`."""

    def __init__(self, trace: Trace) -> None:
        self.ids = example_keys(trace.ids)
        self._outputs = [trace.output(k) for k in range(len(trace.topology))]

    def distribution(self, stage: int) -> Distribution:
        """Class probabilities of a stage; the combination is taken for the last one."""
        return Distribution(self._outputs[stage].scores().log_softmax(dim=1))

    def ranked(self, stage: int, count: int) -> Tensor:
        """The best labels of a stage."""
        return self._outputs[stage].top(count)


def _check_signature(name: str, fit: Fitter) -> None:
    parameters = inspect.signature(fit).parameters
    text = inspect.getdoc(fit) or ""
    documented(fit, name)
    require(list(parameters)[:3] == _FIRST, f"its first arguments are {_FIRST}", whose=name)
    others = list(parameters.values())[1:]
    named = all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in others)
    require(named, "all arguments but the first are given by name", whose=name)
    require(">>> " in text, "the docstring has an example", whose=name)
    for option in parameters:
        require(f"{option}: " in text, f"the docstring explains {option}", whose=name)


def _check_candidates(name: str, fitter: Fitter | str, candidates: list[Candidate]) -> None:
    for candidate in candidates:
        called = not isinstance(fitter, str) or candidate.method == fitter
        require(called, "a candidate's method is the name of its fitter", whose=name)
        require(candidate.reference == "stage2", "it keeps the reference", whose=name)
        require(candidate.parameters, "a candidate says what distinguishes it", whose=name)
        require(candidate.label.startswith(candidate.method), "its label begins so", whose=name)
    different = len({repr(to_json(c.policy)) for c in candidates}) > 1
    require(different, "its candidates differ", whose=name)


def _check_decisions(name: str, candidate: Candidate, trace: Trace) -> None:
    policy = candidate.policy
    _check_each_alone(name, policy, trace)
    again = from_json(Candidate, json.loads(json.dumps(to_json(candidate), allow_nan=False)))
    alike = to_json(again) == to_json(candidate) and _equal(trace, policy, trace, again.policy)
    require(alike, "it survives JSON bit by bit", whose=name)
    swapped = replace(trace, labels=trace.labels.flip(0))
    blind = _equal(trace, policy, swapped, policy, but=("path_cost",))
    require(blind, "other labels change no decision and no answer", whose=name)
    few = trace.take(torch.arange(25))
    fast, slow = replay(few, policy), replay_slow(few, policy)
    fields = ("path", "labels", "wrong", "closest", "path_cost")
    equal = all(np.array_equal(getattr(fast, f), getattr(slow, f)) for f in fields)
    require(equal, "replay is what walking each example on its own gives", whose=name)
    for row in (0, len(trace) - 1):
        one, whole = replay(trace.take(torch.tensor([row])), policy), replay(trace, policy)
        equal = one.path.tolist() == [whole.path[row]]
        equal &= one.labels.tolist() == [whole.labels[row].tolist()]
        require(equal, "one example is treated as it is among others", whose=name)


def _check_each_alone(name: str, policy: Policy, trace: Trace) -> None:
    """Decisions and answers do not depend on the rest of the batch, nor on its order."""
    few = trace.take(torch.arange(min(30, len(trace))))
    for path, count, view in _standing(few, policy):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        everybody, shuffled, *alone = (
            view(which) for which in (torch.arange(count), order, *torch.arange(count)[:, None])
        )
        for act in _acts(policy, path[-1], few):
            whole = act(everybody)
            one_by_one = [torch.cat(parts) for parts in zip(*map(act, alone), strict=True)]
            equal = all(map(torch.equal, whole, one_by_one))
            require(equal, "nothing depends on the rest of the batch", whose=name)
            equal = all(torch.equal(a[order], b) for a, b in zip(whole, act(shuffled), strict=True))
            require(equal, "nothing depends on the order of a batch", whose=name)


def _standing(
    trace: Trace, policy: Policy
) -> Iterator[tuple[Path, int, Callable[[Tensor], Evidence]]]:
    """For each path how many came by it, and the evidence of some of them by position."""
    outputs, keys = [trace.output(k) for k in range(len(trace.topology))], example_keys(trace.ids)
    done = replay(trace, policy)
    went = [done.paths[i] for i in done.path]
    for path in policy.topology.paths():
        rows = torch.tensor([row for row, way in enumerate(went) if way[: len(path)] == path])
        if len(rows):
            yield path, len(rows), partial(_evidence, policy, path, outputs, keys, rows)


def _evidence(
    policy: Policy,
    path: Path,
    outputs: list[StageOutput],
    keys: Tensor,
    rows: Tensor,
    which: Tensor,
) -> Evidence:
    return Evidence(policy, path, outputs, keys[rows[which]], rows[which])


def _acts(policy: Policy, stage: int, trace: Trace) -> Iterator[Act]:
    """What a policy does with a view: decide, answer where there are scores, predict."""
    yield policy.decide
    if trace.output(stage).scored:
        yield lambda view: (policy.answer(view),)
    yield lambda view: (policy.predict(view, top=2),)


def _equal(
    trace: Trace, policy: Policy, other_trace: Trace, other: Policy, *, but: tuple[str, ...] = ()
) -> bool:
    one, two = replay(trace, policy), replay(other_trace, other)
    fields = [f for f in ("path", "labels", "closest", "path_cost") if f not in but]
    return all(np.array_equal(getattr(one, f), getattr(two, f)) for f in fields)
