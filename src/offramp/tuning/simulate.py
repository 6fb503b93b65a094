"""How many replicas of each stage some traffic needs, by simulation from measured stage times.

Each stage is a pool of replicas that take batches from its queues; survivors of a batch join the
queue of the stage that follows on their path. Where everything is on one machine, all that runs
shares its cores. Nothing runs: an hour of a cluster takes seconds.

Layer: tuning.  Source: docs/adr/0058.
"""

import heapq
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, final

import numpy as np

from offramp._core.checks import check_positive, check_positive_int, check_seed
from offramp._core.errors import InputError
from offramp._core.topology import Path
from offramp._core.types import FloatArray
from offramp.tuning.cores import Cores
from offramp.tuning.traffic import Pool, Simulated, Traffic

_SERVED: Final = 40  # times of the dearest batch that traffic lasts
_FEWEST, _MOST = 20_000, 400_000  # examples that are simulated
_COLD = 0.2  # share of the examples that come while queues fill, and are not counted
_BUSY = 0.85  # a pool that is busier than that waits long for little


def simulate(
    traffic: Traffic,
    replicas: Mapping[str, int],
    *,
    seed: int = 0,
    arrivals: Sequence[float] | FloatArray | None = None,
) -> Simulated:
    """Let traffic come to some replicas.

    Args:
        traffic: What comes.
        replicas: For each stage that somebody visits how many there are, by name.
        seed: Of arrivals and of who takes which path.
        arrivals: Recorded seconds at which examples came, ascending, in place of Poisson arrivals;
            those of the first fifth of them fill the queues, and are not counted.

    Raises:
        InputError: If a stage has no replicas, or arrivals do not ascend.

    >>> from offramp._core.topology import Topology
    >>> from offramp.runtime.times import StageTimes
    >>> times = StageTimes(stages=("a",), sizes=(1,), segment=((0.5,),), head=((0.0,),),
    ...     carry=((0.0,),), raw=(0.0,), where="made")
    >>> one = Traffic(topology=Topology.of(["a"]), times=times, shares={(0,): 1.0}, rate=0.1,
    ...     batch_size=1)
    >>> simulate(one, {"a": 1}).p50
    0.5
    """
    names, loads = traffic.topology.names, traffic.loads()
    lacking = [names[k] for k in loads if not _is_count(replicas.get(names[k]))]
    if lacking:
        raise InputError(
            "replicas must give a whole number of at least 1 to each stage that somebody visits, "
            f"{lacking} have none in {dict(replicas)}."
        )
    if foreign := sorted(set(replicas) - set(names)):
        raise InputError(f"replicas must be of the stages {list(names)}, got {foreign}.")
    rng = np.random.default_rng(check_seed(seed))
    comes = _arrivals(traffic, rng) if arrivals is None else np.asarray(arrivals, dtype=np.float64)
    ascend = comes.ndim == 1 and len(comes) > 1 and bool((np.diff(comes) >= 0).all())
    if not ascend or not 0 < comes[-1] - comes[0] < math.inf:
        raise InputError(
            "arrivals must be at least 2 finite seconds that ascend, and not all the same, got "
            f"an array of {comes.shape} that begins {comes.ravel()[:3].tolist()}."
        )
    ways = list(traffic.shares)
    drawn = rng.choice(len(ways), size=len(comes), p=np.array(list(traffic.shares.values())))
    run = _Run(traffic, {k: replicas[names[k]] for k in loads}, comes, [ways[i] for i in drawn])
    run.go()
    return run.result(len(comes) / (comes[-1] - comes[0]) if arrivals is not None else traffic.rate)


