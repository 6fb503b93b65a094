"""Giving back what torch keeps of every graph that it followed.

torch.fx keeps the source text of each module that it made, and torch.export the shapes of each
operation that it saw, both for as long as the process lives: half a MiB for each network that is
cut. Not all of it can be given back: torch.export itself may hold shape environments for longer.

Layer: _core.
"""

import linecache
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv


@contextmanager
def released() -> Iterator[None]:
    """Afterwards torch has forgotten what it kept of the graphs that were made within.

    The modules run as before; only the source lines in their tracebacks are gone.

    >>> from torch import fx, nn
    >>> before = len(graph_module._loader.eval_cache)
    >>> with released():
    ...     made = fx.symbolic_trace(nn.ReLU())
    >>> len(graph_module._loader.eval_cache) == before
    True
    """
    kept: dict[str, str] = graph_module._loader.eval_cache
    before = set(kept)
    try:
        yield
    finally:
        for name in set(kept) - before:
            kept.pop(name, None)
            linecache.cache.pop(name, None)
        FakeTensorMode.cache_clear()
        for method in vars(ShapeEnv).values():  # some are cached, and so keep their object
            if hasattr(method, "cache_clear"):
                method.cache_clear()


def forget_operations(followed: Tensor) -> None:
    """Empty the cache of operations of the shape environment that a network was followed in.

    torch keeps the environment itself, by references that no garbage collector sees.

    Args:
        followed: A tensor of that network without values, with an unknown size.
    """
    for size in followed.shape:
        if isinstance(size, torch.SymInt):
            cache: dict[object, object] = getattr(size.node.shape_env, "fake_tensor_cache", {})
            cache.clear()
