"""What one stage adds to a graph: the segments that are lacking, its head, and what decides.

Layer: bundle.  Source: methods.md 6; which segments run for whom is the runtime's own plan
(`offramp.runtime.plans`).
"""

from collections.abc import Sequence
from typing import final

import numpy as np

from offramp._core.topology import RAW_INPUT
from offramp.bundle.onnx.graph import INT, Scope, Value, values_of
from offramp.bundle.onnx.parts import OUTCOME, Parts
from offramp.runtime.plans import RAW

#: What is known at some point of the graph. ("state", NAME, 0): of every example its "node",
#: "answer" and whether it is "clean", as `Decision` has them, and "logits.K" of stage K.
#: ("carry", GROUP, I): the tensors of a carry, one row for each example that has it, and
#: ("place", GROUP, 0): for every example which row is its own, -1 for none.
Known = dict[tuple[str, str, int], Value]


@final
class Visit:
    """Writes what some examples run at a stage.

    Args:
        parts: The cascade's parts.
        scope: Where to write.
        rows: Name of the positions of the examples within the batch, `(m,)`, ascending.
        known: Before the stage.
        everyone: Whether these are all examples of the batch.
    """

    def __init__(
        self, parts: Parts, scope: Scope, rows: str, known: Known, *, everyone: bool = False
    ) -> None:
        self._parts, self._scope, self._rows, self._everyone = parts, scope, rows, everyone
        self._topology = parts.policy.topology
        self._known = dict(known)
        self._fresh: set[str] = set()  # groups whose carry these examples alone hold, in order

    def write(self, stage: int) -> Known:
        """Write all of it; return what is known afterwards and still of use."""
        plan = self._parts.plans[stage]
        for j in plan.segments:
            self._run_where_lacking(j) if j in plan.by_some else self._run(j)
        carry = self._carry(self._topology.groups[stage])
        head = self._parts.heads.get(stage)
        (logits,) = carry if head is None else self._scope.splice(head, carry, "head")
        self._decide(stage, logits)
        useful = {"state": self._parts.read_after(stage), "carry": plan.keep, "place": plan.keep}
        return {key: value for key, value in self._known.items() if key[1] in useful[key[0]]}

    def _run_where_lacking(self, j: int) -> None:
        """Run a segment for those who have not run it yet, if there are any."""
        scope, group = self._scope, self._topology.groups[j]
        place = scope.op("Gather", self._known["place", group, 0].name, self._rows)
        lacking = positions(scope, scope.op("Less", place, scope.constant(0)))
        rows = scope.op("Gather", self._rows, lacking)
        inner = Visit(self._parts, Scope(f"{scope.prefix}/lacking.{j}"), rows, self._known)
        inner._run(j)
        self._known = either(scope, rows, inner._scope, self._known, inner._known)

    def _run(self, j: int) -> None:
        """Run a segment for all the examples, and hold what it gives."""
        group, source = self._topology.groups[j], self._topology.sources[j]
        given = self._carry(RAW if source == RAW_INPUT else self._topology.groups[source])
        model = self._parts.segments[group]
        names = self._scope.splice(model, given, "segment")
        made = [v.named(name) for v, name in zip(values_of(model.graph.output), names, strict=True)]
        if ("carry", group, 0) not in self._known:
            self._fresh.add(group)
        self._hold(group, made)

    def _hold(self, group: str, made: Sequence[Value]) -> None:
        """Put rows behind those that other examples hold already."""
        scope, first = self._scope, self._known.get(("carry", group, 0))
        place = self._known.get(("place", group, 0)) or nowhere(scope, self._known)
        order = counted(scope, self._rows, after=first)
        self._known["place", group, 0] = place.named(self._put(place.name, order))
        for i, value in enumerate(made):
            key = ("carry", group, i)
            if first is not None:
                held = self._known[key].name
                value = value.named(scope.op("Concat", held, value.name, axis=0))
            self._known[key] = value

    def _carry(self, group: str) -> list[str]:
        """The examples' rows of a carry, in order."""
        held = [v.name for key, v in self._known.items() if key[:2] == ("carry", group)]
        if self._everyone or group in self._fresh:
            return held
        index = self._scope.op("Gather", self._known["place", group, 0].name, self._rows)
        return [self._scope.op("Gather", name, index) for name in held]

    def _decide(self, stage: int, logits: str) -> None:
        decided = self._parts.decisions[stage]
        given = [logits if what == "logits" else self._of(what) for what in decided.reads]
        found = dict(
            zip(OUTCOME, self._scope.splice(decided.model, given, "decision"), strict=True)
        )
        found[f"logits.{stage}"] = logits
        useful = self._parts.read_after(stage)
        for name, new in found.items():
            if name in useful:
                before = self._known["state", name, 0]
                self._known["state", name, 0] = before.named(self._put(before.name, new))

    def _of(self, name: str) -> str:
        """The examples' part of the state."""
        value = self._known["state", name, 0].name
        return value if self._everyone else self._scope.op("Gather", value, self._rows)

    def _put(self, values: str, new: str) -> str:
        """What all examples have, with these examples' replaced."""
        if self._everyone:
            return new
        index = self._scope.op("Unsqueeze", self._rows, self._scope.constant([1]))  # (m, 1)
        return self._scope.op("ScatterND", values, index, new)


def either(scope: Scope, rows: str, then: Scope, before: Known, after: Known) -> Known:
    """What is known whether or not there are any `rows`.

    Args:
        scope: Where to write the `If`.
        rows: Positions of examples.
        then: Where was written what runs if there are any.
        before: What is known if there are none.
        after: What is known in `then`.
    """
    otherwise = Scope(f"{then.prefix}.skipped")
    pairs = []
    for key, value in after.items():
        if value is not before.get(key):
            pairs.append((key, value, before.get(key) or _absent(otherwise, key, value, before)))
    some = scope.op("Greater", scope.op("Size", rows), scope.constant(0))
    found = scope.branch(some, then, otherwise, [(value, old.name) for _, value, old in pairs])
    return after | {key: value for (key, _, _), value in zip(pairs, found, strict=True)}


def _absent(scope: Scope, key: tuple[str, str, int], value: Value, known: Known) -> Value:
    """A carry that nobody has."""
    if key[0] == "place":
        return nowhere(scope, known)
    # of a free size any will do: where nothing is, there is nothing to fit
    row = (0 if isinstance(size, str) else size for size in value.row)
    return value.named(scope.constant(np.empty((0, *row)), value.dtype))


def nowhere(scope: Scope, known: Known) -> Value:
    """For every example of the batch -1."""
    size = scope.op("Shape", known["state", "node", 0].name)
    return Value(scope.op("Expand", scope.constant([-1]), size), INT)


def positions(scope: Scope, truths: str) -> str:
    """Where they are true, `(m,)`, ascending."""
    return scope.op("Reshape", scope.op("NonZero", truths), scope.constant([-1]))


def counted(scope: Scope, rows: str, *, after: Value | None = None) -> str:
    """Numbers for some rows from 0 on, or from the number of those that are held before."""
    if after is None:
        start = scope.constant(0)
    else:
        start = scope.op("Squeeze", scope.op("Shape", after.name, start=0, end=1))
    end = scope.op("Add", start, scope.op("Size", rows))
    return scope.op("Range", start, end, scope.constant(1))
