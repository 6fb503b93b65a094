"""Stages, the cascade made of them, and the meters of what they cost.

Layer: stages.
"""

from typing import TYPE_CHECKING

from offramp._core.lazy import lazy

if TYPE_CHECKING:
    from offramp._core.batch import batch_size as batch_size
    from offramp._core.batch import concat as concat
    from offramp._core.batch import take_rows as take_rows
    from offramp._core.batch import to_device as to_device
    from offramp.stages.cascade import Cascade as Cascade
    from offramp.stages.cascade import evaluating as evaluating
    from offramp.stages.classes import tell_classes as tell_classes
    from offramp.stages.company import check_company as check_company
    from offramp.stages.cost import METERS as METERS
    from offramp.stages.cost import given_costs as given_costs
    from offramp.stages.cost import measure_costs as measure_costs
    from offramp.stages.cost import measure_flops as measure_flops
    from offramp.stages.cost import measure_joules as measure_joules
    from offramp.stages.cost import measure_seconds as measure_seconds
    from offramp.stages.cutting.choose import choose_points as choose_points
    from offramp.stages.cutting.choose import measure_points as measure_points
    from offramp.stages.cutting.cut import cut as cut
    from offramp.stages.cutting.points import CutPoint as CutPoint
    from offramp.stages.cutting.points import cut_points as cut_points
    from offramp.stages.cutting.spec import CutSpec as CutSpec
    from offramp.stages.cutting.spec import SegmentSpec as SegmentSpec
    from offramp.stages.cutting.spec import synthetic_example as synthetic_example
    from offramp.stages.fusing.fuse import fuse as fuse
    from offramp.stages.heads import OfFirst as OfFirst
    from offramp.stages.heads import attached as attached
    from offramp.stages.heads import own_head as own_head
    from offramp.stages.held import HeldStages as HeldStages
    from offramp.stages.reading import copied as copied
    from offramp.stages.stage import Stage as Stage
    from offramp.stages.stage import read_by as read_by
    from offramp.stages.stage import shared_transforms as shared_transforms
    from offramp.stages.stage import take_in as take_in
    from offramp.stages.timing import time_side_by_side as time_side_by_side
    from offramp.stages.transforms import TRANSFORMS as TRANSFORMS
    from offramp.stages.transforms import Chain as Chain
    from offramp.stages.transforms import Columns as Columns
    from offramp.stages.transforms import Decode as Decode
    from offramp.stages.transforms import Normalize as Normalize
    from offramp.stages.transforms import Pad as Pad
    from offramp.stages.transforms import Resize as Resize
    from offramp.stages.transforms import Tokenize as Tokenize
    from offramp.stages.transforms import Transform as Transform
    from offramp.stages.transforms import Transforms as Transforms
    from offramp.stages.transforms import chained as chained
    from offramp.stages.weight_names import names_in as names_in
    from offramp.stages.weight_names import own_names as own_names
    from offramp.stages.weight_names import weights_digest as weights_digest

_HOME = {
    "Cascade": "offramp.stages.cascade",
    "Chain": "offramp.stages.transforms",
    "Columns": "offramp.stages.transforms",
    "CutPoint": "offramp.stages.cutting.points",
    "CutSpec": "offramp.stages.cutting.spec",
    "Decode": "offramp.stages.transforms",
    "HeldStages": "offramp.stages.held",
    "METERS": "offramp.stages.cost",
    "Normalize": "offramp.stages.transforms",
    "OfFirst": "offramp.stages.heads",
    "Pad": "offramp.stages.transforms",
    "Resize": "offramp.stages.transforms",
    "SegmentSpec": "offramp.stages.cutting.spec",
    "Stage": "offramp.stages.stage",
    "TRANSFORMS": "offramp.stages.transforms",
    "Tokenize": "offramp.stages.transforms",
    "Transform": "offramp.stages.transforms",
    "Transforms": "offramp.stages.transforms",
    "attached": "offramp.stages.heads",
    "batch_size": "offramp._core.batch",
    "chained": "offramp.stages.transforms",
    "check_company": "offramp.stages.company",
    "choose_points": "offramp.stages.cutting.choose",
    "concat": "offramp._core.batch",
    "copied": "offramp.stages.reading",
    "cut": "offramp.stages.cutting.cut",
    "cut_points": "offramp.stages.cutting.points",
    "evaluating": "offramp.stages.cascade",
    "fuse": "offramp.stages.fusing.fuse",
    "given_costs": "offramp.stages.cost",
    "measure_costs": "offramp.stages.cost",
    "measure_flops": "offramp.stages.cost",
    "measure_joules": "offramp.stages.cost",
    "measure_points": "offramp.stages.cutting.choose",
    "measure_seconds": "offramp.stages.cost",
    "names_in": "offramp.stages.weight_names",
    "own_head": "offramp.stages.heads",
    "own_names": "offramp.stages.weight_names",
    "read_by": "offramp.stages.stage",
    "shared_transforms": "offramp.stages.stage",
    "synthetic_example": "offramp.stages.cutting.spec",
    "take_in": "offramp.stages.stage",
    "take_rows": "offramp._core.batch",
    "tell_classes": "offramp.stages.classes",
    "time_side_by_side": "offramp.stages.timing",
    "to_device": "offramp._core.batch",
    "weights_digest": "offramp.stages.weight_names",
}

__all__ = sorted(_HOME)

__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return list(__all__)
