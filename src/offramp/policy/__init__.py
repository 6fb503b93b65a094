"""Policies: what decides after each stage, fitted on traces alone.

Layer: policy.  Reads traces; never a network, never data.
"""

from offramp.policy.features import Feature
from offramp.policy.policy import Node, Policy
from offramp.policy.rules import Agreement, Constant, Linear, Random, Rule
from offramp.policy.setting import Setting
from offramp.policy.view import View

__all__ = [
    "Agreement",
    "Constant",
    "Feature",
    "Linear",
    "Node",
    "Policy",
    "Random",
    "Rule",
    "Setting",
    "View",
]
