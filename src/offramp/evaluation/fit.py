"""From a trace to a frontier in one call.

Layer: evaluation.
"""

import inspect
import warnings
from collections.abc import Sequence

from offramp._core.checks import check_choice, check_kind, check_positive_int, check_seed
from offramp.evaluation.evaluate import reference_cost
from offramp.evaluation.frontier import Frontier
from offramp.evaluation.sweep import sweep
from offramp.fitting.registry import POLICIES
from offramp.policy import Candidate
from offramp.trace import Trace


def fit(
    trace: Trace,
    policy: str | Sequence[str] = "learned",
    *,
    reference: str | None = None,
    top: int = 1,
    seed: int = 0,
    progress: bool = True,
    **options: object,
) -> Frontier:
    """Fit policies on the `fit` part of a trace and evaluate them for the choice of one.

    Args:
        trace: With the splits `fit` and, to choose on, `calibrate`; other splits are not looked
            at. A trace without splits is divided into halves at random.
        policy: Name of a policy, or several: their candidates share one frontier.
        reference: Name of the reference; by default the most accurate stage on `fit`.
        top: A label counts as right when it is among the `top` best.
        seed: Of the random division of a trace without splits.
        progress: Show a bar.
        **options: For the POLICIES; each goes to those of the policies that know it.

    Raises:
        UnknownNameError: If a policy or the reference does not exist.
        InputError: If no policy knows an option, or the trace has splits but no `fit`.

    >>> from offramp.trace.testing import make_trace
    >>> frontier = fit(make_trace(n=600, stages=2, seed=0), "threshold", combines=["last"])
    >>> frontier.reference, len(frontier.singles)
    ('stage1', 2)
    """
    check_seed(seed)
    check_kind("trace", trace, Trace, read="offramp.load_trace(path)")
    check_positive_int("top", top)
    names = [policy] if isinstance(policy, str) else list(policy)
    shared = _routed_options(names, options)
    trace = trace.halved(seed=seed)
    part = trace.subset("fit")
    calibrate = trace.subset("calibrate") if trace.has_split("calibrate") else None
    if trace.seen_in_training:
        warnings.warn(
            "The networks were trained on these examples, so what is fitted on them is biased "
            "towards the expensive stages. Record examples that no network has seen.",
            stacklevel=2,
        )
    if reference is None:
        reference = trace.stages[part.most_accurate(top=top)]
    reference_cost(part, reference)  # raises if the reference is unknown or free
    candidates: list[Candidate] = []
    for name in names:
        candidates += POLICIES[name](part, reference=reference, top=top, **shared[name])
    return sweep(candidates, part, calibrate, reference=reference, top=top, progress=progress)


def _routed_options(
    names: Sequence[str], options: dict[str, object]
) -> dict[str, dict[str, object]]:
    """For each policy the options that its fitter knows; an option that none knows is refused."""
    known = {
        name: [p for p in inspect.signature(POLICIES[name]).parameters if p != "part"]
        for name in names
    }
    for option in options:
        check_choice("options", option, sorted({o for each in known.values() for o in each}))
    return {name: {o: v for o, v in options.items() if o in known[name]} for name in names}
