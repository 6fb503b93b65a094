"""The class-specific design: branches, their training, and the cascade made of those chosen.

Layer: train.  Source: Bonato and Bouganis, class-specific early exit; methods.md 2.
"""

from offramp.stages.tapped import LargestOfGroup, Tap, TappedNet, branch_pool, tapped, tapped_spec
from offramp.train.class_exits.cascade import DenseExit, HeadExit, class_cascade
from offramp.train.class_exits.choose import choose_class_exits, choose_class_exits_together
from offramp.train.class_exits.evidence import class_data_of, predictions
from offramp.train.class_exits.features import BranchFeatures, branch_features
from offramp.train.class_exits.heads import HeadColumns, SharedHead, head_columns
from offramp.train.class_exits.layout import BranchSpec, every_branch
from offramp.train.class_exits.points import attachment_points
from offramp.train.class_exits.pruning import importance, with_pruned
from offramp.train.class_exits.results import ExitRow, exit_row
from offramp.train.class_exits.run import sweep_branches
from offramp.train.class_exits.sweep import Attachment, Sweep
from offramp.train.class_exits.tables import paper_tables
from offramp.train.class_exits.timing import UNITS, Clock, branch_times, depths, head_times
from offramp.train.class_exits.training import Recipe, TrainedBranches, train_branches

__all__ = [
    "UNITS",
    "Attachment",
    "BranchFeatures",
    "BranchSpec",
    "Clock",
    "DenseExit",
    "ExitRow",
    "HeadColumns",
    "HeadExit",
    "LargestOfGroup",
    "Recipe",
    "SharedHead",
    "Sweep",
    "Tap",
    "TappedNet",
    "TrainedBranches",
    "attachment_points",
    "branch_features",
    "branch_pool",
    "branch_times",
    "choose_class_exits",
    "choose_class_exits_together",
    "class_cascade",
    "class_data_of",
    "depths",
    "every_branch",
    "exit_row",
    "head_columns",
    "head_times",
    "importance",
    "paper_tables",
    "predictions",
    "sweep_branches",
    "tapped",
    "tapped_spec",
    "train_branches",
    "with_pruned",
]
