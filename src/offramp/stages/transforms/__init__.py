"""Transforms: what turns raw rows into what a stage reads, as modules that a bundle can store.

A transform is an `nn.Module` of one argument, a batch, marked with `stored("its kind")` and added
to `TRANSFORMS`; its arguments are its fields in a file. With `reads_rows = True` it takes rows of
any type (`offramp._core.batch.as_rows`), else tensors. It works on each example alone: stages with
equal transforms share one result, and survivors are taken out of it. Several make a chain, a list
in Python and in files.

Layer: stages.
"""

from offramp.stages.transforms.columns import Columns
from offramp.stages.transforms.decode import Decode
from offramp.stages.transforms.domain import Domain, Look, domain_of
from offramp.stages.transforms.normalize import Normalize
from offramp.stages.transforms.pad import Pad
from offramp.stages.transforms.registry import (
    TRANSFORMS,
    Chain,
    Transform,
    Transforms,
    chained,
    key_of,
)
from offramp.stages.transforms.resize import Resize
from offramp.stages.transforms.tokenize import Tokenize

__all__ = [
    "TRANSFORMS",
    "Chain",
    "Columns",
    "Decode",
    "Domain",
    "Look",
    "Normalize",
    "Pad",
    "Resize",
    "Tokenize",
    "Transform",
    "Transforms",
    "chained",
    "domain_of",
    "key_of",
]
