"""What the package has to say, on the standard error stream.

Everything it decides silently goes to the logger `offramp`, which by itself writes nowhere.

Layer: _core.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logging_to_stderr(
    who: str = "", *, on: bool = True, level: int = logging.INFO
) -> Iterator[None]:
    """Within, what this package has to say is written to the standard error stream, once.

    Args:
        who: Which of several processes this is, in front of each line.
        on: Whether it is.
        level: The least that is written.
    """
    logger, handler = logging.getLogger("offramp"), _ToStderr()
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {who}%(message)s"))
    before = logger.level
    added = on and not any(isinstance(other, _ToStderr) for other in logger.handlers)
    if added:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        if added:
            logger.removeHandler(handler)
            logger.setLevel(before)


class _ToStderr(logging.StreamHandler):  # type: ignore[type-arg]  # a type only for checkers
    """Known apart from the handlers of others."""
