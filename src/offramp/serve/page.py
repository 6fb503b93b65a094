"""The page of a server: an example on its way through the stages, and what goes on meanwhile.

The page is one file that asks the same addresses as everybody (docs/how-to/serve.md).

Layer: serve.
"""

import asyncio
from importlib.resources import files
from math import isnan
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from offramp._core.errors import InputError
from offramp.runtime import Prediction, Visit
from offramp.serve.bodies import WhileThere
from offramp.serve.door import asked_for
from offramp.serve.errors import Endpoint
from offramp.serve.model import ServedModel
from offramp.serve.observer import cost_of_reference
from offramp.serve.protocol import refused, serving_of

_TOP = 5  # classes that are told of each stage
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


async def page(request: Request) -> Response:
    """The page; it holds nothing of the models."""
    text = files("offramp.serve").joinpath("files/page.html").read_text("utf-8")
    return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY})


async def explain(request: Request) -> Response:
    """What each stage says of one example, and why it goes on or leaves."""
    serving, asked = serving_of(request), await asked_for(request)
    served, rows = asked.served, asked.rows
    if len(rows) != 1:
        raise InputError(f"One example can be explained at a time, got {len(rows)}.")
    gear = served.gear(asked.options.gear)

    def run() -> dict[str, Any]:
        example = served.inputs.of_rows(rows)
        answer, visits = served.executor.explain(example, asked.options.id or 0, gear=gear)
        return _told(served, answer, visits)

    with served.admission.of(1):
        async with WhileThere(request, serving.settings.deadline):
            told = await asyncio.to_thread(run)
    return JSONResponse({"model": served.name, "gear": gear, **told})


def _told(served: ServedModel, answer: Prediction, visits: tuple[Visit, ...]) -> dict[str, Any]:
    names, reference = served.model.class_names, cost_of_reference(served.model)

    def name(k: int) -> str:
        return names[k] if 0 <= k < len(names) else str(k)

    def told(visit: Visit) -> dict[str, Any]:
        top = []
        if visit.probabilities is not None:
            order = visit.probabilities.argsort(descending=True, stable=True)[:_TOP].tolist()
            top = [{"class": name(k), "probability": float(visit.probabilities[k])} for k in order]
        return {
            "stage": visit.stage,
            "top": top,
            "class": None if visit.label is None else name(visit.label),
            "confidence": visit.confidence,
            "score": visit.score,
            "goes_to": visit.goes_to,
            "seconds": visit.seconds,
            "cost": visit.cost,
        }

    valid = bool(answer.valid[0])
    return {
        "label": int(answer.labels[0]) if valid else None,
        "class": name(int(answer.labels[0])) if valid else None,
        "confidence": None if answer.confidence is None else float(answer.confidence[0]),
        "reason": answer.reasons[0],
        "cost": None if answer.cost is None else float(answer.cost[0]),
        "reference_cost": None if isnan(reference) else reference,
        "visits": [told(visit) for visit in visits],
    }


def routes() -> list[Route]:
    """The page, and what it asks that nobody else does."""
    return [
        Route("/", Endpoint(page), methods=["GET"]),
        Route("/explain", Endpoint(explain, refused), methods=["POST"]),
    ]
