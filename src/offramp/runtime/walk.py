"""The walk: who visits which stage, who leaves where, and with what answer.

Dataset are never reordered; those pending for a stage, whichever way they came, visit it
together. The host knows which way each part of them came, so each part decides by the rules of its
own path, and answers are made where examples leave.

An example whose logits at a stage hold NaN or infinity goes on to the last child, whatever the
rules say. The last finite visited stage answers: as the policy combines there, or alone where a
stage before it was not finite.

Host synchronizations: one for each stage that is visited and has children, for the number of
examples that take each way. On the CPU one example decides by plain ifs.

Layer: runtime.  Source: methods.md 6.
"""

from collections.abc import Sequence

import torch

from offramp._core.topology import EXIT, Path
from offramp.runtime.answer import Ends, Left, Prediction
from offramp.runtime.carries import Rows
from offramp.runtime.events import Mark, unmarked
from offramp.runtime.inflight import InFlight, Part


def walk(flight: InFlight, ends: Ends, mark: Mark = unmarked) -> Prediction:
    """Take examples from the root to their answers, which come in their order.

    Args:
        flight: Dataset that have visited nothing yet. Each stage that somebody reaches is visited
            once, in topological order.
        ends: What an answer says of each path of the policy.
        mark: Told of decisions.
    """
    if flight.at_hand(None):
        return _walk_one(flight, ends, mark)
    n, topology = len(flight), flight.program.topology
    pending: dict[int, list[Part]] = {topology.root: [((topology.root,), None)]}
    left: list[Left] = []
    for stage in topology.active:
        parts = pending.pop(stage, None)
        if parts is None:
            continue
        rows = _merge([rows for _, rows in parts], n)
        flight.hear(stage, rows, flight.visit(stage, rows))
        for (path, part), child in flight.decide(parts):
            if child == EXIT:
                left.append((path, part, *flight.predict(path, part)))
            else:
                pending.setdefault(child, []).append(((*path, child), part))
        mark("decision", stage, n if rows is None else len(rows))
    return ends.answer(n, left)


def _walk_one(flight: InFlight, ends: Ends, mark: Mark) -> Prediction:
    """One example on the CPU: there is nobody to wait for, to gather or to put in order."""
    path: Path = (flight.program.topology.root,)
    while True:
        stage = path[-1]
        if not flight.has_heard(stage):
            logits = flight.visit(stage, None)
            if not flight.hear_ahead(stage):
                flight.hear(stage, None, logits)
        path, child = flight.step(path, None)
        mark("decision", stage, 1)
        if child == EXIT:
            break
        path = (*path, child)
    answer = ends.answer(1, [(path, None, *flight.predict(path, None))])
    mark("decision", path[-1], 0)
    return answer


def _merge(parts: Sequence[Rows], n: int) -> Rows:
    """All rows of the parts, ascending; None where they are the whole batch."""
    if len(parts) == 1:
        return parts[0]
    rows = torch.cat([part for part in parts if part is not None])
    return None if len(rows) == n else rows.sort().values
