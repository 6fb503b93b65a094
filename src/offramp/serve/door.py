"""The plain door: images, texts and JSON rows as a person sends them with curl.

Layer: serve.
"""

import base64
import binascii
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offramp._core.errors import InputError
from offramp._core.open_inference import read_json
from offramp.serve.answers import columns_of, objects_of
from offramp.serve.errors import Endpoint, RequestError
from offramp.serve.model import ServedModel
from offramp.serve.protocol import hold, refused, serving_of
from offramp.serve.serving import APART, Answer, Options

_JSON, _FORM, _PLAIN = "application/json", "multipart/form-data", "text/plain"
_RAW = frozenset(  # those that curl and browsers send of themselves, too
    ("", "application/octet-stream", "application/x-www-form-urlencoded", _PLAIN)
)
_FIELDS = ("id", "priority", "timeout", "max_cost", "gear")
_WHOLE = ("priority", "timeout")


@final
@dataclass(frozen=True)
class Asked:
    """What somebody has sent: whom it asks, its rows, its options, and how many bytes to read."""

    served: ServedModel
    rows: Sequence[Any]
    options: Options
    size: int


async def asked_for(request: Request) -> Asked:
    """Read a request: images, texts, a form, or rows in JSON.

    Raises:
        RequestError: If it is too large, too slow, or of a type that is not read.
        InputError: If it cannot be read.
    """
    serving = serving_of(request)
    asked = dict(request.query_params)
    served = _model(request, asked.pop("model", None))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (_JSON, _FORM, *_RAW) and not kind.startswith("image/"):
        said = (
            "Content-Type must be of an image, multipart/form-data, application/json or "
            f"text/plain, got {kind[:80]!r}."
        )
        raise RequestError(415, said, {"Connection": "close"})
    body = await serving.body(request)
    told: Mapping[str, Any] = {}
    if kind == _JSON:
        rows, told = _rows_of(await serving.apart(len(body), read_json, body), served)
    elif kind == _FORM:
        rows, told = await _parts(request, body, served, serving.settings.max_rows)
    else:
        rows = [_single(body, served)]
    decoding = served.inputs.files is not None and any(isinstance(row, bytes) for row in rows)
    size = max(len(body), APART) if decoding else len(body)
    return Asked(served, rows, _options({**told, **asked}), size)


async def predict(request: Request) -> Response:
    """Answer images, texts or rows of numbers, one object for each."""
    began, serving, asked = time.monotonic(), serving_of(request), await asked_for(request)
    answer = await serving.answer(
        request,
        asked.served,
        len(asked.rows),
        partial(asked.served.inputs.of_rows, asked.rows),
        asked.options,
        size=asked.size,
        began=began,
    )
    return await serving.apart(answer.size, _response, asked.served, answer)


def _model(request: Request, name: str | None) -> ServedModel:
    """The model that is asked for, or the only one, as `hold`."""
    names = list(serving_of(request).repository.sources)
    if name is None and len(names) > 1:
        raise InputError(f"model must be one of {names}, as in /predict?model={names[0]}.")
    return hold(request, names[0] if name is None else name)


def _options(told: Mapping[str, Any]) -> Options:
    """Options of a JSON object, or of texts in an address or a form."""
    unknown = sorted(set(told) - set(_FIELDS))
    if unknown:
        raise InputError(
            f"There must be no fields beside rows and {list(_FIELDS)}, got {unknown[:5]}."
        )
    given = dict(told)
    for name in ("priority", "timeout", "max_cost"):
        if isinstance(text := given.get(name), str):
            try:
                given[name] = int(text[:20]) if name in _WHOLE else float(text)
            except ValueError:
                raise InputError(f"{name} must be a number, got {text[:40]!r}.") from None
    return Options.of(given.get("id"), given)


