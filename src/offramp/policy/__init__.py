"""Policies: what decides after each stage, fitted on traces alone.

Layer: policy.  Reads traces; never a network, never data.
"""

from offramp.policy.evidence import View
from offramp.policy.features import Feature
from offramp.policy.policy import Node, Policy
from offramp.policy.rules import Agreement, ClassThreshold, Constant, Linear, Random, Rule
from offramp.policy.setting import Setting
from offramp.policy.stopping import Stopping

__all__ = [
    "Agreement",
    "ClassThreshold",
    "Constant",
    "Feature",
    "Linear",
    "Node",
    "Policy",
    "Random",
    "Rule",
    "Setting",
    "Stopping",
    "View",
]
