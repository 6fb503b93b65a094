"""What comes to a cluster, and what it meets there: the words that a simulation speaks.

Layer: tuning.  Source: docs/adr/0058.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

from offramp._core.checks import check_not_negative, check_positive, check_positive_int
from offramp._core.errors import InputError
from offramp._core.topology import Path, Topology
from offramp.runtime.times import FULL, StageTimes


@final
@dataclass(frozen=True, kw_only=True)
class Pool:
    """What the replicas of one stage did.

    Args:
        stage: Its name.
        replicas: How many there are.
        utilization: Share of the time that they computed, in [0, 1].
        batch: Mean number of examples in a batch.
        waited: Mean seconds that an example waited in its queue.
        visited: Share of all examples that came here.
    """

    stage: str
    replicas: int
    utilization: float
    batch: float
    waited: float
    visited: float


@final
@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What some traffic met.

    Args:
        rate: Examples each second that came.
        stable: False where more comes than can be served: queues grow without end, and the seconds
            below are infinite.
        p50: Median seconds from arrival to answer.
        p99: The same of the slowest hundredth.
        pools: Of each stage that somebody visits.
    """

    rate: float
    stable: bool
    p50: float
    p99: float
    pools: tuple[Pool, ...]

    @property
    def replicas(self) -> int:
        """Of all stages together."""
        return sum(pool.replicas for pool in self.pools)

    def per_million(self, price: float) -> float:
        """What a million examples cost.

        Args:
            price: Of a replica for an hour.
        """
        return price * self.replicas / 3600 / self.rate * 1e6


@final
@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What comes, and how stages take it.

    Args:
        topology: The stages that are used.
        times: Seconds of each at each batch size.
        shares: For each path the share of the examples that takes it; they sum to 1.
        rate: Examples each second, in Poisson arrivals.
        batch_size: A full batch, of every stage.
        patience: Seconds after which an example waits for no others any more.
        overhead: Seconds that a batch costs beside its stage: queues, transport.
        front: Seconds that each example keeps a process busy that takes requests and gives
            answers, as its stages do not: HTTP, the scheduler.
        fronts: How many such processes there are.
        cores: How many cores all of that shares, stages and fronts: while more runs at once than
            there are cores, everything is slower. None where each replica and each front has its
            own.

    Raises:
        InputError: If a path is none of the topology's, shares do not sum to 1, or a number is
            outside its domain.

    >>> times = StageTimes(stages=("a", "b"), sizes=(1, 8), raw=(0.0, 0.0), where="made",
    ...     segment=((0.001, 0.004), (0.004, 0.016)), head=((0.0, 0.0),) * 2,
    ...     carry=((0.0, 0.0),) * 2)
    >>> traffic = Traffic(topology=Topology.of(["a", "b"]), times=times,
    ...     shares={(0,): 0.8, (0, 1): 0.2}, rate=1000.0, batch_size=8)
    >>> [round(load, 2) for load in traffic.loads().values()]
    [0.5, 0.4]
    """

    topology: Topology
    times: StageTimes
    shares: Mapping[Path, float]
    rate: float
    batch_size: int = FULL
    patience: float = 0.002
    overhead: float = 0.0
    front: float = 0.0
    fronts: int = 1
    cores: int | None = None

    def __post_init__(self) -> None:
        check_positive("rate", self.rate)
        check_positive_int("batch_size", self.batch_size)
        check_not_negative("patience", self.patience)
        check_not_negative("overhead", self.overhead)
        check_not_negative("front", self.front)
        check_positive_int("fronts", self.fronts)
        if self.cores is not None:
            check_positive_int("cores", self.cores)
        paths = self.topology.paths()
        if not self.shares or any(path not in paths for path in self.shares):
            raise InputError(f"shares must be of the paths {list(paths)}, got {list(self.shares)}.")
        each = list(self.shares.values())
        if min(each) < 0 or not math.isclose(sum(each), 1.0, abs_tol=1e-6):
            raise InputError(f"shares must be at least 0 and sum to 1, got {each}.")

    def seconds(self, path: Path, size: int) -> float:
        """Seconds that the last stage of a path takes for a batch of those who came by it."""
        times, k = self.times, path[-1]
        segments = self.topology.new_segments(path[:-1], k)
        spent = sum(times.planned(j, size) for j in segments)
        return self.overhead + spent + times.head_seconds(k, size)

    def visits(self) -> dict[Path, float]:
        """For each beginning of a path the share of the examples that comes by it."""
        found: dict[Path, float] = {}
        for path, share in self.shares.items():
            for end in range(1, len(path) + 1):
                found[path[:end]] = found.get(path[:end], 0.0) + share
        return {path: share for path, share in found.items() if share > 0}

    def loads(self) -> dict[int, float]:
        """For each stage how many replicas would be busy all the time, in full batches."""
        found: dict[int, float] = {}
        for path, share in self.visits().items():
            each = self.seconds(path, self.batch_size) / self.batch_size
            found[path[-1]] = found.get(path[-1], 0.0) + self.rate * share * each
        return dict(sorted(found.items()))

    def work(self) -> float:
        """How many cores stages and fronts would keep busy all the time, in full batches."""
        return sum(self.loads().values()) + self.rate * self.front

    def alone(self, stage: str) -> "Traffic":
        """The same where one stage answers everybody."""
        chain = self.topology.chain([stage])
        return replace(self, topology=chain, shares={chain.paths()[0]: 1.0})
