"""Policies: what decides after each stage, fitted on traces alone.

Layer: policy.  Reads traces; never a network, never data.
"""

from offramp.policy.candidate import Candidate
from offramp.policy.features import Feature
from offramp.policy.policy import Evidence, Node, Policy
from offramp.policy.rules import Agreement, ClassThreshold, Constant, Linear, Random, Rule
from offramp.policy.stopping import Stopping

__all__ = [
    "Agreement",
    "Candidate",
    "ClassThreshold",
    "Constant",
    "Evidence",
    "Feature",
    "Linear",
    "Node",
    "Policy",
    "Random",
    "Rule",
    "Stopping",
]
