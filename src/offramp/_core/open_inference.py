"""Tensors of the Open Inference Protocol (V2, REST), as JSON and in its binary extension.

Types are kept: a datatype is what its name says, and what does not fit it is refused instead of
converted. JSON knows no NaN; null stands for it in answers.

Layer: _core.  Source: kserve.github.io/open-inference-protocol; the binary tensor extension as
Triton documents it: each tensor's bytes follow the JSON, in order, little-endian; each element of
BYTES has its length before it, in 4 bytes.
"""

import base64
import binascii
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, Literal, NoReturn, final

import numpy as np
from numpy.typing import NDArray

from offramp._core.errors import InputError

#: Numpy's type of each datatype, little-endian. BYTES are arrays of objects, each of bytes.
DATATYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * k}": np.dtype(f"<u{k}") for k in (1, 2, 4, 8)},
    **{f"INT{8 * k}": np.dtype(f"<i{k}") for k in (1, 2, 4, 8)},
    **{f"FP{8 * k}": np.dtype(f"<f{k}") for k in (2, 4, 8)},
    "BYTES": np.dtype(object),
}
#: Header of a message with binary tensors: how many bytes its JSON has.
HEADER_LENGTH: Final = "Inference-Header-Content-Length"
BINARY: Final = "binary_tensor_data"  # the extension, as servers announce it

Side = Literal["inputs", "outputs"]
_PREFIX = np.dtype("<u4")
_RANGES: Final[dict[str, tuple[Any, Any]]] = {
    kind: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    if dtype.kind in "iu"
    else (float(np.finfo(dtype).min), float(np.finfo(dtype).max))
    for kind, dtype in DATATYPES.items()
    if dtype.kind in "iuf"
}


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class WireTensor:
    """A tensor on its way.

    Args:
        name: Of the input or output.
        datatype: One of `DATATYPES`.
        values: Of its shape and numpy's type; of BYTES an array of objects.
        parameters: What else was said of it.
    """

    name: str
    datatype: str
    values: NDArray[Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)


def datatype_of(values: NDArray[Any]) -> str:
    """The datatype of an array.

    Raises:
        InputError: If the protocol has none for it.

    >>> datatype_of(np.zeros(3, dtype="float32")), datatype_of(np.array(["a"]))
    ('FP32', 'BYTES')
    """
    if values.dtype.kind in "OUS":
        return "BYTES"
    kind = values.dtype.newbyteorder("<")
    for name, known in DATATYPES.items():
        if known == kind:
            return name
    raise InputError(f"values must be of a type that the protocol has, got {values.dtype}.")


# ---- reading


