"""How many threads arithmetic takes.

Layer: _core.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_before: list[int] = []  # for each thread in a block, what there was before the first of them
_here = threading.local()
_WORTH = 2**20  # numbers that are worth dividing even beside other processes


@contextmanager
def one_thread(numbers: int = 0) -> Iterator[None]:
    """PyTorch takes one thread in the block: for loops over arrays too small to be divided.

    More would gain nothing, and while another process has the other cores they are waited for at
    every step. Blocks may nest, and several threads may have one at a time.

    Args:
        numbers: In the largest of the arrays; from a million on nothing is limited.

    >>> before = torch.get_num_threads()
    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    >>> torch.get_num_threads() == before
    True
    """
    if numbers >= _WORTH or getattr(_here, "limited", False):
        yield
        return
    with _lock:
        before = _before[0] if _before else torch.get_num_threads()
        _before.append(before)
        torch.set_num_threads(1)
        _here.limited = True
    try:
        yield
    finally:
        with _lock:
            _here.limited = False
            _before.pop()
            torch.set_num_threads(before)
