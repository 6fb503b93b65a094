"""A network whose process stops, whole, while it is built: where a file says so."""

import os
import signal
from pathlib import Path

from torch import nn


def build(folder):
    """Stops the first who builds it where there is a file `once`, and everybody where `always`."""
    stops = (Path(folder) / "always").exists()
    try:
        (Path(folder) / "once").unlink()  # by one of several processes
        stops = True
    except FileNotFoundError:
        pass
    if stops:
        os.kill(os.getpid(), signal.SIGSTOP)
    return nn.Linear(4, 3).eval()
