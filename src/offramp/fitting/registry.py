"""The policies that `fit` knows by name.

A fitter takes the examples to fit on, F's name, the `top` of the loss and its own options, and
returns settings: candidates that differ in topology, trade-off, threshold or rate.

Layer: fitting.
"""

from offramp._core.registry import Registry
from offramp.fitting.baselines import fit_agreement, fit_uniform
from offramp.fitting.class_exits.policy import fit_class_specific
from offramp.fitting.learned import fit_weighted
from offramp.fitting.stopping.fit import fit_stopping
from offramp.fitting.thresholds import fit_myopic
from offramp.policy.setting import Setting

fitters: Registry[list[Setting]] = Registry(
    "policy",
    {
        "uniform": fit_uniform,
        "myopic": fit_myopic,
        "agreement": fit_agreement,
        "weighted": fit_weighted,
        "class_specific": fit_class_specific,
        "stopping": fit_stopping,
    },
)
