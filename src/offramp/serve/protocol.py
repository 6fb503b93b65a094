"""The Open Inference Protocol (V2, REST): health, metadata, inference, and the model repository.

With the binary tensor, classification and schedule policy extensions, as Triton has them.

Layer: serve.  Source: kserve.github.io/open-inference-protocol; Triton's extensions.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from offramp._core.errors import InputError
from offramp._core.open_inference import (
    BINARY,
    HEADER_LENGTH,
    WireTensor,
    read_json,
    read_message,
    write_message,
)
from offramp.serve.answers import columns_of, outputs_told, tensors_of
from offramp.serve.errors import HELD, Endpoint, RequestError
from offramp.serve.model import ServedModel
from offramp.serve.serving import Answer, Options, Serving

EXTENSIONS = (
    BINARY,
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
)
#: Types of bodies that may be requests: those that clients send without being asked, too.
_TYPES = frozenset(
    {
        *("", "application/json", "application/octet-stream"),
        *("text/plain", "application/x-www-form-urlencoded"),
    }
)


def serving_of(request: Request) -> Serving:
    """The state of the server that a request has come to."""
    found: Serving = request.app.state.serving
    return found


def refused(request: Request, status: int) -> None:
    """Count a request that is not answered."""
    serving_of(request).refused(request, status)


def model_of(request: Request) -> ServedModel:
    """The model that the address of a request names, as `hold`."""
    path = request.path_params
    return hold(request, path["model"], path.get("version"))


def hold(request: Request, name: str, version: str | None = None) -> ServedModel:
    """A model for a request: until that is answered, it stays open, even if another is loaded.

    Raises:
        UnknownNameError: As `Repository.get`, like what follows.
        RequestError: If it is not loaded now.
    """
    served = serving_of(request).repository.get(name, version)
    request.scope[HELD].enter_context(served.used())
    return served


# ---- health and metadata


async def live(request: Request) -> Response:
    """Whether the server runs."""
    return JSONResponse({"live": True})


async def ready(request: Request) -> Response:
    """Whether every model is loaded and warm."""
    yes = serving_of(request).repository.ready and not serving_of(request).stopping
    return JSONResponse({"ready": yes, "live": True}, 200 if yes else 503)


async def server(request: Request) -> Response:
    """Name, version and extensions."""
    told = {"name": "offramp", "version": version("offramp"), "extensions": list(EXTENSIONS)}
    return JSONResponse(told)


async def models(request: Request) -> Response:
    """The names of the models that are ready."""
    index = serving_of(request).repository.index(ready=True)
    return JSONResponse({"models": [entry["name"] for entry in index]})


async def metadata(request: Request) -> Response:
    """Inputs, outputs, class names and promise of a model."""
    served = model_of(request)
    told: dict[str, Any] = {
        "name": served.name,
        "versions": [served.version],
        "platform": "offramp_bundle",
        "inputs": [column.told for column in served.inputs.columns],
        "outputs": outputs_told(served.model),
        "parameters": parameters_of(served),
    }
    return JSONResponse(told)


def parameters_of(served: ServedModel) -> dict[str, Any]:
    """What is known of a model beside the protocol's own fields."""
    model = served.model
    reference = model.candidate.reference
    told: dict[str, Any] = {"stages": list(model.stage_names), "reference": reference}
    if model.class_names:
        told["class_names"] = list(model.class_names)
    if (sentence := getattr(model.choice, "sentence", None)) is not None:
        told["choice"] = sentence
    if (promise := served.promise(model.gear)) is not None:
        told["promise"] = promise
    if model.gears:
        told["gears"] = {
            gear.name: {"promise": served.promise(gear.name), "cost_ratio": gear.cost_ratio}
            for gear in model.gears
        }
        told["gear"] = served.gear(None)
    if model.costs is not None:
        told["unit"] = model.costs.unit
    return told


async def model_ready(request: Request) -> Response:
    """Whether a model is loaded and warm."""
    try:
        served = model_of(request)
    except RequestError:
        return JSONResponse({"name": request.path_params["model"], "ready": False}, 503)
    return JSONResponse({"name": served.name, "ready": True})


async def config(request: Request) -> Response:
    """How a model is run."""
    served, settings = model_of(request), serving_of(request).settings
    told = {
        "name": served.name,
        "platform": "offramp_bundle",
        "max_batch_size": settings.max_rows,
        "input": [column.told for column in served.inputs.columns],
        "output": outputs_told(served.model),
        "parameters": parameters_of(served),
    }
    return JSONResponse(told)


# ---- inference


async def infer(request: Request) -> Response:
    """Answer a request, in JSON or with binary tensors."""
    began, serving, served = time.monotonic(), serving_of(request), model_of(request)
    check_type(request, _TYPES)
    body = await serving.body(request)
    length = request.headers.get(HEADER_LENGTH)
    if length == "0":
        told, tensors = _raw(served, body)
    else:
        told, tensors = await serving.apart(len(body), read_message, body, length, "inputs")
    parameters = _parameters(told, "parameters")
    options = Options.of(told.get("id"), parameters)
    wanted = _wanted(told)
    answer = await serving.answer(
        request,
        served,
        _rows(tensors),
        partial(served.inputs.of_tensors, tensors),
        options,
        size=len(body),
        began=began,
    )
    return await serving.apart(answer.size, _response, served, answer, wanted, parameters)


