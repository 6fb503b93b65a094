"""Counting floating-point operations, those inside of control flow of torch included.

Layer: stages.  Source: methods.md, introduction (a multiply-add counts as 2 FLOPs).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

from offramp._core.errors import UnsupportedError

_higher = torch.ops.higher_order
#: Operators that call functions a number of times; they are run, and what they call is counted.
_LOOPS = ("while_loop", "scan", "map_impl", "associative_scan")


@final
class Operations:
    """Counts the floating-point operations that run in its context; a multiply-add is 2.

    Counted are matrix products, convolutions and attention, as `torch.utils.flop_counter` does. Of
    the branches of `torch.cond` the more expensive one counts, whichever is taken; loops count as
    often as they run.

    Raises:
        UnsupportedError: Where an operator of torch is met into which nobody can look; it is named.

    >>> with Operations() as operations:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> operations.total
    48
    """

    def __init__(self) -> None:
        self._counter = FlopCounterMode(display=False)
        self._control = _ControlFlow(self)
        self._stack = ExitStack()
        self._passed_over = 0

    @property
    def total(self) -> int:
        """Operations so far."""
        return int(self._counter.get_total_flops()) - self._passed_over

    def __enter__(self) -> "Operations":
        self._stack.enter_context(self._counter)
        self._stack.enter_context(self._control)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stack.close()
        unseen = re.search(r"no rule registered for HOP (\w+)", str(error))
        if isinstance(error, NotImplementedError) and unseen is not None:  # torch 2.8
            raise _uncountable(unseen[1]) from error

    def most_expensive(self, branches: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run all branches, but count only the most expensive."""
        results, spent = [], []
        for branch in branches:
            before = self.total
            results.append(branch())
            spent.append(self.total - before)
        self._passed_over += sum(spent) - max(spent)
        return results

    def again(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as it is counted where all counting was turned off."""
        body = getattr(function, "forward", function)  # no hooks: torch's counter trips over them

        def counted(*args: object) -> Any:  # noqa: ANN401  (what the function gives)
            with self._counter.mode, self._control:  # type: ignore[union-attr]
                return body(*args)

        return counted


class _ControlFlow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees to operators that call functions, which torch's counter does not count rightly."""

    supports_higher_order_operators = True

    def __init__(self, operations: Operations) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operations = operations

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  (an operator)
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  (what the operator gives)
        if not isinstance(func, torch._ops.HigherOrderOperator):
            return func(*args, **(kwargs or {}))
        name = str(func)
        if func is not _higher.cond and name not in _LOOPS:
            raise _uncountable(name)
        again = self._operations.again
        with _disable_current_modes():
            if func is _higher.cond:
                condition, *branches, operands = args
                runs = [partial(again(branch), *operands) for branch in branches]
                taken, other = self._operations.most_expensive(runs)
                return taken if condition else other
            counted = [again(arg) if callable(arg) else arg for arg in args]
            return func(*counted, **(kwargs or {}))


def _uncountable(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"The operations inside of {name!r} cannot be counted. Measure seconds, or give the costs; "
        "points of a network that has it cannot be listed. A later torch may see into it."
    )


@contextmanager
def plain_attention() -> Iterator[None]:
    """Turn off fused transformer layers and fused attention, which the counter does not see."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
