"""What every member of a registry has to keep, for members of yours as well as for ours.

Each function takes a name that is registered, or the member itself, and raises `AssertionError`
with the promise that is broken. Put one line into the tests of your package:

    def test_my_head_keeps_what_heads_promise():
        offramp.testing.check_head(my_head)

Layer: testing.  Our own tests sweep the registries with it (tests/contract).
"""

from offramp.testing.made import random_policy, random_topology
from offramp.testing.of_data import check_source, check_unit
from offramp.testing.of_networks import check_backend, check_head, check_model
from offramp.testing.of_policies import check_feature, check_policy, check_rule
from offramp.testing.of_transforms import check_transform

__all__ = [
    "check_backend",
    "check_feature",
    "check_head",
    "check_model",
    "check_policy",
    "check_rule",
    "check_source",
    "check_transform",
    "check_unit",
    "random_policy",
    "random_topology",
]
