"""Memory of the process: what is freed may be kept for the next that asks.

Layer: _core.
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them
_LARGEST_MMAP = 2**25  # bytes, the largest that glibc takes


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, instead of asking the system for new pages each time.

    Networks take and free the same arrays over and over. Outside of the main thread glibc gives
    each back, and the system clears the pages anew: a fifth of what a batch takes. Of the whole
    process, so it is for those who own it: servers, and programs that train.

    Returns:
        False where there is no glibc.

    >>> keep_freed_memory() in (True, False)
    True
    """
    try:
        change = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    return bool(change(_TRIM_THRESHOLD, 2**31 - 1) and change(_MMAP_THRESHOLD, _LARGEST_MMAP))
