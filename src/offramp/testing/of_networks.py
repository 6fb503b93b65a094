"""What heads, networks and backends promise.

Layer: testing.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from offramp._core.device import device_of
from offramp._core.errors import InputError
from offramp.backends import BACKENDS, Backend, with_backend
from offramp.backends.build import suffixed
from offramp.models import HEADS, MODELS, LayerShape, make_head, small_cnn
from offramp.stages import Cascade, Normalize
from offramp.testing.promise import documented, member, require, same

#: What layers give for one example, with what they tell of its axes.
SHAPES: tuple[LayerShape, ...] = (
    LayerShape((6,)),
    LayerShape((6, 9), layout="channels_first"),
    LayerShape((6, 5, 5), layout="channels_first"),
    LayerShape((6, 4, 4, 4), layout="channels_first"),
    LayerShape((5, 6), layout="channels_last", pooling="mean"),
)
_CLASSES = 4
_CLOSE = 1e-4


def check_head(
    head: Callable[..., nn.Module] | str, *, shapes: Sequence[LayerShape] = SHAPES
) -> None:
    """Raise unless a head keeps what every head promises, for each shape that it takes.

    Args:
        head: Builds a head of `shape`, `classes` and options; or its name in `HEADS`.
        shapes: What layers give for one example. The head refuses those that it does not take with
            `InputError`, and takes at least one.

    Raises:
        AssertionError: If a promise is broken; it says which.

    >>> check_head("gap_linear")
    """
    name, factory = member(HEADS, head)
    documented(factory, name)

    def made(shape: LayerShape) -> nn.Module:
        if isinstance(head, str):
            return make_head(head, shape, _CLASSES)
        return factory(shape=list(shape), classes=_CLASSES)

    taken = 0
    for shape in shapes:
        try:
            one = made(shape)
        except InputError:
            continue
        taken += 1
        _check_head(f"{name} for {tuple(shape)}", one, made(shape), shape)
    require(taken, f"it takes one of the shapes {[tuple(s) for s in shapes]}", whose=name)


def check_model(model: Callable[..., nn.Module] | str) -> None:
    """Raise unless what builds a network keeps what all of them promise; nothing is built.

    Args:
        model: Returns a network; or its name in `MODELS`.

    Raises:
        AssertionError: If a promise is broken; it says which.

    >>> check_model("small_cnn")
    """
    name, factory = member(MODELS, model)
    documented(factory, name)
    arguments = inspect.signature(factory).parameters
    wanted = {"classes", "seed"} <= set(arguments)
    require(wanted, "it can have other classes, and another seed", whose=name)
    strict = not any(p.kind is p.VAR_KEYWORD for p in arguments.values())
    require(strict, "it refuses an option that it does not have", whose=name)


def check_backend(backend: Backend | str) -> None:
    """Raise unless a backend keeps what every backend promises.

    Two networks run in it, one with an exit, with a transform: answers, names, batch sizes.

    Args:
        backend: Its name in `BACKENDS`; or the member, which is registered for the time of the
            check. It has to be able to run here.

    Raises:
        AssertionError: If a promise is broken; it says which.
        UnsupportedError: If this processor cannot run it.

    >>> check_backend("folded")
    """
    if isinstance(backend, Backend):
        with BACKENDS.lent("checked", backend):
            check_backend("checked")
        return
    name, made = member(BACKENDS, backend)
    require(isinstance(made.is_there(), bool), "it tells whether it can run here", whose=name)
    require(made.is_there(), "it can be checked only where it runs", whose=name)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (33, 1, 8, 8), generator=generator, dtype=torch.uint8)
    plain = _cascade(images)
    before = copy.deepcopy(plain.state_dict())
    fast = with_backend(plain, backend, example=images[:1], calibration=images)
    names = tuple(suffixed(each, made.suffix) for each in plain.topology.names)
    require(fast.topology.names == names, "stages have its suffix, and no other", whose=name)
    require(same(plain.state_dict(), before), "the networks stay as they were", whose=name)
    device = device_of(fast)
    for size in (33, 1, 5):
        batch = images[:size]
        want, found = plain(batch), fast(batch.to(device)).cpu()
        require(found.shape == want.shape, "a batch may have any size", whose=name)
        require(found.isfinite().all(), "its answers are finite", whose=name)
        if made.exact:
            close = torch.allclose(found, want, rtol=_CLOSE, atol=_CLOSE)
            require(close, "answers are those of PyTorch to rounding", whose=name)
    whole = fast(images.to(device))
    alone = torch.cat([fast(images[k : k + 1].to(device)) for k in range(4)])
    close = torch.allclose(whole[:4], alone, rtol=_CLOSE, atol=_CLOSE)
    require(close, "an answer does not depend on the rest of the batch", whose=name)


def _check_head(name: str, head: nn.Module, twin: nn.Module, shape: LayerShape) -> None:
    require(same(head.state_dict(), twin.state_dict()), "the same seed builds the same", whose=name)
    require(not head.training, "it comes in evaluation mode", whose=name)
    given = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = _logits(head, given)
        require(whole.shape == (5, _CLASSES), "it gives logits (m, c)", whose=name)
        require(whole.isfinite().all(), "they are finite", whose=name)
        alone = torch.cat([_logits(head, row[None]) for row in given])
    close = torch.allclose(whole, alone, rtol=_CLOSE, atol=_CLOSE)
    require(close, "an answer does not depend on the rest of the batch", whose=name)
    head.train()
    _logits(head, given).square().sum().backward()
    learned = [p for p in head.parameters() if p.requires_grad]
    touched = bool(learned) and all(p.grad is not None for p in learned)
    require(touched, "it can be trained, all of it", whose=name)


def _logits(head: nn.Module, given: Tensor) -> Any:  # noqa: ANN401  (what it gives)
    return head(given)


def _cascade(images: Tensor) -> Cascade:
    """A small network with an exit, after a transform; its batch-norms have seen something."""
    scale = Normalize(1 / 255)
    net = small_cnn(width=4, depth=3, seed=1)
    with torch.no_grad():
        net.train()(scale(images))
    return Cascade.from_network(
        net.eval(), exits=1, head="gap_linear", example=images[:1], transform=scale
    )
