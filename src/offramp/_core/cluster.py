"""Ray, as far as drivers of it share it, and what every machine of a cluster must have.

Layer: _core.
"""

import os
from pathlib import Path
from typing import Any

from offramp._core.errors import InputError
from offramp._core.optional import imported


def ray_module(name: str) -> Any:  # noqa: ANN401  (Ray is optional)
    """A module of Ray, which tells its makers nothing unless somebody wants that.

    Raises:
        MissingExtraError: If it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return imported(name, "ray")


def check_is_there(bundle: Path, found: bool) -> None:
    """Raise `InputError` where a machine of the cluster has not found a bundle."""
    if not found:
        raise InputError(
            f"bundle must be a folder that every machine of the cluster can read; {bundle} is not "
            "there on one of them. Put it on a disk that all share, or copy it to the same path "
            "everywhere."
        )
