"""A network whose process stops, whole, while it is built: as often as a file says."""

import os
import signal
from pathlib import Path

from torch import nn


def build(folder):
    times = Path(folder) / "times"
    left = int(times.read_text()) if times.exists() else 0
    if left:
        times.write_text(str(left - 1))
        os.kill(os.getpid(), signal.SIGSTOP)
    return nn.Linear(4, 3).eval()