def plan(
    traffic: Traffic, *, p99: float, most: int = 10_000, seed: int = 0
) -> tuple[Simulated, dict[str, int]]:
    """The fewest replicas of each stage with which traffic is answered in time.

    It begins with what the mean load needs, and gives one more to the stage at which examples wait
    longest, until the slowest hundredth is in time.

    Args:
        traffic: What comes.
        p99: Seconds within which 99 of 100 examples must be answered.
        most: Replicas that it may use.
        seed: As in `simulate`.

    Returns:
        What traffic meets then, and the replicas by name.

    Raises:
        InputError: If no number of replicas can do it, because the stages alone take longer, or
            the fronts, or there are too few cores.

    >>> from offramp._core.topology import Topology
    >>> from offramp.runtime.times import StageTimes
    >>> times = StageTimes(stages=("a",), sizes=(1, 8), raw=(0.0, 0.0), where="made",
    ...     segment=((0.001, 0.004),), head=((0.0, 0.0),), carry=((0.0, 0.0),))
    >>> one = Traffic(topology=Topology.of(["a"]), times=times, shares={(0,): 1.0}, rate=3000.0,
    ...     batch_size=8)
    >>> found, replicas = plan(one, p99=0.05)
    >>> replicas, found.p99 <= 0.05
    ({'a': 2}, True)
    """
    check_positive("p99", p99)
    check_positive_int("most", most)
    names = traffic.topology.names
    replicas = {names[k]: max(1, math.ceil(load)) for k, load in traffic.loads().items()}
    taken_in = traffic.rate * traffic.front
    if taken_in >= traffic.fronts:
        raise InputError(
            f"fronts must be more than {taken_in:.3g}, since each of {traffic.rate:g} examples a "
            f"second keeps one busy for {traffic.front:g} seconds, got {traffic.fronts}."
        )
    cores = traffic.cores
    if cores is not None and traffic.work() >= cores:
        raise InputError(
            f"cores must be more than {traffic.work():.3g}, which stages and fronts keep busy, got "
            f"{cores}."
        )
    least = _least(traffic)
    if least > p99:
        raise InputError(
            f"p99 must be at least {least:.3g} seconds, which the stages of some path take for a "
            f"single example with nobody before it, got {p99:.3g}."
        )
    passed = _passed_within(traffic, seed)
    if passed > p99:
        raise InputError(
            f"fronts must be more than {traffic.fronts}: 99 of 100 examples have passed so many "
            f"within {passed:.3g} seconds, and p99 is {p99:.3g}. No replicas can make up for that."
        )
    while sum(replicas.values()) <= most:
        found = simulate(traffic, replicas, seed=seed)
        if found.p99 <= p99:
            return found, replicas
        # Where examples wait longest; the busiest of those that are all but full. More replicas
        # of a stage than cores have nothing to run on.
        fewer = [p for p in found.pools if cores is None or p.replicas < cores]
        if not fewer:
            raise InputError(
                f"cores must be more than {cores}: with as many replicas of each stage 99 of 100 "
                f"examples are answered within {found.p99:.3g} seconds, and p99 is {p99:.3g}."
            )
        worst = max(fewer, key=lambda pool: (pool.utilization > _BUSY, pool.waited))
        replicas[worst.stage] += max(1, replicas[worst.stage] // 20)
    raise InputError(
        f"p99 must be longer than {p99:.3g} seconds for {traffic.rate:g} examples each second on "
        f"at most {most} replicas. Allow more replicas, smaller batches or a shorter patience."
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 1


def _least(traffic: Traffic) -> float:
    """Seconds that the longest path with a share of over a hundredth takes for one example."""
    each = [
        (sum(traffic.seconds(path[:end], 1) for end in range(1, len(path) + 1)), share)
        for path, share in traffic.shares.items()
    ]
    slowest, seen = 0.0, 0.0
    for seconds, share in sorted(each, reverse=True):
        seen += share
        slowest = seconds
        if seen > 0.01:
            break
    return traffic.front + slowest


def _arrivals(traffic: Traffic, rng: np.random.Generator) -> FloatArray:
    longest = max(traffic.seconds(path, traffic.batch_size) for path in traffic.visits())
    wanted = traffic.rate * _SERVED * (longest + traffic.patience)
    count = int(min(max(wanted, _FEWEST), _MOST))
    return np.cumsum(rng.exponential(1 / traffic.rate, count))


def _passed_within(traffic: Traffic, seed: int) -> float:
    """Seconds within which 99 of 100 of those whom `simulate` draws have passed the fronts."""
    comes = _arrivals(traffic, np.random.default_rng(check_seed(seed)))
    if not _fronts_keep_up(comes, traffic):
        return math.inf
    return float(np.quantile((_taken_in(comes, traffic) - comes)[int(_COLD * len(comes)) :], 0.99))


def _fronts_keep_up(comes: FloatArray, traffic: Traffic) -> bool:
    """Whether the fronts can take in more than comes."""
    return len(comes) / float(comes[-1] - comes[0]) * traffic.front < traffic.fronts


def _taken_in(comes: FloatArray, traffic: Traffic) -> FloatArray:
    """When each example has passed a front: whoever comes goes to the one that is free first."""
    if not traffic.front:
        return comes
    free = [-np.inf] * min(traffic.fronts, len(comes))
    passed = np.empty_like(comes)
    for example, now in enumerate(comes.tolist()):
        passed[example] = max(now, free[0]) + traffic.front
        heapq.heapreplace(free, passed[example])
    return passed


_FRONT = -1  # in the place of a stage


@final
class _Run:
    """One simulation: events in the order of their times."""

    def __init__(
        self, traffic: Traffic, replicas: Mapping[int, int], comes: FloatArray, paths: list[Path]
    ) -> None:
        self._traffic, self._replicas, self._comes, self._paths = traffic, replicas, comes, paths
        self._free = {**replicas, _FRONT: traffic.fronts}
        self._arrived = deque[int]()  # who waits for a front
        self._queues: dict[int, dict[Path, deque[tuple[float, int]]]] = {k: {} for k in replicas}
        self._seconds: dict[tuple[Path, int], float] = {}
        #: What runs: since when, of which stage, by which path, and for whom.
        self._cores = Cores[tuple[float, int, Path, list[int]]](traffic.cores)
        self._done = np.full(len(comes), np.inf)
        self._busy = dict.fromkeys(replicas, 0.0)
        self._batches = dict.fromkeys(replicas, 0)
        self._visits = dict.fromkeys(replicas, 0)
        self._waits = dict.fromkeys(replicas, 0.0)
        self._looks = dict.fromkeys(replicas, np.inf)  # when somebody looks at a queue again

    def go(self) -> None:
        """Until all who have come are answered."""
        traffic, root, comes = self._traffic, self._traffic.topology.root, self._comes
        fronts_share = traffic.front > 0 and traffic.cores is not None
        if not fronts_share:  # nothing else decides when they have passed
            comes = _taken_in(comes, traffic)
        for example, now in enumerate(comes.tolist()):
            self._until(now)
            if fronts_share:
                self._arrived.append(example)
                self._take_in(now)
            else:
                self._wait(now, (root,), example)
                self._serve(now, root)
        self._until(np.inf)

    def _until(self, end: float) -> None:
        """All that happens up to a time."""
        while True:
            look, ends = min(self._looks.values()), self._cores.soonest
            if min(look, ends) > end or look == ends == np.inf:
                return
            if ends <= look:
                self._ended(ends, *self._cores.end())
                continue
            stage = next(k for k, when in self._looks.items() if when == look)
            self._looks[stage] = np.inf
            self._serve(look, stage)

    def _ended(self, now: float, since: float, stage: int, path: Path, examples: list[int]) -> None:
        self._free[stage] += 1
        if stage == _FRONT:
            self._take_in(now)
        else:
            self._busy[stage] += now - since
        following = set[int]()
        for example in examples:
            whole = self._paths[example]
            if len(whole) == len(path):
                self._done[example] = now
            else:
                self._wait(now, whole[: len(path) + 1], example)
                following.add(whole[len(path)])
        for each in following | ({stage} - {_FRONT}):
            self._serve(now, each)

    def _take_in(self, now: float) -> None:
        """Whoever comes goes to a front that is free, one after the other."""
        while self._free[_FRONT] and self._arrived:
            self._free[_FRONT] -= 1
            what = (now, _FRONT, (), [self._arrived.popleft()])
            self._cores.begin(now, self._traffic.front, what)

    def _wait(self, now: float, path: Path, example: int) -> None:
        self._queues[path[-1]].setdefault(path, deque()).append((now, example))

    def _serve(self, now: float, stage: int) -> None:
        """Give batches to replicas that are free."""
        full, patience = self._traffic.batch_size, self._traffic.patience
        queues = self._queues[stage]
        while self._free[stage]:
            waiting = [(queue[0][0], path) for path, queue in queues.items() if queue]
            ready = [
                (since, path)
                for since, path in waiting
                if len(queues[path]) >= full or now >= since + patience
            ]
            if not ready:
                look = min(waiting)[0] + patience if waiting else np.inf
                self._looks[stage] = min(self._looks[stage], look)
                return
            self._run(now, stage, min(ready)[1])

    def _run(self, now: float, stage: int, path: Path) -> None:
        queue = self._queues[stage][path]
        taken = [queue.popleft() for _ in range(min(len(queue), self._traffic.batch_size))]
        size = len(taken)
        seconds = self._seconds.get((path, size))
        if seconds is None:
            seconds = self._seconds[path, size] = self._traffic.seconds(path, size)
        self._free[stage] -= 1
        self._batches[stage] += 1
        self._visits[stage] += size
        self._waits[stage] += sum(now - since for since, _ in taken)
        self._cores.begin(now, seconds, (now, stage, path, [example for _, example in taken]))

    def result(self, rate: float) -> Simulated:
        """What was met, without those who came while queues filled."""
        n, names = len(self._comes), self._traffic.topology.names
        seconds = (self._done - self._comes)[int(_COLD * n) :]
        span = float(self._done.max() - self._comes[0])
        pools = tuple(
            Pool(
                stage=names[k],
                replicas=count,
                utilization=min(self._busy[k] / (span * count), 1.0),
                batch=self._visits[k] / max(self._batches[k], 1),
                waited=self._waits[k] / max(self._visits[k], 1),
                visited=self._visits[k] / n,
            )
            for k, count in self._replicas.items()
        )
        stable = self._is_stable()
        p50, p99 = np.quantile(seconds, [0.5, 0.99]).tolist() if stable else (np.inf, np.inf)
        return Simulated(rate=rate, stable=stable, p50=p50, p99=p99, pools=pools)

    def _is_stable(self) -> bool:
        """Whether each stage could serve more than came, in batches of the size that is best."""
        traffic = self._traffic
        scale = len(self._comes) / (self._comes[-1] - self._comes[0]) / traffic.rate
        loads = traffic.loads()
        served = all(scale * loads[k] < self._replicas[k] for k in loads)
        fits = traffic.cores is None or scale * traffic.work() < traffic.cores
        return bool(served and fits and _fronts_keep_up(self._comes, traffic))
