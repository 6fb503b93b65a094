"""Data sets by name, as configuration files and the command line ask for them.

Layer: data.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offramp._core.checks import check_choice
from offramp._core.errors import InputError
from offramp._core.registry import Registry
from offramp.data.arrays import npz
from offramp.data.cifar import cifar10, cifar100
from offramp.data.dataset import Dataset
from offramp.data.digits import digits
from offramp.data.folder import image_folder
from offramp.data.imagenet32 import imagenet32
from offramp.data.table import table
from offramp.data.texts import texts

#: Data sets by name. What stands on a disk takes its path first; what comes with the package has
#: keyword arguments only, or none.
SOURCES: Registry[Callable[..., Dataset]] = Registry(
    "data set",
    {
        "digits": digits,
        "cifar10": cifar10,
        "cifar100": cifar100,
        "imagenet32": imagenet32,
        "folder": image_folder,
        "npz": npz,
        "texts": texts,
        "table": table,
    },
)


def load_dataset(kind: str, path: Path | str | None = None, **options: Any) -> Dataset:  # noqa: ANN401
    """Load a data set by name.

    Args:
        kind: "digits", "cifar10", "cifar100", "imagenet32", "folder", "npz", "texts" or "table",
            or one of yours.
        path: File or folder; "digits" needs none.
        **options: Those of the function of this data set, such as `size` of `image_folder`.

    Raises:
        UnknownNameError: If there is no data set of this name; the nearest is suggested.
        InputError: If the path is missing or not wanted, or an option is not known.

    >>> len(load_dataset("digits"))
    1797
    """
    source = SOURCES[kind]
    parameters = inspect.signature(source).parameters
    known = list(parameters)
    first = next(iter(parameters.values()), None)
    given = first is not None and first.kind is not first.KEYWORD_ONLY
    if given:
        known.pop(0)  # the path has another name here and there
    for name in options:
        check_choice(f"option of {kind!r}", name, known)
    if not given and path is not None:
        raise InputError(f"{kind!r} comes with a package and takes no path, got {path}.")
    if given and path is None:
        raise InputError(f"{kind!r} needs a path, got None. Say where the data lie.")
    return source(*([] if path is None else [Path(path)]), **options)
