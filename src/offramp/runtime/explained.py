"""One example, stage by stage: what each visited stage said, and why the example went on or left.

It is the walk of `offramp.runtime.walk`, with a look at every stage; the answer is the same.

Layer: runtime.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from offramp._core.batch import batch_size
from offramp._core.errors import InputError
from offramp._core.topology import EXIT, Path
from offramp._core.types import AnyBatch
from offramp.runtime.adaptive import Adaptive
from offramp.runtime.inflight import InFlight
from offramp.runtime.prediction import Prediction
from offramp.runtime.walk import decide, leave


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """What one stage said of one example, and what came of it.

    Args:
        stage: Name of the stage.
        label: What the example would be answered if it left here; None where nobody has answered.
        confidence: Largest probability of that answer, in [0, 1], or what the stage stated; None
            where it states none.
        probabilities: Of the classes, by this stage alone, after the policy's temperature, `(c,)`;
            None where the stage gives no scores, or they are not finite.
        score: By the rule for leaving: at 0 and above the example leaves. None where nothing
            follows.
        goes_to: Name of the next stage; None where the example left.
        seconds: Time that the stage took, everything it needed included.
        cost: Cost of everything up to here, in the unit of the model's costs; None without costs.
    """

    stage: str
    label: int | None
    confidence: float | None
    probabilities: Float[Tensor, " c"] | None
    score: float | None
    goes_to: str | None
    seconds: float
    cost: float | None


@torch.inference_mode()
def explain(
    model: Adaptive, example: AnyBatch, id: int | str = 0
) -> tuple[Prediction, tuple[Visit, ...]]:
    """Run one example and tell what happened at each stage.

    Args:
        model: What runs.
        example: A batch of one example.
        id: Its key, for policies that draw at random.

    Returns:
        The answer, as `model` gives it, and the stages visited, in order.

    Raises:
        InputError: If `example` holds another number of examples, or as `Adaptive.forward` does.
        UnsupportedError: As `Adaptive.forward` does.

    >>> from offramp.stages import Cascade
    >>> cascade = Cascade.from_models({"a": torch.nn.Linear(4, 3), "b": torch.nn.Linear(4, 3)})
    >>> answer, visits = explain(Adaptive.single(cascade, "b"), torch.zeros(1, 4))
    >>> [visit.stage for visit in visits], visits[-1].goes_to, visits[-1].score
    (['b'], None, None)
    """
    n = batch_size(model.program.take_in(example))
    if n != 1:
        raise InputError(f"example must be a batch of one example, got {n}. Take batch[:1].")
    visits: list[Visit] = []
    answer = model._answered(example, [id], None, partial(_look_on, visits=visits))
    return answer, tuple(visits)


def _look_on(flight: InFlight, *, visits: list[Visit]) -> Prediction:
    path: Path = (flight.program.topology.root,)
    while True:
        began = time.perf_counter()
        said = flight.visit(path[-1], None)
        said.all_finite()  # waits for the device
        seconds = time.perf_counter() - began
        flight.hear(path[-1], None, said)
        ((way, _), child), *_ = decide(flight, [(path, None)])
        visits.append(_visit(flight, way, child, seconds))
        if child == EXIT:
            return flight.program.answer(1, [leave(flight, way, None)])
        path = (*way, child)


def _visit(flight: InFlight, path: Path, child: int, seconds: float) -> Visit:
    program, stage = flight.program, path[-1]
    here = program.answer(1, [leave(flight, path, None)])
    at = flight.at(path, None)
    said = at.output(stage)
    scored = said.logits is not None and said.all_finite()
    score = None
    if program.children[stage]:
        score = float(program.policy.decide(at)[1])
    return Visit(
        stage=program.topology.names[stage],
        label=int(here.labels) if bool(here.valid) else None,
        confidence=_number(here.confidence) if bool(here.valid) else None,
        probabilities=at.distribution(stage).log_probs[0].exp() if scored else None,
        score=score,
        goes_to=None if child == EXIT else program.topology.names[child],
        seconds=seconds,
        cost=_number(here.cost),
    )


def _number(values: Tensor | None) -> float | None:
    return None if values is None else float(values[0])
