"""What is asked of a server as a whole, whichever of its processes is asked (docs/adr/0055).

Layer: serve.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from offramp.serve.model import ServedModel
    from offramp.serve.serving import Serving

Stats = dict[str, Any]
_ADDED = ("queue", "examples", "nonfinite", "cost", "reference_cost", "workers")


@runtime_checkable
class Whole(Protocol):
    """All processes of a server."""

    async def begin(self) -> None:
        """The server begins; it listens once this comes back."""

    async def load_all(self) -> None:
        """Load every model; raises `OfframpError` of the first that cannot be loaded."""

    async def end(self) -> None:
        """The server has ended."""

    async def metrics(self) -> str:
        """Everything that is counted, in Prometheus' text form."""

    async def stats(self, name: str) -> Stats:
        """Queues, gear, audits and alarms of a model."""

    async def hold(self, name: str, gear: str | None) -> None:
        """Hold a gear of a model; None to let it move."""

    async def load(self, name: str) -> str:
        """Load a model, or load it again, everywhere; returns its version."""

    async def unload(self, name: str) -> None:
        """Let a model go, everywhere."""


class Alone:
    """A server of one process.

    Args:
        serving: Its state.
    """

    def __init__(self, serving: "Serving") -> None:
        self._serving, self._repository = serving, serving.repository

    async def begin(self) -> None:
        """Nothing is needed before it listens."""

    async def load_all(self) -> None:
        """One after the other."""
        for name in self._repository.sources:
            await self._repository.load(name)

    async def end(self) -> None:
        """Nobody has to be told."""

    async def metrics(self) -> str:
        """Its own."""
        return self._serving.metrics.text()

    async def stats(self, name: str) -> Stats:
        """Its own."""
        return stats_of(self._repository.get(name))

    async def hold(self, name: str, gear: str | None) -> None:
        """Here."""
        self._repository.get(name).hold(gear)

    async def load(self, name: str) -> str:
        """Here."""
        return (await self._repository.load(name)).version

    async def unload(self, name: str) -> None:
        """Here."""
        await self._repository.unload(name)


def stats_of(served: "ServedModel") -> Stats:
    """Queues, gear, audits and alarms of a model in this process."""
    return {
        "name": served.name,
        "version": served.version,
        "workers": 1,
        "queue": served.admission.examples,
        "waiting": served.executor.waiting(),
        "gear": served.gear(None),
        "gears": list(served.executor.gears),
        "held": served.controller is not None and served.controller.pinned,
        **({} if served.observer is None else served.observer.status()),
    }


def summed(each: Sequence[Stats]) -> Stats:
    """The stats of a model that several processes serve.

    Each has queues, answers and a watch over drift of its own; promises are watched in common. In
    different gears, the cheapest is told.

    Args:
        each: Of `stats_of`, one for each process.
    """
    first = each[0]
    whole = first | {name: sum(one[name] for one in each) for name in _ADDED if name in first}
    whole["waiting"] = {
        stage: sum(one["waiting"][stage] for one in each) for stage in first["waiting"]
    }
    in_use = {one["gear"] for one in each}
    whole["gear"] = next((g for g in reversed(first["gears"]) if g in in_use), first["gear"])
    whole["held"] = all(one["held"] for one in each)
    if all("stages" in one for one in each):
        whole["stages"] = _exits(each)
        audits = [one["audits"] for one in each]
        whole["audits"] = {name: sum(one[name] for one in audits) for name in audits[0]}
        whole["audits"]["without_label"] = max(one["without_label"] for one in audits)  # in common
        latest = max(each, key=lambda one: sum(promise["n"] for promise in one["promises"]))
        whole["promises"] = latest["promises"]
        whole["drift"] = [
            {"worker": k, **watch} for k, one in enumerate(each) for watch in one["drift"]
        ]
        alarms = [alarm for one in each for alarm in one["alarms"]]
        whole["alarms"] = [alarm for k, alarm in enumerate(alarms) if alarm not in alarms[:k]]
    return whole


def _exits(each: Sequence[Stats]) -> list[Stats]:
    """Who left where, and what share was expected: the mean over those who were answered."""
    answered = [one for one in each if one["examples"]]
    found = []
    for k, stage in enumerate(each[0]["stages"]):
        shares = [one["stages"][k]["expected"] for one in answered]
        known = bool(answered) and None not in shares
        weights = [one["examples"] for one in answered]
        expected = sum(w * s for w, s in zip(weights, shares, strict=True)) if known else 0.0
        found.append(
            {
                "name": stage["name"],
                "exits": sum(one["stages"][k]["exits"] for one in each),
                "expected": expected / sum(weights) if known else None,
            }
        )
    return found
