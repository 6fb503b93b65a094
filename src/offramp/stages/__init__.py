"""Stages, the cascade made of them, and the meters of what they cost.

Layer: stages.
"""

from offramp._core.batch import batch_size, concat, take_rows, to_device
from offramp.stages.cascade import Cascade, evaluating
from offramp.stages.classes import tell_classes
from offramp.stages.company import check_company
from offramp.stages.cost import (
    METERS,
    given_costs,
    measure_costs,
    measure_flops,
    measure_joules,
    measure_seconds,
)
from offramp.stages.cutting.choose import choose_points, measure_points
from offramp.stages.cutting.cut import cut
from offramp.stages.cutting.points import CutPoint, cut_points
from offramp.stages.cutting.spec import CutSpec, SegmentSpec, synthetic_example
from offramp.stages.exits import OfFirst, attached, own_head
from offramp.stages.fusing.fuse import fuse
from offramp.stages.held import HeldStages
from offramp.stages.own_names import names_in, own_names, weights_digest
from offramp.stages.reading import copied
from offramp.stages.stage import Stage, read_by, shared_transforms, take_in
from offramp.stages.timing import time_side_by_side
from offramp.stages.transforms import (
    TRANSFORMS,
    Chain,
    Columns,
    Decode,
    Normalize,
    Pad,
    Resize,
    Transform,
    Transforms,
    chained,
)

__all__ = [
    "METERS",
    "TRANSFORMS",
    "Cascade",
    "Chain",
    "Columns",
    "CutPoint",
    "CutSpec",
    "Decode",
    "HeldStages",
    "Normalize",
    "OfFirst",
    "Pad",
    "Resize",
    "SegmentSpec",
    "Stage",
    "Transform",
    "Transforms",
    "attached",
    "batch_size",
    "chained",
    "check_company",
    "choose_points",
    "concat",
    "copied",
    "cut",
    "cut_points",
    "evaluating",
    "fuse",
    "given_costs",
    "measure_costs",
    "measure_flops",
    "measure_joules",
    "measure_points",
    "measure_seconds",
    "names_in",
    "own_head",
    "own_names",
    "read_by",
    "shared_transforms",
    "synthetic_example",
    "take_in",
    "take_rows",
    "tell_classes",
    "time_side_by_side",
    "to_device",
    "weights_digest",
]
