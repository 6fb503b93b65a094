"""What can be asked of a server, as OpenAPI and as a page that needs nothing from elsewhere.

Layer: serve.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from offramp._core.open_inference import DATATYPES, HEADER_LENGTH
from offramp.serve.errors import Endpoint
from offramp.serve.protocol import serving_of

Json = dict[str, Any]
_TEXT: Json = {"type": "string"}
_WHOLE: Json = {"type": "integer"}


def _object(required: Sequence[str] = (), /, **fields: Json) -> Json:
    found: Json = {"type": "object", "properties": fields}
    return found | ({"required": list(required)} if required else {})


def _list(of: Json, **more: Any) -> Json:  # noqa: ANN401
    return {"type": "array", "items": of, **more}


_OPTIONS: dict[str, Json] = {
    "priority": {**_WHOLE, "minimum": 0, "maximum": 9, "description": "1 is the highest; 0 is 5."},
    "timeout": {
        **_WHOLE,
        "minimum": 0,
        "maximum": 2**53 - 1,
        "description": "Microseconds from the arrival; 0 for the server's own deadline. Who cannot "
        "be answered by the next stage in time is answered by the last one visited.",
    },
    "max_cost": {
        "type": "number",
        "minimum": 0,
        "description": "The most that each example may cost, in the unit of the model's costs.",
    },
    "gear": {**_TEXT, "description": "The operating point to answer with, of the model's."},
}
_ID: Json = {**_TEXT, "maxLength": 256, "description": "Comes back; feedback names it."}
_ERROR = _object(["error"], error=_TEXT)
_SHAPE = _list({**_WHOLE, "minimum": 0}, minItems=1, maxItems=32)
_INPUT = _object(
    ["name", "shape", "datatype", "data"],
    name={**_TEXT, "minLength": 1},
    shape=_SHAPE,
    datatype={"enum": list(DATATYPES)},
    data={"type": "array", "items": {}},
    parameters={"type": "object"},
)
_OUTPUT = _object(["name", "shape", "datatype"], name=_TEXT, shape=_SHAPE, datatype=_TEXT)
_WANTED = _object(["name"], name=_TEXT, parameters={"type": "object"})
_INFER = _object(
    ["inputs"],
    id=_ID,
    parameters=_object((), **_OPTIONS, binary_data_output={"type": "boolean"}),
    inputs=_list(_INPUT, minItems=1),
    outputs=_list(_WANTED),
)
_INFERRED = _object(
    ["model_name", "model_version", "outputs"],
    model_name=_TEXT,
    model_version=_TEXT,
    id=_TEXT,
    outputs=_list(_OUTPUT),
)
_TOLD = _object(
    ["name", "versions", "platform", "inputs", "outputs"],
    name=_TEXT,
    versions=_list(_TEXT),
    platform=_TEXT,
    inputs=_list({"type": "object"}),
    outputs=_list({"type": "object"}),
)
_ANSWERS = _object(["model", "id", "answers"], model=_TEXT, id=_TEXT, answers=_list(_object()))
_READY = _object(["ready"], ready={"type": "boolean"})

_SAYS = {
    400: "The request is wrong; `error` says where, what is allowed, and what it had.",
    401: "The token is missing or wrong.",
    403: "It comes from the page of another site.",
    404: "There is no such model, version or address.",
    408: "The request did not come, or was not answered, in time.",
    413: "The body has too many bytes, or the request too many examples.",
    415: "The body is of a type that is not read.",
    429: "The queue is full; `Retry-After` says for how many seconds.",
    500: "A stage has failed on these examples.",
    503: "Not ready, or stopping.",
}


def _operation(
    summary: str,
    answer: Json,
    *,
    body: Mapping[str, Json] | None = None,
    statuses: Sequence[int] = (),
    parameters: Sequence[Json] = (),
    ok: str = "application/json",
    needed: bool = True,
) -> Json:
    errors = {str(s): _SAYS[s] for s in sorted({400, 401, 403, *statuses})}
    found: Json = {
        "summary": summary,
        "responses": {
            "200": {"description": "Done.", "content": {ok: {"schema": answer}}},
            **{
                status: {"description": said, "content": {"application/json": {"schema": _ERROR}}}
                for status, said in errors.items()
            },
        },
    }
    if parameters:
        found["parameters"] = list(parameters)
    if body is not None:
        content = {kind: {"schema": schema} for kind, schema in body.items()}
        found["requestBody"] = {"required": needed, "content": content}
    return found


def _query(name: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def description(names: Sequence[str], *, token: bool) -> Json:
    """The OpenAPI of a server.

    Args:
        names: Of its models.
        token: Whether it asks for one.
    """
    of_model = {"name": "model", "in": "path", "required": True, "schema": {"enum": list(names)}}
    of_version = {"name": "version", "in": "path", "required": True, "schema": _TEXT}
    paths: Json = {
        "/v2": {"get": _operation("Name, version and extensions", _object(["name"], name=_TEXT))},
        "/v2/health/live": {"get": _operation("Whether the server runs", _object())},
        "/v2/health/ready": {
            "get": _operation("Whether all models are ready", _READY, statuses=[503])
        },
        "/v2/models": {"get": _operation("Models that are ready", _object(models=_list(_TEXT)))},
        "/v2/repository/index": {
            "post": _operation(
                "All models and their states",
                _list(_object(["name", "state"], name=_TEXT, state=_TEXT)),
                body={"application/json": _object(ready={"type": "boolean"})},
                statuses=[408, 413, 415],
                needed=False,
            )
        },
        "/": {"get": _operation("A page to try it in", _TEXT, ok="text/html")},
        "/predict": {"post": _predict(names)},
        "/explain": {"post": _explain(names)},
        "/metrics": {"get": _operation("Figures for Prometheus", _TEXT, ok="text/plain")},
        "/v2/models/{model}/stats": {
            "parameters": [of_model],
            "get": _of_model("Queues, gear, audits and alarms", _object(["queue"], queue=_WHOLE)),
        },
        "/v2/models/{model}/feedback": {"parameters": [of_model], "post": _feedback()},
        "/v2/models/{model}/gear": {
            "parameters": [of_model],
            "post": _operation(
                "Hold a gear, or let the model move again",
                _object(["gear"]),
                body={"application/json": _object(["gear"], gear={"type": ["string", "null"]})},
                statuses=[404, 408, 413, 415, 503],
            ),
        },
    }
    for verb, summary in (("load", "Load a model, or load it again"), ("unload", "Let it go")):
        paths[f"/v2/repository/models/{{model}}/{verb}"] = {
            "parameters": [of_model],
            "post": _operation(
                summary,
                _object(["name", "state"], name=_TEXT, state=_TEXT),
                body={"application/json": _object(parameters={"type": "object"})},
                statuses=[404, 408, 413, 415, 500, 503],
                needed=False,
            ),
        }
    for base, of in (
        ("/v2/models/{model}", [of_model]),
        ("/v2/models/{model}/versions/{version}", [of_model, of_version]),
    ):
        paths[base] = {"parameters": of, "get": _of_model("What a model is", _TOLD)}
        for tail, summary, schema in (
            ("ready", "Whether it is ready", _READY),
            ("config", "How it is run", _object(["name"], name=_TEXT)),
        ):
            paths[f"{base}/{tail}"] = {"parameters": of, "get": _of_model(summary, schema)}
        paths[f"{base}/infer"] = {"parameters": of, "post": _infer()}
    told: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "offramp",
            "version": version("offramp"),
            "description": "Classifiers that spend on each input only what it needs.",
        },
        "paths": paths,
    }
    if token:
        told["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        told["security"] = [{"token": []}]
    return told


def _of_model(summary: str, answer: Json) -> Json:
    return _operation(summary, answer, statuses=[404, 503])


_ASKED = (404, 408, 413, 415, 429, 500, 503)


def _feedback() -> Json:
    label: Json = {"type": ["string", "integer"]}
    one = _object(["id", "label"], id=_TEXT, label=label)
    several = _object(["ids", "labels"], ids=_list(_TEXT), labels=_list(label))
    return _operation(
        "Labels that come after the answers; those of audited answers count",
        _object(["counted", "unknown"], counted=_WHOLE, unknown=_WHOLE),
        body={"application/json": {"oneOf": [one, several]}},
        statuses=[404, 408, 413, 415, 500, 503],
    )


def _infer() -> Json:
    found = _operation(
        "Answer examples, by the Open Inference Protocol",
        _INFERRED,
        body={"application/json": _INFER},
        statuses=_ASKED,
    )
    found["description"] = (
        "Outputs: label, probabilities, class_name, confidence, stage (where it left), path, cost, "
        "gear, reason (why it left there) and valid. With the header "
        f"{HEADER_LENGTH} the body is JSON and then binary tensors."
    )
    return found


def _predict(names: Sequence[str]) -> Json:
    binary: Json = {"type": "string", "format": "binary"}
    found = _operation(
        "Answer images, texts or rows, as a person sends them",
        _ANSWERS,
        body={
            "application/json": {
                "oneOf": [
                    _list({}, minItems=1),
                    _object(["rows"], rows=_list({}, minItems=1), id=_ID, **_OPTIONS),
                ]
            },
            "multipart/form-data": _object(["file"], file=_list(binary, minItems=1)),
            "image/*": binary,
            "text/plain": _TEXT,
        },
        parameters=[
            _query("model", {"enum": list(names)}),
            _query("id", _ID),
            *(_query(name, schema) for name, schema in _OPTIONS.items()),
        ],
        statuses=_ASKED,
    )
    found["description"] = (
        "An image: curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' .../predict. Several: "
        "curl -F file=@a.jpg -F file=@b.jpg .../predict. A text: curl -d 'some text' .../predict. "
        'Rows of numbers or of fields: JSON, {"rows": [...]}.'
    )
    return found


def _explain(names: Sequence[str]) -> Json:
    found = _predict(names)
    found["summary"] = "What each stage says of one example, and why it goes on or leaves"
    found["description"] = "One image, text or row, as for /predict; it shares no batch."
    visits = _list(_object(["stage", "goes_to"], stage=_TEXT))
    answer = _object(["label", "reason", "visits"], reason=_TEXT, visits=visits)
    found["responses"]["200"]["content"]["application/json"]["schema"] = answer
    return found


async def openapi(request: Request) -> Response:
    """The description."""
    serving = serving_of(request)
    told = description(list(serving.repository.sources), token=serving.settings.token is not None)
    return JSONResponse(told)


async def docs(request: Request) -> Response:
    """The description as a page."""
    serving = serving_of(request)
    told = description(list(serving.repository.sources), token=serving.settings.token is not None)
    return HTMLResponse(page(told))


_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
summary { cursor: pointer; padding: .4rem 0; }
code, pre { font: 14px/1.4 ui-monospace, monospace; }
pre { overflow: auto; padding: .6rem; border: 1px solid gray; }
.verb { display: inline-block; min-width: 3.5rem; font-weight: 700; }
details { border-bottom: 1px solid color-mix(in srgb, currentColor 15%, transparent); }
"""


