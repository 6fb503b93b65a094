"""Labelled examples from many sources, and their four disjoint splits.

Layer: data.  Imports _core only.
"""

from offramp.data.arrays import arrays, npz, rows
from offramp.data.augment import CropAndFlip, jpeg_compressed
from offramp.data.cifar import cifar10, cifar100
from offramp.data.dataset import Dataset, LabelledBatch, LazyInputs
from offramp.data.digits import digits
from offramp.data.download import Archive, fetch
from offramp.data.folder import ImageFiles, image_folder
from offramp.data.imagenet32 import imagenet32
from offramp.data.picture import read_image
from offramp.data.sources import SOURCES, load_dataset
from offramp.data.table import table
from offramp.data.texts import texts

__all__ = [
    "SOURCES",
    "Archive",
    "CropAndFlip",
    "Dataset",
    "ImageFiles",
    "LabelledBatch",
    "LazyInputs",
    "arrays",
    "cifar10",
    "cifar100",
    "digits",
    "fetch",
    "image_folder",
    "imagenet32",
    "jpeg_compressed",
    "load_dataset",
    "npz",
    "read_image",
    "rows",
    "table",
    "texts",
]
