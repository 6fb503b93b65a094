"""The policies that `fit` knows by name.

A fitter takes the examples to fit on, F's name, the `top` of the loss and its own options, and
returns settings: candidates that differ in topology, trade-off, threshold or rate.

Layer: policy.
"""

from offramp._core.registry import Registry
from offramp.policy.baselines import fit_agreement, fit_uniform
from offramp.policy.class_specific.policy import fit_class_specific
from offramp.policy.learned import fit_weighted
from offramp.policy.myopic import fit_myopic
from offramp.policy.setting import Setting
from offramp.policy.stopping_fit import fit_stopping

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
