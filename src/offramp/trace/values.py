"""Checks of what a trace holds for each example and stage.

Layer: trace.
"""

import torch
from torch import Tensor

from offramp._core.checks import check_shape
from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Topology


def check_prices(prices: Tensor, n: int, topology: Topology, costs: Costs) -> Tensor | None:
    """The prices, `(n, s)`, or None where they are those of `costs` for all examples.

    Raises:
        InputError: If one is not finite, or negative.
    """
    check_shape("prices", prices.shape, (n, len(topology)))
    prices = prices.double()
    wrong = ~(torch.isfinite(prices) & (prices >= 0))
    if bool(wrong.any()):
        row, stage = (int(v) for v in wrong.nonzero()[0])
        raise InputError(
            f"prices must be finite and at least 0, got {float(prices[row, stage])!r} for "
            f"example {row}, stage {topology.names[stage]!r}."
        )
    same = prices == torch.tensor(costs.segment, dtype=torch.float64)
    return None if bool(same.all()) else prices


def check_losses(losses: Tensor, n: int, topology: Topology) -> None:
    """Check losses, `(n, s)`, and where stages stand that have none.

    Raises:
        InputError: If one lies outside [0, 1], some of a stage are unknown, or a stage that answers
            nothing may be the last.
    """
    check_shape("losses", losses.shape, (n, len(topology)))
    silent = []
    for k, column in enumerate(losses.T):
        name, missing = topology.names[k], unknown(column)
        outside = ~missing & ~((column >= 0) & (column <= 1))
        if bool(outside.any()):
            raise InputError(
                f"losses must be in [0, 1], got {float(column[outside][0])!r} for example "
                f"{int(outside.nonzero()[0])}, stage {name!r}. Divide by the largest possible loss."
            )
        if bool(missing.all()):
            silent.append(k)
        elif bool(missing.any()):
            raise InputError(
                f"losses must be known for all examples of a stage or for none, got none for "
                f"{int(missing.sum())} of {len(column)}, stage {name!r}."
            )
    if len(silent) == len(topology):
        raise InputError("losses must be known for at least one stage, got none.")
    for k in silent:
        if not topology.children(k):
            raise InputError(
                f"A stage that answers nothing cannot be the last one visited, got "
                f"{topology.names[k]!r} without a stage after it."
            )


def unknown(losses: Tensor) -> Tensor:
    """True where a stage has no loss, for it answers nothing."""
    return losses == -1 if losses.dtype == torch.int8 else torch.isnan(losses)


def counts_of_features(
    given: tuple[int | None, ...], features: Tensor | None, s: int
) -> tuple[int | None, ...]:
    """How many features each of `s` stages gives: what is said, else all that there are.

    Raises:
        InputError: If there is not one number for each stage, or one is more than there are.
    """
    stages, most = (0, 0) if features is None else (s, features.shape[2])
    found = tuple(given) or (most,) * stages
    fits = (c is None or (type(c) is int and 0 <= c <= most) for c in found)
    if len(found) != stages or not all(fits):
        raise InputError(
            f"feature_counts must hold a number from 0 to {most} for each of the {stages} stages "
            f"that have features, got {given}."
        )
    for k, count in enumerate(found):
        if features is not None and count is not None and bool(features[:, k, count:].any()):
            raise InputError(
                f"feature_counts must count all features, got {count} of stage {k}, which gives "
                f"numbers beyond them. Hand over feature_counts=() for {most} of each stage."
            )
    return found
