"""The policies that `fit` knows by name.

A fitter takes the examples to fit on, the reference's name, the `top` of the loss and its own
options, and returns candidates, which differ in topology, trade-off, threshold or rate.

Layer: fitting.
"""

from collections.abc import Callable

from offramp._core.registry import Registry
from offramp.fitting.baselines import fit_agreement, fit_random
from offramp.fitting.class_exits.policy import fit_class_specific
from offramp.fitting.learned import fit_learned
from offramp.fitting.stopping.fit import fit_stopping
from offramp.fitting.thresholds import fit_threshold
from offramp.policy.candidate import Candidate

POLICIES: Registry[Callable[..., list[Candidate]]] = Registry(
    "policy",
    {
        "random": fit_random,
        "threshold": fit_threshold,
        "agreement": fit_agreement,
        "learned": fit_learned,
        "class_exits": fit_class_specific,
        "stopping": fit_stopping,
    },
)