def _rows_of(told: Any, served: ServedModel) -> tuple[Sequence[Any], Mapping[str, Any]]:  # noqa: ANN401
    """The rows of a JSON body, and what it says beside them."""
    if isinstance(told, dict) and "rows" in told:
        rows, rest = told["rows"], {key: told[key] for key in told if key != "rows"}
    elif isinstance(told, dict) and served.inputs.kind not in ("columns", "tensor"):
        raise InputError('The body must be {"rows": [...]} or a list of rows.')
    else:
        rows, rest = told if isinstance(told, list) else [told], {}
    if not isinstance(rows, list) or not rows:
        raise InputError("rows must be a list of at least one row.")
    images = [c.name for c in served.inputs.columns if c.kind == "image"]
    if served.inputs.kind == "image":
        rows = [_unpacked(row, k) for k, row in enumerate(rows)]
    elif served.inputs.files is not None:
        rows = [_unpacked(row, k) if isinstance(row, dict) else row for k, row in enumerate(rows)]
    elif images:
        rows = [_with_images(row, images, k) for k, row in enumerate(rows)]
    return rows, rest


def _with_images(row: Any, names: Sequence[str], k: int) -> Any:  # noqa: ANN401
    if not isinstance(row, dict):
        return row
    return row | {name: _unpacked(row[name], k) for name in names if name in row}


def _unpacked(row: Any, k: int) -> bytes:  # noqa: ANN401
    """The bytes of an image that stands in JSON."""
    text = row.get("b64") if isinstance(row, dict) else row
    try:
        if isinstance(text, str):
            return base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError):
        pass
    raise InputError(f'rows[{k}] must be an image in base64, as {{"b64": "..."}} or a text.')


def _single(body: bytes, served: ServedModel) -> Any:  # noqa: ANN401
    """One row that is the whole body."""
    kind = served.inputs.kind
    numbers = body.lstrip()[:1] in (b"[", b"{")  # no file of an image begins so
    if kind == "image" or (served.inputs.files is not None and not numbers):
        return body
    if kind not in ("text", "rows"):
        names = [column.name for column in served.inputs.columns]
        raise InputError(
            f"Model {served.name!r} reads {names}: send JSON, with Content-Type: {_JSON}, such as "
            f'{{"rows": [...]}}; /v2/models/{served.name} tells the shapes. Image files are read '
            "where every transform begins with decode, and where the bundle says how they are cut."
        )
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise InputError("The body must be text in UTF-8, got other bytes.") from None


@final
class _Parser(MultiPartParser):
    """Keeps files in memory, whose size is bounded already: the disk may be read-only."""

    spool_max_size = 2**40


async def _parts(
    request: Request, body: bytes, served: ServedModel, most: int
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The rows of a form: each file is an image or a text; and its other fields."""

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _Parser(request.headers, once(), max_files=most, max_fields=64)
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:  # of starlette, and of what it uses
        raise InputError(f"The form cannot be read: {error}") from None
    except KeyError:
        raise InputError("The form cannot be read: Content-Type names no boundary.") from None
    rows, told = list[Any](), dict[str, Any]()
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                rows.append(_single(await value.read(), served))
            elif name in _FIELDS:
                told[name] = value
            elif served.inputs.kind == "text":
                rows.append(value)
            else:
                raise InputError(
                    f"The fields of a form must be files or among {list(_FIELDS)}, got "
                    f"{name[:40]!r}."
                )
    finally:
        await form.close()
    if not rows:
        raise InputError("The form must hold at least one file.")
    return rows, told


def _response(served: ServedModel, answer: Answer) -> Response:
    columns = columns_of(answer.prediction, served.model.class_names, answer.gear)
    answers = objects_of(columns)
    for name, one in zip(answer.names.tolist(), answers, strict=True):
        one["id"], one["path"] = name, one["path"].split(">") if one["path"] else []
    said = {
        "model": served.name,
        "version": served.version,
        "id": answer.id,
        "seconds": answer.seconds,
        "gear": answer.gear,
        "promise": answer.promise,
        "unit": None if served.model.costs is None else served.model.costs.unit,
        "answers": answers,
    }
    if answer.error is not None:
        said["errors"] = {str(k): str(error) for k, error in answer.error.errors.items()}
    body = json.dumps(said, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, media_type=_JSON)


def routes() -> list[Route]:
    """The address of the plain door."""
    return [Route("/predict", Endpoint(predict, refused), methods=["POST"])]
