"""Sizes and random orders for splitting examples.

Layer: _core.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int64

from offramp._core.checks import check_seed, check_split
from offramp._core.errors import InputError
from offramp._core.types import Split


def counts_of(shares: Mapping[Split, float | int], n: int) -> dict[Split, int]:
    """Number of examples of each split.

    Args:
        shares: Fractions in (0, 1], all floats, with a sum of at most 1; or numbers of examples,
            all integers, with a sum of at most `n`.
        n: Dataset there are.

    Returns:
        Counts, each at least 1; fractions are rounded so that a sum of 1 uses every example.

    Raises:
        InputError: If the shares are empty, mixed, too large or leave a split empty.

    >>> counts_of({"fit": 0.5, "test": 0.5}, 5)
    {'fit': 2, 'test': 3}
    """
    for name in shares:
        check_split("shares", name)
    whole = [isinstance(size, int) for size in shares.values()]
    if not shares or any(whole) != all(whole):
        raise InputError(
            f"shares must be all fractions or all numbers of examples, got {dict(shares)}."
        )
    if all(whole):
        counts = [int(size) for size in shares.values()]
    else:
        sums = np.cumsum(list(shares.values()))
        if not sums[-1] <= 1.0 + 1e-9:  # also False for NaN
            raise InputError(f"Fractions must sum to at most 1, got {dict(shares)}.")
        stops = np.rint(np.minimum(sums, 1.0) * n).astype(np.int64)
        counts = np.diff(stops, prepend=0).tolist()
    if min(counts) < 1 or sum(counts) > n:
        raise InputError(
            f"shares {dict(shares)} make {counts} of {n} examples; every split needs at least "
            "one, and together they must not need more than there are."
        )
    return dict(zip(shares, counts, strict=True))


def random_order(n: int, *, seed: int) -> Int64[np.ndarray, " n"]:
    """The positions 0..n-1 in random order."""
    return np.random.default_rng(check_seed(seed)).permutation(n)


def stratified_order(labels: Int64[np.ndarray, " n"], *, seed: int) -> Int64[np.ndarray, " n"]:
    """The positions 0..n-1 in an order whose every stretch has each class in proportion.

    The j-th of the `m` examples of a class, in random order, goes to (j + 1/2)/m of the way; so
    the first k of all n examples hold k * m / n of it, to within (1 + number of classes) / 2.

    >>> order = stratified_order(np.array([0, 0, 0, 0, 1, 1]), seed=0)
    >>> sorted(np.array([0, 0, 0, 0, 1, 1])[order[:3]].tolist())
    [0, 0, 1]
    """
    rng = np.random.default_rng(check_seed(seed))
    place = np.empty(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((rng.random(len(labels)), place))
