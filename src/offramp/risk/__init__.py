"""Risk control: p-values of a broken promise, and which candidates may be promised by them.

Every p-value here tests "the risk is larger than `max_risk`" on examples that were not looked at
before; a small one refutes that. All work on counts or losses, never on traces.

Layer: risk.  Source: methods.md 4; Learn then Test, Angelopoulos et al. 2021, arXiv:2110.01052.
"""

from offramp.risk.betting import betting_p_values
from offramp.risk.bounds import (
    binomial_p_values,
    hoeffding_bentkus_p_values,
    rescaled_difference,
    several_risks,
)
from offramp.risk.conformal import Controlled, conformal_limit, conformal_risk_control
from offramp.risk.counted import Range, counted_p_value, fewest_counted, tuned_bet
from offramp.risk.paired import paired_p_values
from offramp.risk.selection import NonePassed, Passed, bonferroni, fixed_sequence, holm
from offramp.risk.sizes import examples_needed, fewest_examples

__all__ = [
    "Controlled",
    "NonePassed",
    "Passed",
    "Range",
    "betting_p_values",
    "binomial_p_values",
    "bonferroni",
    "conformal_limit",
    "conformal_risk_control",
    "counted_p_value",
    "examples_needed",
    "fewest_counted",
    "fewest_examples",
    "fixed_sequence",
    "hoeffding_bentkus_p_values",
    "holm",
    "paired_p_values",
    "rescaled_difference",
    "several_risks",
    "tuned_bet",
]
