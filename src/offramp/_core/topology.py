"""The topology of a cascade: which stage may follow which, and what each one needs.

A *stage* is a segment of computation with a head that gives class scores. In network selection
each stage is a whole network and reads the raw input (source -1). In early exit stage k continues
the computation of an earlier stage, its *source*. Alternative heads at one cut form a *group*:
they share one segment, which is run and charged once.

A *path* is the tuple of stages that an example has visited, the root first. Whoever goes from a
path to stage k runs every segment that k builds upon and that has not run yet, then k's head:
so an exit that a policy does not use costs its segment (later stages need it) but not its head.

Layer: _core.  Source: methods.md 1 (Bolukbasi et al., ICML 2017, network selection on a DAG).
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

from offramp._core.checks import check_known
from offramp._core.errors import InputError, TopologyError
from offramp._core.schema import stored

RAW_INPUT = -1
EXIT = -1  # the action of leaving; any other action is the stage to visit next
_MAX_PATHS = 4096

Path = tuple[int, ...]


@final
@stored(whole=True)
@dataclass(frozen=True, kw_only=True)
class Topology:
    """Stages in topological order and the decision edges between them.

    Args:
        names: Name of each stage, `(s,)`, unique; an edge always leads to a later stage.
        sources: For each stage the earlier stage whose carry it reads, or -1 for the raw input.
        groups: For each stage the name of its group; by default its own name.
        edges: Pairs (from, to): after `from` a policy may go on to `to`.
        root: The stage that every example visits first.

    Raises:
        TopologyError: If the names repeat, an edge or a source points backwards or outside.

    >>> t = Topology.of(["small", "middle", "large"])
    >>> t.children(0), t.paths()
    ((1, 2), ((0,), (0, 1), (0, 1, 2), (0, 2)))
    >>> t.chain(["small", "large"]).paths()
    ((0,), (0, 2))
    """

    names: tuple[str, ...]
    sources: tuple[int, ...]
    groups: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    root: int = 0

    def __post_init__(self) -> None:
        s = len(self.names)
        if s == 0:
            raise TopologyError("A cascade needs at least one stage, got none.")
        if len(set(self.names)) != s:
            raise TopologyError(f"Stage names must be unique, got {list(self.names)}.")
        if len(self.sources) != s or len(self.groups) != s:
            raise TopologyError("sources and groups must have one entry per stage.")
        for k, source in enumerate(self.sources):
            if not RAW_INPUT <= source < k:
                raise TopologyError(
                    f"The source of stage {self.names[k]!r} must be an earlier stage or -1 "
                    f"(the raw input), got {source}."
                )
        if not 0 <= self.root < s:
            raise TopologyError(f"root must be a stage index below {s}, got {self.root}.")
        for j, k in self.edges:
            if not 0 <= j < k < s:
                raise TopologyError(
                    f"An edge must lead from an earlier to a later stage, got ({j}, {k}) for "
                    f"{s} stages; list the stages so that every edge leads forwards (no cycles)."
                )
        object.__setattr__(self, "edges", tuple(sorted(set(self.edges))))

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        *,
        edges: str | Iterable[tuple[str, str]] = "full",
        sources: Sequence[int] | None = None,
        groups: Sequence[str] | None = None,
    ) -> "Topology":
        """Build a topology by names.

        Args:
            names: Stages in topological order.
            edges: "full" (from each stage to every later one of another group), "chain" (to the
                next one), or pairs of names.
            sources: As in the class; by default every stage reads the raw input.
            groups: As in the class; by default every stage is alone.
        """
        names = tuple(names)
        groups = tuple(groups) if groups is not None else names
        if isinstance(edges, str):
            if edges not in ("full", "chain"):
                raise TopologyError(
                    f"edges must be 'full', 'chain' or pairs of names, got {edges!r}."
                )
            last = (lambda j: len(names)) if edges == "full" else (lambda j: min(j + 2, len(names)))
            pairs = [
                (j, k)
                for j in range(len(names))
                for k in range(j + 1, last(j))
                if groups[j] != groups[k]
            ]
        elif not isinstance(edges, Iterable):
            raise TopologyError(f"edges must be 'full', 'chain' or pairs of names, got {edges!r}.")
        else:
            index = {name: k for k, name in enumerate(names)}
            pairs = [
                (index[check_known("stage", a, names)], index[check_known("stage", b, names)])
                for a, b in edges
            ]
        return cls(
            names=names,
            sources=tuple(sources) if sources is not None else (RAW_INPUT,) * len(names),
            groups=groups,
            edges=tuple(pairs),
        )

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Position of a stage; raises `UnknownNameError` with the nearest name."""
        return self.names.index(check_known("stage", name, self.names))

    def children(self, stage: int) -> tuple[int, ...]:
        """Stages that may follow, in topological order."""
        return self._following.get(stage, ())

    @cached_property
    def _following(self) -> dict[int, tuple[int, ...]]:
        starts = dict.fromkeys(j for j, _ in self.edges)
        return {i: tuple(k for j, k in self.edges if j == i) for i in starts}

    @cached_property
    def active(self) -> tuple[int, ...]:
        """Stages that can be reached from the root, in topological order."""
        reached = {self.root}
        for j, k in self.edges:  # sorted, so every edge into j comes before those out of it
            if j in reached:
                reached.add(k)
        return tuple(sorted(reached))

    def paths(self) -> tuple[Path, ...]:
        """Every visit path from the root, each before its continuations, in order.

        Raises:
            InputError: If there are more than 4096; a chain or fewer edges has fewer.
        """
        return self._paths

    @cached_property
    def _paths(self) -> tuple[Path, ...]:
        found: list[Path] = []
        stack: list[Path] = [(self.root,)]
        while stack:
            path = stack.pop()
            found.append(path)
            if len(found) > _MAX_PATHS:
                raise InputError(
                    f"The topology has more than {_MAX_PATHS} visit paths; take fewer edges "
                    "(edges='chain') or search over its sub-chains."
                )
            stack.extend((*path, k) for k in reversed(self.children(path[-1])))
        return tuple(found)

    def lineage(self, stage: int) -> Path:
        """Stages whose segments must have run for `stage` to answer, in order, itself last."""
        back = [stage]
        while self.sources[back[-1]] != RAW_INPUT:
            back.append(self.sources[back[-1]])
        return tuple(reversed(back))

    def new_segments(self, path: Path, stage: int) -> Path:
        """Stages whose segments still have to run when `stage` follows on `path`, in order.

        Stages of one group share a segment: it counts as run when any of them has run it.
        """
        done = {self.groups[j] for visited in path for j in self.lineage(visited)}
        return tuple(j for j in self.lineage(stage) if self.groups[j] not in done)

    def check_cascade(self) -> None:
        """Check what a cascade as a whole must fulfil, beyond what a policy's part must.

        Raises:
            TopologyError: If a stage cannot be reached, or an edge leads to a stage whose source
                has not run on every path to the edge's start.
        """
        # Alternative heads at the root's cut are roots of other parts of the topology.
        beside = {k for k in range(len(self)) if self.groups[k] == self.groups[self.root]}
        missing = set(range(len(self))) - set(self.active) - beside
        if missing:
            names = [self.names[k] for k in sorted(missing)]
            raise TopologyError(
                f"Every stage must be reachable from {self.names[self.root]!r}; {names} are not. "
                "Add an edge to each or leave it out."
            )
        certain = self._certain_groups()
        for j, k in self.edges:
            if j not in certain:
                continue
            needed = (i for i in reversed(self.lineage(k)) if self.groups[i] != self.groups[k])
            missed = next((i for i in needed if self.groups[i] not in certain[j]), None)
            if missed is not None:
                path = self._path_without(self.groups[missed], j, certain)
                raise TopologyError(
                    f"The edge {self.names[j]!r} -> {self.names[k]!r} is illegal: "
                    f"{self.names[k]!r} continues {self.names[missed]!r}, which has not run on "
                    f"the path {[self.names[i] for i in path]}."
                )

    def _certain_groups(self) -> dict[int, frozenset[str]]:
        """For each stage that can be reached, the groups that have run on every path to it."""
        certain: dict[int, frozenset[str]] = {}
        for k in self.active:  # in topological order, so those before k are known
            before = [certain[i] for i, j in self.edges if j == k and i in certain]
            shared = frozenset.intersection(*before) if k != self.root else frozenset()
            certain[k] = shared | {self.groups[i] for i in self.lineage(k)}
        return certain

    def _path_without(self, group: str, stage: int, certain: Mapping[int, frozenset[str]]) -> Path:
        """A path to a stage on which a group has not run, where there is one."""
        back = [stage]
        while back[-1] != self.root:
            before = (i for i, j in self.edges if j == back[-1] and i in certain)
            back.append(next(i for i in before if group not in certain[i]))
        return tuple(reversed(back))

    def check_same_stages(self, other: "Topology", where: str) -> None:
        """Raise `InputError` unless a policy made for this topology fits another.

        Names, sources and groups must agree; edges may differ: a policy uses a part of them.

        Args:
            other: The topology of what the policy is to be used on.
            where: Whose it is, for the message: "the trace".
        """
        for name in ("names", "sources", "groups"):
            have, want = getattr(self, name), getattr(other, name)
            if have != want:
                raise InputError(
                    f"The policy was made for stages with {name} {have}, but {where} has {want}. "
                    "Fit it on a trace of the same cascade."
                )

    def part(self, edges: Iterable[tuple[int, int]], *, root: int | None = None) -> "Topology":
        """The same stages with other edges and, if given, another root: what a policy uses."""
        return Topology(
            names=self.names,
            sources=self.sources,
            groups=self.groups,
            edges=tuple(edges),
            root=self.root if root is None else root,
        )

    def chain(self, stages: Sequence[str | int]) -> "Topology":
        """The chain through some of the stages, by name or index, in topological order."""
        order = [self.index(k) if isinstance(k, str) else k for k in stages]
        if not order or order != sorted(set(order)):
            raise TopologyError(
                f"A chain must name stages in topological order without repeats, got {stages}."
            )
        return self.part(itertools.pairwise(order), root=order[0])

    def only(self, stages: Sequence[str]) -> "Topology":
        """The topology of some of the stages, by name: one follows another if it could before.

        Raises:
            TopologyError: If they do not stand in topological order, or one continues a stage that
                is left out.

        >>> Topology.of(["a", "b", "c", "d"], edges="chain").only(["a", "c", "d"]).edges
        ((0, 1), (0, 2), (1, 2))
        """
        kept = [self.index(name) for name in stages]
        if not kept or kept != sorted(set(kept)):
            raise TopologyError(f"Stages must stand in topological order, once each, got {stages}.")
        for k in kept:
            if self.sources[k] != RAW_INPUT:
                raise TopologyError(
                    f"Only stages that read the raw input can stand by themselves, got "
                    f"{self.names[k]!r}, which continues {self.names[self.sources[k]]!r}. Take a "
                    "chain of the whole topology: topology.chain([...])."
                )
        reached: dict[int, set[int]] = {}
        for k in reversed(range(len(self))):
            children = self.children(k)
            reached[k] = set(children).union(*(reached[c] for c in children))
        return Topology(
            names=tuple(stages),
            sources=(RAW_INPUT,) * len(kept),
            groups=tuple(self.groups[k] for k in kept),
            edges=tuple(
                (i, j)
                for i, a in enumerate(kept)
                for j, b in enumerate(kept)
                if b in reached[a] and self.groups[a] != self.groups[b]
            ),
        )

    def describe(self) -> str:
        """Short text for tables: "a -> b -> c" for a chain, the list of edges otherwise."""
        active = self.active
        if all(len(self.children(k)) <= 1 for k in active):
            return " -> ".join(self.names[k] for k in active)
        return ", ".join(
            f"{self.names[j]} -> {self.names[k]}" for j, k in self.edges if j in active
        )
