"""Stages, the cascade made of them, and the meters of what they cost.

Layer: stages.
"""

from offramp.stages.batch import batch_size, concat, take_rows, to_device
from offramp.stages.cascade import Cascade, evaluating
from offramp.stages.cost import given_costs, measure_flops, measure_joules, measure_seconds
from offramp.stages.cut import cut
from offramp.stages.cut_points import CutPoint, cut_points
from offramp.stages.exits import OfFirst
from offramp.stages.preprocess import Normalize, preprocess_from_dict
from offramp.stages.stage import Stage

__all__ = [
    "Cascade",
    "CutPoint",
    "Normalize",
    "OfFirst",
    "Stage",
    "batch_size",
    "concat",
    "cut",
    "cut_points",
    "evaluating",
    "given_costs",
    "measure_flops",
    "measure_joules",
    "measure_seconds",
    "preprocess_from_dict",
    "take_rows",
    "to_device",
]
