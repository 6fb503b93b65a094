"""The walk: who visits which stage, who leaves where, and with what answer.

Examples are never reordered; those pending for a stage, whichever way they came, visit it
together. The host knows which way each part of them came, so each part decides by the rules of its
own path, and answers are made where examples leave.

An example whose logits at a stage hold NaN or infinity goes on to the last child, whatever the
rules say; where a service has failed, to the one that its `on_error` says; where its spending cap
is reached, nowhere, if a stage before it has answered. The last finite visited stage answers: as
the policy combines there, or alone where a stage before it was not finite.

Host synchronizations: one for each stage that is visited and has children, for the number of
examples that take each way. On the CPU one example decides by plain ifs.

Layer: runtime.  Source: methods.md 6.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from offramp._core.outputs import CAPPED, StageOutput
from offramp._core.topology import EXIT, Path
from offramp.runtime.fallback import Fallback
from offramp.runtime.inflight import InFlight
from offramp.runtime.prediction import REASONS, Left, Prediction, Rows

_NONFINITE, _FAILED, _SPENDING = map(REASONS.index, ("nonfinite", "failed", "spending"))

#: Examples that came the same way: its path, and their positions.
Part = tuple[Path, Rows]


def walk(flight: InFlight, start: Path | None = None) -> Prediction:
    """Take examples from the root to their answers, which come in their order.

    Args:
        flight: Examples that have visited nothing yet. Each stage that somebody reaches is visited
            once, in topological order.
        start: The way that all of them have come already, whose last stage has been heard; by
            default none.
    """
    n, program, mark = len(flight), flight.program, flight.mark
    begun = start or (program.topology.root,)
    pending: dict[int, list[Part]] = {begun[-1]: [(begun, None)]}
    left: list[Left] = []
    for stage in program.children:  # in topological order
        parts = pending.pop(stage, None)
        if parts is None:
            continue
        rows = _merge([rows for _, rows in parts], n)
        if not flight.has_heard(stage):
            flight.hear(stage, rows, flight.visit(stage, rows))
        for (path, part), child in decide(flight, parts):
            if child == EXIT:
                left.append(leave(flight, path, part))
            else:
                pending.setdefault(child, []).append(((*path, child), part))
        if mark is not None:
            mark("decision", stage, n if rows is None else len(rows))
    return program.answer(n, left)


def _merge(parts: Sequence[Rows], n: int) -> Rows:
    """All rows of the parts, ascending; None where they are the whole batch."""
    if len(parts) == 1:
        return parts[0]
    rows = torch.cat([part for part in parts if part is not None])
    return None if len(rows) == n else rows.sort().values


def at_hand(flight: InFlight, rows: Rows) -> bool:
    """True of one example whose numbers the host can look at without waiting."""
    of = flight.ids if rows is None else rows
    return of.shape[0] == 1 and flight.ids.device.type == "cpu"


def decide(flight: InFlight, parts: Sequence[Part]) -> list[tuple[Part, int]]:
    """What becomes of those who have just visited a stage.

    Args:
        flight: They and others.
        parts: All of them, by the way they came; their paths end at the stage.

    Returns:
        Those who leave (-1) and who goes on to which stage, parts without anybody left out.
    """
    stage = parts[0][0][-1]
    if len(parts) == 1 and at_hand(flight, rows := parts[0][1]):
        return [(parts[0], step(flight, parts[0][0], rows))]
    if flight.program.children[stage]:
        return _divide(flight, stage, parts)
    if not _is_finite(flight):
        _keep(flight, parts)
    return [(part, EXIT) for part in parts]


def step(flight: InFlight, path: Path, rows: Rows) -> int:
    """The action of one example on the CPU after the last stage of its path, by plain ifs."""
    stage = path[-1]
    at = flight.at(path, rows)
    finite = at.output(stage).all_finite()
    detour = EXIT if finite else _detours(flight, path, rows, at.output(stage))
    if not finite or flight.fallback is not None:
        _keep(flight, [(path, rows)])
    if not flight.program.children[stage]:
        return EXIT
    if flight.mark is not None:
        flight.mark("wait", stage, 1)
    return flight.program.policy.step(at) if finite else int(detour)


def leave(flight: InFlight, path: Path, rows: Rows) -> Left:
    """What those are answered who leave at the end of `path`."""
    if flight.fallback is not None:
        held = flight.fallback.take(rows)
        return path, rows, held.said, held, flight.paid(path, rows)
    said = flight.program.policy.says(flight.at(path, rows))
    return path, rows, said, None, flight.paid(path, rows)


def _is_finite(flight: InFlight) -> bool:
    """True where all is known to be finite; a device is not asked, the host would wait."""
    if flight.fallback is not None or flight.last is None or flight.ids.device.type != "cpu":
        return False
    return not len(flight.last) or flight.last.all_finite()


def _divide(flight: InFlight, stage: int, parts: Sequence[Part]) -> list[tuple[Part, int]]:
    policy, mark, children = flight.program.policy, flight.mark, flight.program.children[stage]
    actions, counts = list[Tensor](), list[Tensor]()
    for path, rows in parts:
        at = flight.at(path, rows)
        said = at.output(stage)
        finite = said.finite()
        detour = _detours(flight, path, rows, said)
        action = torch.where(finite, policy.decide(at)[0], detour)
        actions.append(action)
        counts += [(action == child).sum() for child in children] + [(~finite).sum()]
    if mark is not None:
        mark("decision", stage, 0)
    numbers = torch.stack(counts).tolist()
    if mark is not None:
        mark("wait", stage, 1)
    each = len(children) + 1
    if flight.fallback is not None or any(numbers[len(children) :: each]):
        _keep(flight, parts)
    found: list[tuple[Part, int]] = []
    for k, (path, rows) in enumerate(parts):
        going = numbers[k * each : (k + 1) * each - 1]
        for part, child in _divided(actions[k], rows, children, going):
            found.append(((path, part), child))
    return found


def _detours(flight: InFlight, path: Path, rows: Rows, said: StageOutput) -> Tensor | int:
    """Where those go whom the last stage of a path has not answered."""
    stage = path[-1]
    detour = flight.program.detours[stage]
    if stage not in flight.program.services or said.ranked is None or len(path) == 1:
        return detour
    stays = said.ranked[:, 0] == CAPPED
    if flight.fallback is not None:
        stays = stays & flight.fallback.take(rows).valid
    return torch.where(stays, EXIT, detour)


def _why(flight: InFlight, stage: int, said: StageOutput) -> Tensor:
    """What has happened to those whom a stage has not answered, as positions in `REASONS`."""
    service = stage in flight.program.services
    why = torch.full_like(flight.ids[: len(said)], _FAILED if service else _NONFINITE)
    if service and said.ranked is not None:
        why = why.masked_fill(said.ranked[:, 0] == CAPPED, _SPENDING)
    return why.to(torch.int8)


def _divided(
    action: Int[Tensor, " m"], rows: Rows, children: Sequence[int], going: Sequence[int]
) -> list[tuple[Rows, int]]:
    """Who leaves and who goes on to which child, given how many go to each; nobody is left out.

    Nothing is gathered where all do the same.
    """
    leaving = len(action) - sum(going)
    shares = [(EXIT, leaving), *zip(children, going, strict=True)]
    for way, count in shares:
        if count == len(action):
            return [(rows, way)]
    order = action.argsort(stable=True)  # those who leave (-1) first, then child by child
    start, found = 0, list[tuple[Rows, int]]()
    for way, count in shares:
        if count:
            part = order[start : start + count]
            found.append((part if rows is None else rows[part], way))
        start += count
    return found


def _keep(flight: InFlight, parts: Sequence[Part]) -> None:
    """Answers that hold whatever is not finite, now, before or later."""
    policy = flight.program.policy
    for path, rows in parts:
        at = flight.at(path, rows)
        combined = policy.says(at)
        spoken = len(path) > 1 and path[-2] not in flight.program.silent
        before = policy.says(flight.at(path[:-1], rows)) if spoken else None
        alone = combined
        if policy.combine != "last":
            log_probs = at.distribution(path[-1]).log_probs
            alone = StageOutput(classes=log_probs.shape[1], logits=log_probs)
        kept = flight.fallback or Fallback.none(len(flight), combined)
        said = at.output(path[-1])
        finite, why = said.finite(), _why(flight, path[-1], said)
        part = kept.take(rows).after(finite, combined=combined, before=before, alone=alone, why=why)
        if path[-1] in flight.program.silent:
            part = part.without(torch.ones_like(finite))
        if flight.program.services.get(path[-1]) == "refuse":
            part = part.without(~finite & (why == _FAILED))
        flight.fallback = kept.put(rows, part)