def read_message(
    body: bytes, header_length: str | None, side: Side
) -> tuple[dict[str, Any], list[WireTensor]]:
    """The JSON of a request or an answer, and its tensors.

    Args:
        body: All of it.
        header_length: What the header `HEADER_LENGTH` says; None where there is none.
        side: Where its tensors are.

    Raises:
        InputError: If it is no such message; the field is named.

    >>> body = b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5]}]}'
    >>> read_message(body, None, "inputs")[1][0].values.tolist()
    [[1.0, 2.5]]
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    told = read_json(body[:length])
    if not isinstance(told, dict):
        raise InputError(f"The body must be a JSON object, got {_kind(told)}.")
    entries = told.get(side)
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{side} must be a list of at least one tensor, got {_shown(entries)}.")
    binary, found = memoryview(body)[length:], list[WireTensor]()
    for k, entry in enumerate(entries):
        tensor, used = _read(entry, f"{side}[{k}]", binary, gaps=side == "outputs")
        binary = binary[used:]
        found.append(tensor)
    if len(binary):
        raise InputError(
            f"The body must end with its tensors, and {len(binary)} bytes follow them. "
            f"'binary_data_size' of each tensor and the header {HEADER_LENGTH} must say what is "
            "there."
        )
    names = [tensor.name for tensor in found]
    if len(set(names)) < len(names):
        raise InputError(f"{side} must have different names, got {names}.")
    return told, found


def read_json(body: bytes) -> Any:  # noqa: ANN401  (whatever stands there)
    """JSON as the standard has it: without NaN and Infinity, and not too deep.

    Raises:
        InputError: If it is none.
    """
    try:
        return _DECODER.decode(body.decode(json.detect_encoding(body), "surrogatepass"))
    except RecursionError:
        raise InputError("The body must be JSON of fewer levels; it is nested too deep.") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise InputError(f"The body must be JSON: {error}.") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}; send such numbers as binary tensors")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)  # json.loads would make one for each
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def _length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
        raise InputError(
            f"The header {HEADER_LENGTH} must be the bytes of the JSON, a whole number of at most "
            f"{most}, the size of the body, got {text[:40]!r}."
        )
    return int(text)


def _read(entry: object, where: str, binary: memoryview, *, gaps: bool) -> tuple[WireTensor, int]:
    """One tensor, and how many of the binary bytes are its own."""
    if not isinstance(entry, dict):
        raise InputError(f"{where} must be an object, got {_kind(entry)}.")
    name, kind, parameters = (entry.get(key) for key in ("name", "datatype", "parameters"))
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}.name must be a text, got {_shown(name)}.")
    if not isinstance(kind, str) or kind not in DATATYPES:
        raise InputError(
            f"{where}.datatype must be one of {', '.join(DATATYPES)}, got {_shown(kind)}."
        )
    if not isinstance(parameters, dict | None):
        raise InputError(f"{where}.parameters must be an object, got {_kind(parameters)}.")
    parameters = parameters or {}
    shape = _shape(entry.get("shape"), where)
    size, data = parameters.get("binary_data_size"), entry.get("data")
    if "shared_memory_region" in parameters:
        raise InputError(f"{where} must come with the request: shared memory is not supported.")
    if (size is None) == (data is None):
        raise InputError(
            f"{where} must have either 'data' or the parameter 'binary_data_size', got "
            f"{'both' if data is not None else 'neither'}."
        )
    if size is None:
        values, size = _from_json(data, kind, shape, where, parameters, gaps=gaps), 0
    else:
        if type(size) is not int or not 0 <= size <= len(binary):
            raise InputError(
                f"{where}.parameters.binary_data_size must be in [0, {len(binary)}], the bytes "
                f"that are left of the body, got {_shown(size)}."
            )
        values = from_bytes(binary[:size], kind, shape, where)
    return WireTensor(name=name, datatype=kind, values=values, parameters=parameters), size


def _shape(shape: object, where: str) -> tuple[int, ...]:
    whole = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not isinstance(shape, list) or not whole or len(shape) > 32:
        raise InputError(
            f"{where}.shape must be a list of whole numbers of at least 0, got {_shown(shape)}."
        )
    return tuple(shape)


def from_bytes(data: memoryview | bytes, kind: str, shape: Sequence[int], where: str) -> Any:  # noqa: ANN401
    """A tensor of its binary form, in memory of its own.

    Args:
        data: Its bytes.
        kind: Its datatype.
        shape: Its shape.
        where: What messages call it.

    Raises:
        InputError: If there are more or fewer bytes.
    """
    count = math.prod(shape)
    if kind == "BYTES":
        return _elements(data, count, where).reshape(shape)
    dtype = DATATYPES[kind]
    if len(data) != count * dtype.itemsize:
        raise InputError(
            f"{where} must have {count * dtype.itemsize} bytes, {kind} of shape {list(shape)}, got "
            f"{len(data)}."
        )
    values = np.frombuffer(data, dtype=dtype).reshape(shape)
    if kind == "BOOL":
        raw = values.view(np.uint8)
        if raw.size and raw.max() > 1:
            raise InputError(f"{where} must hold 0 or 1, as BOOL does, got {raw.max()}.")
    return values.copy()


def _elements(data: memoryview | bytes, count: int, where: str) -> NDArray[Any]:
    found, at, view = list[bytes](), 0, memoryview(data)
    while at < len(view) and len(found) < count:
        size = int(np.frombuffer(view[at : at + 4], dtype=_PREFIX)[0]) if at + 4 <= len(view) else 0
        at += 4
        if at + size > len(view):
            break
        found.append(bytes(view[at : at + size]))
        at += size
    if len(found) != count or at != len(view):
        raise InputError(
            f"{where} must hold {count} elements of BYTES, each with its length before it in 4 "
            f"bytes, little-endian; its {len(view)} bytes are not that."
        )
    return _objects(found)


def _from_json(
    data: object,
    kind: str,
    shape: tuple[int, ...],
    where: str,
    parameters: Mapping[str, Any],
    *,
    gaps: bool,
) -> NDArray[Any]:
    flat, count = _flat(data, shape, where), math.prod(shape)
    if len(flat) != count:
        raise InputError(
            f"{where}.data must have {count} elements, as its shape {list(shape)} says, got "
            f"{len(flat)}."
        )
    if kind == "BYTES":
        return _objects(_texts(flat, where, parameters)).reshape(shape)
    allowed = {bool} if kind == "BOOL" else {int, float} if kind.startswith("FP") else {int}
    odd = set(map(type, flat)) - allowed
    if gaps and kind.startswith("FP") and type(None) in odd:
        flat, odd = [math.nan if value is None else value for value in flat], odd - {type(None)}
    if odd:
        value = next(value for value in flat if type(value) in odd)
        words = {"BOOL": "true or false", "FP": "numbers"}
        wanted = next((w for k, w in words.items() if kind.startswith(k)), "whole numbers")
        raise InputError(f"{where}.data must be {wanted}, as {kind} says, got {_shown(value)}.")
    if kind != "BOOL" and flat:
        low, high = _RANGES[kind]
        known = [value for value in flat if value == value] if gaps else flat
        for value in (min(known, default=0), max(known, default=0)):
            if not low <= value <= high:  # numpy would wrap it, or make infinity of it
                raise InputError(f"{where}.data must fit into {kind}, got {_shown(value)}.")
    return np.array(flat, dtype=DATATYPES[kind]).reshape(shape)


def _flat(data: object, shape: tuple[int, ...], where: str) -> Sequence[Any]:
    """Its elements; nested lists must be nested as the shape says."""
    if not isinstance(data, list):
        raise InputError(f"{where}.data must be a list, got {_kind(data)}.")
    found, depth = data, 1
    while found and isinstance(found[0], list):
        level = shape[depth] if depth < len(shape) else -1
        if not all(isinstance(part, list) and len(part) == level for part in found):
            raise InputError(
                f"{where}.data must be flat, or nested as its shape {list(shape)} says."
            )
        found, depth = list(chain.from_iterable(found)), depth + 1
    if depth > 1 and depth < len(shape):
        raise InputError(f"{where}.data must be flat, or nested as its shape {list(shape)} says.")
    return found


def _texts(flat: Sequence[Any], where: str, parameters: Mapping[str, Any]) -> list[bytes]:
    odd = next((value for value in flat if type(value) is not str), None)
    if odd is not None:
        raise InputError(f"{where}.data must be texts, as BYTES says, got {_shown(odd)}.")
    try:
        if parameters.get("content_type") == "base64":
            return [base64.b64decode(value, validate=True) for value in flat]
        return [value.encode() for value in flat]
    except (binascii.Error, ValueError):  # UnicodeEncodeError is one: half of a pair
        raise InputError(
            f"{where}.data must be base64, as its parameter content_type says, or whole Unicode."
        ) from None


# ---- writing


def write_message(
    told: Mapping[str, Any], side: Side, tensors: Sequence[WireTensor], *, binary: Sequence[bool]
) -> tuple[bytes, int | None]:
    """A request or an answer, and the bytes of its JSON where binary tensors follow, else None.

    Args:
        told: What it says beside its tensors.
        side: Where they go.
        tensors: They.
        binary: For each whether it is binary.

    Raises:
        InputError: If BYTES that are no text stand in JSON, or numbers in a request are not finite.

    >>> x = WireTensor(name="x", datatype="UINT8", values=np.array([[7]], dtype="uint8"))
    >>> write_message({"id": "1"}, "inputs", [x], binary=[True])[1]
    103
    """
    entries, parts = list[dict[str, Any]](), list[bytes]()
    for tensor, as_bytes in zip(tensors, binary, strict=True):
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.values.shape),
        }
        parameters = dict(tensor.parameters)
        if as_bytes:
            parts.append(to_bytes(tensor))
            parameters["binary_data_size"] = len(parts[-1])
        else:
            entry["data"] = _to_json(tensor, gaps=side == "outputs")
        if parameters:
            entry["parameters"] = parameters
        entries.append(entry)
    header = _ENCODER.encode({**told, side: entries}).encode()
    return b"".join([header, *parts]), len(header) if any(binary) else None


def to_bytes(tensor: WireTensor) -> bytes:
    """A tensor in its binary form."""
    if tensor.datatype != "BYTES":
        return np.ascontiguousarray(tensor.values, dtype=DATATYPES[tensor.datatype]).tobytes()
    each = [_encoded(value) for value in tensor.values.flat]
    return b"".join(len(value).to_bytes(4, "little") + value for value in each)


def _to_json(tensor: WireTensor, *, gaps: bool) -> list[Any]:
    values = tensor.values.reshape(-1)
    if tensor.datatype == "BYTES":
        try:
            return [_encoded(value).decode() for value in values]
        except UnicodeDecodeError:
            raise InputError(
                f"{tensor.name!r} must be text to stand in JSON; send it as a binary tensor."
            ) from None
    flat: list[Any] = values.tolist()
    if tensor.datatype.startswith("FP") and not np.isfinite(values).all():
        if not gaps:
            raise InputError(f"{tensor.name!r} must be finite to stand in JSON; send it binary.")
        return [value if math.isfinite(value) else None for value in flat]
    return flat


def _encoded(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def _objects(values: Sequence[Any]) -> NDArray[Any]:
    held = np.empty(len(values), dtype=object)
    held[:] = values
    return held


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")


_shown = reprlib.repr  # bounded, however deep
