"""Recording what costs money: kept answers, a ceiling, and the price of each answer.

Layer: recording.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from offramp._core.checks import check_not_negative, check_positive_int
from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.spending import Spending
from offramp.stages import Cascade


@runtime_checkable
class Keeps(Protocol):
    """The module of a stage whose answers are paid for, and can be kept."""

    def keeping(
        self, path: Path | None, ceiling: Spending, *, concurrency: int | None
    ) -> AbstractContextManager[object]:
        """Within, each answer is kept, in a file if one is named, before it is counted."""
        ...


def listed_prices(cascade: Cascade, costs: Costs | str) -> Costs | None:
    """Costs of the stages that do not tell prices, 0 for the others; None to keep no prices.

    Raises:
        InputError: If some stages tell prices and nobody says what the others cost; or they tell
            them in several units.
    """
    units = {stage.name: stage.unit for stage in cascade if stage.unit is not None}
    if not units or (isinstance(costs, Costs) and {costs.unit} != set(units.values())):
        return None
    if len(set(units.values())) > 1:
        raise InputError(f"All prices of a cascade must be in one unit, got {units}.")
    if isinstance(costs, Costs):
        return costs
    silent = [stage.name for stage in cascade if stage.unit is None]
    unit = next(iter(units.values()))
    if silent:
        raise InputError(
            f"costs must say what {silent} cost, in {unit}, the unit of the prices that "
            f"{list(units)} tell: given_costs(cascade, {unit!r}, {{...}}), or in a configuration "
            f"[cost] unit = {unit!r}, given = {{...}}; 0 for what costs nothing."
        )
    return Costs.simple(unit, [0.0] * len(cascade))


def ceiling_of(cascade: Cascade, max_spend: float | None) -> Spending:
    """A ceiling on what all services of a cascade cost together.

    Raises:
        InputError: If it is negative, or a service whose price is not known would be asked.
    """
    unpriced = [s.name for s in cascade if isinstance(s.module, Keeps) and s.unit is None]
    if max_spend is not None and (unpriced or all(stage.unit is None for stage in cascade)):
        raise InputError(
            f"max_spend needs the prices of all services, got none of {unpriced or 'any stage'}. "
            "Give them: from_openai(..., prices={'input': ..., 'output': ...})."
        )
    return Spending(None if max_spend is None else check_not_negative("max_spend", max_spend))


@contextmanager
def keeping(
    cascade: Cascade,
    folder: Path | None,
    ceiling: Spending,
    *,
    concurrency: int | None,
    resume: bool,
) -> Iterator[None]:
    """Within, services keep their answers in a folder, and spend no more than the ceiling."""
    if concurrency is not None:
        check_positive_int("concurrency", concurrency)
    with ExitStack() as stack:
        modules = {id(stage.module): (k, stage.module) for k, stage in enumerate(cascade)}
        for k, module in modules.values():
            if isinstance(module, Keeps):
                path = None if folder is None else folder / f"answers-{k}.jsonl"
                if path is not None and not resume:
                    path.unlink(missing_ok=True)
                stack.enter_context(module.keeping(path, ceiling, concurrency=concurrency))
        yield
