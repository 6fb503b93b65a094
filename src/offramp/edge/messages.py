"""A request of a device, and what it is told.

Layer: edge.  Needs numpy.
"""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from offramp._core.errors import InputError
from offramp._core.open_inference import (
    HEADER_LENGTH,
    WireTensor,
    datatype_of,
    read_message,
    write_message,
)
from offramp.edge.calls import CallError, Calls


def message_of(sent: Mapping[str, NDArray[Any]]) -> tuple[bytes, int]:
    """A request with these tensors in binary, and the length of what stands in front of them."""
    tensors = [
        WireTensor(name=name, datatype=datatype_of(values), values=values)
        for name, values in sent.items()
    ]
    told = {"parameters": {"binary_data_output": True}}
    body, length = write_message(told, "inputs", tensors, binary=[True] * len(tensors))
    return body, length or 0


def outputs_of(
    calls: Calls, model: str, body: bytes, length: int, headers: Mapping[str, str]
) -> dict[str, NDArray[Any]]:
    """The outputs of a server's answer to a request of `message_of`, by name.

    Raises:
        CallError: If it cannot be had, or cannot be read.
    """
    headers = {
        **headers,
        "Content-Type": "application/octet-stream",
        HEADER_LENGTH: str(length),
    }
    _, said, content = calls.ask(f"/v2/models/{model}/infer", body, headers)
    try:
        _, tensors = read_message(content, said.get(HEADER_LENGTH.lower()), "outputs")
    except InputError as error:
        raise CallError(f"an answer that cannot be read: {error}") from None
    return {tensor.name: tensor.values for tensor in tensors}
