"""What stages take in each backend, and which is fastest.

Layer: backends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum, inf, log
from typing import final

from offramp._core.checks import check_known
from offramp._core.errors import InputError
from offramp._core.schema import stored
from offramp.backends.form import TensorSpec
from offramp.backends.table import EAGER, exact_backends


@final
@stored(whole=True)
@dataclass(frozen=True, slots=True, kw_only=True)
class BackendTable:
    """What the stages of a cascade take in each backend.

    Args:
        batch_sizes: Rising.
        seconds: For each stage and backend the seconds per batch, one for each batch size. Stages
            of a group are measured together: segment and all heads.
        refused: For each stage the backends that cannot run it, with the reason.
        where: Machine and threads, in words.
        inputs: The form of the raw input.

    Raises:
        InputError: If a stage has no backend, or a time is not greater than 0, or there are not as
            many as batch sizes.

    >>> import torch
    >>> form = TensorSpec.of(torch.zeros(1, 3))
    >>> seconds = {"a": {"eager": (1.0, 4.0), "folded": (2.0, 1.0)}}
    >>> table = BackendTable(batch_sizes=(1, 32), seconds=seconds, inputs=form)
    >>> table.best(), table.best(batch_size=1)
    ({'a': 'folded'}, {'a': 'eager'})
    """

    batch_sizes: tuple[int, ...]
    seconds: Mapping[str, Mapping[str, tuple[float, ...]]]
    inputs: TensorSpec
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    where: str = ""

    def __post_init__(self) -> None:
        if not self.batch_sizes or not self.seconds or not all(self.seconds.values()):
            raise InputError("A table of backends must have batch sizes, stages and backends.")
        for stage, backends in self.seconds.items():
            for name, times in backends.items():
                timed = all(0 < seconds < inf for seconds in times)
                if len(times) != len(self.batch_sizes) or not timed:
                    raise InputError(
                        f"seconds must have a time > 0 for each of the batch sizes "
                        f"{self.batch_sizes}, got {times} for stage {stage!r} in {name!r}."
                    )

    def best(
        self, *, batch_size: int | None = None, among: Sequence[str] | None = None
    ) -> dict[str, str]:
        """The fastest backend of each stage, of those that this machine has.

        Args:
            batch_size: One that was measured; by default all of them count alike, by the geometric
                mean of their times.
            among: Backends to choose from; by default all that are there and answer as PyTorch.

        Raises:
            InputError: If the batch size was not measured, or a stage has none of the backends.
        """
        allowed = exact_backends() if among is None else among
        columns = range(len(self.batch_sizes))
        if batch_size is not None:
            if batch_size not in self.batch_sizes:
                raise InputError(
                    f"batch_size must be one of those measured, {self.batch_sizes}, got "
                    f"{batch_size}."
                )
            columns = range(self.batch_sizes.index(batch_size), len(self.batch_sizes))[:1]
        return {stage: self._fastest(stage, columns, allowed) for stage in self.seconds}

    def _fastest(self, stage: str, columns: range, allowed: Sequence[str]) -> str:
        times = {name: each for name, each in self.seconds[stage].items() if name in allowed}
        if not times:
            raise InputError(
                f"Stage {stage!r} was measured in {list(self.seconds[stage])}, but none of these "
                f"is among {list(allowed)}. Measure again with choose_backends."
            )
        return min(times, key=lambda name: fsum(log(times[name][k]) for k in columns))

    def speedup(self, stage: str, backend: str) -> tuple[float, ...]:
        """How many times faster than eager PyTorch, at each batch size; above 1 is faster.

        Raises:
            UnknownNameError: If the stage or the backend was not measured.
        """
        times = self.seconds[check_known("stage", stage, self.seconds)]
        own = times[check_known("backend", backend, times)]
        eager = times[check_known("backend", EAGER, times)]
        return tuple(a / b for a, b in zip(eager, own, strict=True))
