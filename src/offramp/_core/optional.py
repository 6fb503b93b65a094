"""Importing optional packages so that they do not call home.

ONNX Runtime keeps an id of the device and queues events under the home folder as soon as it is
imported; OpenVINO and NNCF ask the package openvino_telemetry to send events, which looks up a host
and keeps a client id. Who runs a classifier has not asked for that, so both are switched off before
the first import. A process that imported one of them itself before is left as it is.

Layer: _core.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from offramp._core.errors import MissingExtraError

_ONNXRUNTIME_OFF = "ORT_DISABLE_TELEMETRY"
_SENDER = "openvino_telemetry"


def imported(package: str, extra: str) -> Any:  # noqa: ANN401  (an optional package)
    """Import a package of a backend, without its telemetry.

    Args:
        package: Such as "onnxruntime".
        extra: That brings it.

    Raises:
        MissingExtraError: If it is not installed.

    >>> imported("json", "none").loads("1")
    1
    """
    if sys.modules.get(package) is not None:
        return import_module(package)
    os.environ.setdefault(_ONNXRUNTIME_OFF, "1")
    try:
        with _without(_SENDER):
            return import_module(package)
    except ImportError as error:
        raise MissingExtraError(package, extra) from error


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Within, a package counts as not installed; those that only send with it do without."""
    before = {package: sys.modules[package]} if package in sys.modules else {}
    sys.modules[package] = None  # type: ignore[assignment]  # so Python refuses its import
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules.update(before)