def page(told: Json) -> str:
    """A description as one page of HTML, without scripts."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>offramp: what can be asked</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(told['info']['title'])} {escape(told['info']['version'])}</h1>",
        f"<p>{escape(told['info']['description'])}</p>",
        "<p>The same for programs: <a href='/openapi.json'>/openapi.json</a>.</p>",
    ]
    for path, methods in told["paths"].items():
        for verb in ("get", "post"):
            if verb in methods:
                parts.append(_shown(path, verb, methods[verb]))
    return "".join([*parts, "</body></html>"])


def _shown(path: str, verb: str, operation: Json) -> str:
    parts = [
        f"<details><summary><span class='verb'>{verb.upper()}</span> <code>{escape(path)}</code> ",
        f"{escape(operation['summary'])}</summary>",
        f"<p>{escape(operation.get('description', ''))}</p>",
    ]
    for parameter in operation.get("parameters", ()):
        schema = escape(json.dumps(parameter["schema"]))
        parts.append(f"<p><code>?{escape(parameter['name'])}</code> {schema}</p>")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = escape(json.dumps(content["schema"], indent=1))
        parts.append(f"<p>Body, <code>{escape(kind)}</code>:</p><pre>{schema}</pre>")
    for status, answer in operation["responses"].items():
        parts.append(f"<p><code>{status}</code> {escape(answer['description'])}</p>")
    return "".join([*parts, "</details>"])


def routes() -> list[Route]:
    """The addresses of the description."""
    return [
        Route("/openapi.json", Endpoint(openapi), methods=["GET"]),
        Route("/docs", Endpoint(docs), methods=["GET"]),
    ]
