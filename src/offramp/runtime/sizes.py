"""How many examples make a full batch of a stage, and how long it takes.

Layer: runtime.
"""

from collections.abc import Collection, Mapping

from offramp._core.checks import check_known, check_positive_int
from offramp._core.topology import Topology
from offramp.runtime.program import Program
from offramp.runtime.times import StageTimes

FULL = 64  # a batch that uses a CPU well and fits into its caches


def full_sizes(
    given: int | Mapping[str, int] | None,
    topology: Topology,
    times: StageTimes | None,
    waiting: Collection[int] = (),
) -> dict[int, int]:
    """For each stage how many examples make a full batch, by index.

    Those that wait for a service take examples one by one: none waits for another's answer.

    >>> full_sizes({"b": 8}, Topology.of(["a", "b", "c"]), None, waiting=[2])
    {0: 64, 1: 8, 2: 1}
    """
    stages = range(len(topology))
    if isinstance(given, int):
        return dict.fromkeys(stages, check_positive_int("batch_size", given))
    default = {k: FULL if times is None else times.best_size(k) for k in stages}
    default |= dict.fromkeys(waiting, 1)
    for name, size in (given or {}).items():
        check_known("stage", name, topology.names)
        default[topology.index(name)] = check_positive_int(f"batch_size[{name!r}]", size)
    return default


def expected_seconds(program: Program, full: Mapping[int, int]) -> dict[int, float]:
    """Seconds that a full batch takes at each stage, by the times measured; else nothing."""
    times = program.times
    if times is None:
        return {}
    return {
        stage: sum(times.planned(j, full[stage]) for j in plan.segments)
        for stage, plan in program.plans.items()
    }
