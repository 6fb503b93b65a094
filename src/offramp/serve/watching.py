"""What is known of the models while they are served: figures, late labels, gears.

Layer: serve.
"""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from offramp._core.errors import InputError, UnknownNameError
from offramp._core.open_inference import read_json
from offramp.serve.errors import Endpoint
from offramp.serve.protocol import model_of, serving_of

_HELD = ("queue", "waiting", "gear", "gears", "held")


async def metrics(request: Request) -> Response:
    """Everything that is counted, for Prometheus."""
    serving = serving_of(request)
    return Response(await serving.whole.metrics(), media_type=serving.metrics.kind)


async def stats(request: Request) -> Response:
    """Queues, gear, audits and alarms of a model."""
    return JSONResponse(await serving_of(request).whole.stats(request.path_params["model"]))


async def feedback(request: Request) -> Response:
    """Labels that come after the answers: one, or several."""
    served, told = model_of(request), await _told(request)
    one, several = ("id", "label"), ("ids", "labels")
    if set(told) not in ({*one}, {*several}):
        raise InputError(f"The body must have the fields {one} or {several}, got {sorted(told)}.")
    single = "id" in told
    ids, labels = ([told["id"]], [told["label"]]) if single else (told["ids"], told["labels"])
    if not isinstance(ids, list) or not isinstance(labels, list):
        raise InputError("ids and labels must be lists, one label for each id.")
    if odd := [value for value in ids if type(value) is not str]:
        raise InputError(f"ids must be texts, as answers name them, got {str(odd[0])[:40]}.")
    if odd := [value for value in labels if type(value) not in (str, int)]:
        raise InputError(f"labels must be names or numbers of classes, got {str(odd[0])[:40]}.")
    if served.observer is None:
        return JSONResponse({"counted": 0, "unknown": len(ids)})
    try:
        came = served.observer.feedback(ids, labels)
    except UnknownNameError as error:  # of a class, which is no address
        raise InputError(str(error)) from None
    return JSONResponse({"counted": came.counted, "unknown": came.unknown})


async def gear(request: Request) -> Response:
    """Hold a gear, or let the model move again."""
    name, told = model_of(request).name, await _told(request)
    if set(told) != {"gear"} or not isinstance(told["gear"], str | None):
        raise InputError('The body must be {"gear": name}, or {"gear": null} to let it move.')
    whole = serving_of(request).whole
    await whole.hold(name, told["gear"])
    stats = await whole.stats(name)
    return JSONResponse({key: stats[key] for key in _HELD})


async def _told(request: Request) -> Mapping[str, Any]:
    told = read_json(await serving_of(request).body(request))
    if not isinstance(told, dict):
        raise InputError("The body must be a JSON object.")
    return told


def routes() -> list[Route]:
    """The addresses of what is watched."""
    model = "/v2/models/{model}"
    return [
        Route("/metrics", Endpoint(metrics), methods=["GET"]),
        Route(f"{model}/stats", Endpoint(stats), methods=["GET"]),
        Route(f"{model}/feedback", Endpoint(feedback), methods=["POST"]),
        Route(f"{model}/gear", Endpoint(gear), methods=["POST"]),
    ]
