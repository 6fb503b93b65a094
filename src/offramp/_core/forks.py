"""What a forked process can still do.

A fork copies the memory of a process but only one of its threads. A pool of threads that worked
before the fork is then waited for in the child for ever: those of torch as soon as an operation is
large enough to be divided, those of OpenVINO when a model is compiled.

Layer: _core.
"""

import functools
import os

import torch


@functools.cache
def prepare_for_forks() -> None:
    """From now on children of this process run torch with one thread, which needs no pool."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_alone)


def _alone() -> None:
    torch.set_num_threads(1)
