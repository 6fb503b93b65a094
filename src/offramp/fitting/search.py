"""Which part of a cascade's topology a policy uses: candidates to fit one by one.

Layer: fitting.  Source: methods.md 1 (topologies compared: every sub-chain and the full DAG).
"""

from collections.abc import Iterator
from itertools import combinations, pairwise

from offramp._core.checks import check_positive_int
from offramp._core.errors import InputError
from offramp._core.topology import Topology

_MOST = 2048


def sub_chains(topology: Topology, *, longest: int | None = None) -> list[Topology]:
    """Every chain through two or more of the stages, short ones first.

    A chain takes at most one stage of a group, and only steps that the topology allows: an edge,
    or several edges with the stages between left out.

    Args:
        topology: All stages and edges.
        longest: Most stages on a chain; default all.

    Raises:
        InputError: If there are more than 2048; `longest` makes them fewer.

    >>> [t.describe() for t in sub_chains(Topology.of(["a", "b", "c"]))]
    ['a -> b', 'a -> c', 'b -> c', 'a -> b -> c']
    """
    most = len(topology) if longest is None else check_positive_int("longest", longest)
    follows = successors(topology)
    found: list[Topology] = []
    for stages in _candidates(topology, most):
        if all(b in follows[a] for a, b in pairwise(stages)):
            found.append(topology.chain(stages))
            if len(found) > _MOST:
                raise InputError(
                    f"There are more than {_MOST} sub-chains of {len(topology)} stages; "
                    f"set longest below {most}."
                )
    return found


def sub_topologies(topology: Topology, *, longest: int | None = None) -> list[Topology]:
    """Every sub-chain, and the whole topology where it is not a chain itself."""
    chains = sub_chains(topology, longest=longest)
    branching = any(len(topology.children(k)) > 1 for k in topology.active)
    return [*chains, topology] if branching else chains


def without(topology: Topology, stage: int) -> Topology:
    """The topology with one stage bypassed: who led to it leads to what followed it.

    >>> without(Topology.of(["a", "b", "c"], edges="chain"), 1).describe()
    'a -> c'
    """
    after = topology.children(stage)
    edges = {(j, k) for j, k in topology.edges if stage not in (j, k)}
    edges |= {(j, c) for j, k in topology.edges if k == stage for c in after}
    if stage != topology.root:
        return topology.part(edges)
    return topology.part(edges, root=after[0])


def _candidates(topology: Topology, most: int) -> Iterator[tuple[int, ...]]:
    for length in range(2, most + 1):
        for stages in combinations(range(len(topology)), length):
            groups = [topology.groups[k] for k in stages]
            if len(set(groups)) == length:
                yield stages


def successors(topology: Topology) -> dict[int, set[int]]:
    """For each stage all stages of other groups that some path visits after it.

    >>> successors(Topology.of(["a", "b", "c"], edges="chain"))
    {0: {1, 2}, 1: {2}, 2: set()}
    """
    after: dict[int, set[int]] = {k: set() for k in range(len(topology))}
    for j, k in reversed(topology.edges):  # sorted, so later stages are complete first
        after[j] |= {k} | after[k]
    return {
        j: {k for k in found if topology.groups[k] != topology.groups[j]}
        for j, found in after.items()
    }


def count_chains(topology: Topology) -> int:
    """Number of chains of two or more stages: how many `sub_chains` would give.

    >>> count_chains(Topology.of(["a", "b", "c"]))
    4
    """
    follows = successors(topology)
    starting = [1] * len(topology)  # chains that start at a stage, the stage alone among them
    for k in reversed(range(len(topology))):
        starting[k] += sum(starting[j] for j in follows[k])
    return sum(starting) - len(topology)