def check_type(request: Request, known: frozenset[str]) -> None:
    """Raise `RequestError` unless the body of a request is of a type that is read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in known:
        raise RequestError(
            415,
            f"Content-Type must be application/json, got {kind[:80]!r}.",
            {"Connection": "close"},
        )


def _rows(tensors: Sequence[WireTensor]) -> int:
    values = tensors[0].values
    if values.ndim == 0:
        raise InputError("inputs[0].shape must begin with the number of examples, got [].")
    return len(values)


def _raw(served: ServedModel, body: bytes) -> tuple[dict[str, Any], list[WireTensor]]:
    """One example, whose body is its only input."""
    from offramp._core.open_inference import from_bytes

    columns = served.inputs.columns
    known = columns[0].shape is not None and -1 not in columns[0].shape
    if len(columns) > 1 or not (known or columns[0].kind == "image"):
        raise InputError(
            f"A body alone can be a request where a model has one input of one size, got "
            f"{[column.told for column in columns]}."
        )
    column, kind = columns[0], columns[0].told["datatype"]
    if kind == "BYTES":
        body = len(body).to_bytes(4, "little") + body
    shape = (1, *(() if kind == "BYTES" else column.shape or ()))
    values = from_bytes(body, kind, shape, f"inputs[{column.name!r}]")
    tensor = WireTensor(name=column.name, datatype=kind, values=values)
    return {"parameters": {"binary_data_output": True}}, [tensor]


def _parameters(told: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    found = told.get("parameters")
    if not isinstance(found, dict | None):
        raise InputError(f"{where} must be an object, got {type(found).__name__}.")
    return found or {}


def _wanted(told: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The outputs that a request names, with their parameters."""
    outputs = told.get("outputs") or []
    if not isinstance(outputs, list):
        raise InputError(f"outputs must be a list, got {type(outputs).__name__}.")
    found: dict[str, Mapping[str, Any]] = {}
    for k, output in enumerate(outputs):
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str):
            raise InputError(f"outputs[{k}] must be an object with a name.")
        found[name] = _parameters(output, f"outputs[{k}].parameters")
    return found


def _response(
    served: ServedModel,
    answer: Answer,
    wanted: Mapping[str, Mapping[str, Any]],
    parameters: Mapping[str, Any],
) -> Response:
    names = served.model.class_names
    columns = columns_of(answer.prediction, names, answer.gear)
    tensors = tensors_of(columns, wanted, names)
    usual = parameters.get("binary_data_output", False)
    binary = [wanted.get(tensor.name, {}).get("binary_data", usual) is True for tensor in tensors]
    told: dict[str, Any] = {
        "model_name": served.name,
        "model_version": served.version,
        "id": answer.id,
    }
    said = {"gear": answer.gear, "promise": answer.promise}
    if answer.error is not None:
        said["errors"] = str(answer.error)
    if given := {key: text for key, text in said.items() if text}:
        told["parameters"] = given
    body, length = write_message(told, "outputs", tensors, binary=binary)
    if length is None:
        return Response(body, media_type="application/json")
    headers = {HEADER_LENGTH: str(length)}
    return Response(body, media_type="application/octet-stream", headers=headers)


# ---- the repository


async def index(request: Request) -> Response:
    """All models, and whether they are ready."""
    told = await _told(request)
    return JSONResponse(serving_of(request).repository.index(ready=told.get("ready") is True))


async def load(request: Request) -> Response:
    """Load a model, or load it again; the old one answers until the new one is warm."""
    await _told(request)
    name = request.path_params["model"]
    version = await serving_of(request).whole.load(name)
    return JSONResponse({"name": name, "version": version, "state": "READY"})


async def unload(request: Request) -> Response:
    """Let a model go."""
    await _told(request)
    name = request.path_params["model"]
    await serving_of(request).whole.unload(name)
    return JSONResponse({"name": name, "state": "UNAVAILABLE"})


async def _told(request: Request) -> Mapping[str, Any]:
    body = await serving_of(request).body(request)
    told = read_json(body) if body.strip() else {}
    if not isinstance(told, dict):
        raise InputError("The body must be a JSON object, or nothing.")
    _parameters(told, "parameters")
    return told


_MODEL, _VERSION = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"


def infer_routes() -> list[Route]:
    """The addresses that answer for models, which are asked most."""
    answering = Endpoint(infer, refused)
    return [Route(f"{at}/infer", answering, methods=["POST"]) for at in (_MODEL, _VERSION)]


def routes() -> list[Route]:
    """The addresses of the protocol."""
    gets = {
        "/v2": server,
        "/v2/health/live": live,
        "/v2/health/ready": ready,
        "/v2/models": models,
        **{base: metadata for base in (_MODEL, _VERSION)},
        **{f"{base}/ready": model_ready for base in (_MODEL, _VERSION)},
        **{f"{base}/config": config for base in (_MODEL, _VERSION)},
    }
    posts = {
        "/v2/repository/index": index,
        "/v2/repository/models/{model}/load": load,
        "/v2/repository/models/{model}/unload": unload,
    }
    return [
        *infer_routes(),
        *(Route(path, Endpoint(endpoint), methods=["GET"]) for path, endpoint in gets.items()),
        *(Route(path, Endpoint(endpoint), methods=["POST"]) for path, endpoint in posts.items()),
    ]
