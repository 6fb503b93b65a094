"""A model on another server, by the Open Inference Protocol (V2, REST), as a stage.

Triton, KServe, MLServer, OpenVINO Model Server and others speak it. A batch goes as one request, or
as several where it is large; the server keeps no example from another.

Layer: adapters.  Needs the extra `services`.
Source: kserve.github.io/open-inference-protocol, the REST part; `_core.open_inference`.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from offramp._core.arrays import array_of
from offramp._core.batch import batch_size, split_rows
from offramp._core.checks import check_class_names, check_positive_int
from offramp._core.errors import InputError, ServiceError
from offramp._core.open_inference import (
    BINARY,
    DATATYPES,
    HEADER_LENGTH,
    WireTensor,
    read_message,
    write_message,
)
from offramp._core.outputs import FAILED
from offramp._core.types import OnError
from offramp.adapters.answers import order_of
from offramp.adapters.connection import CallError, Connection, run
from offramp.adapters.http_metadata import (
    TYPES,
    HttpForm,
    count_of,
    inputs_told,
    is_of,
    names_told,
    outputs_told,
)
from offramp.adapters.http_settings import HttpSettings
from offramp.adapters.limits import Limits, limits_of
from offramp.stages import Stage
from offramp.stages.transforms import Transforms

_log = logging.getLogger(__name__)
_BINARY_TYPE = {"Content-Type": "application/octet-stream"}


def from_http(
    url: str,
    *,
    model: str,
    version: str = "",
    output: str | None = None,
    form: HttpForm = "logits",
    classes: int | None = None,
    class_names: Sequence[str] = (),
    key_env: str | None = None,
    transform: Transforms = None,
    max_batch: int = 64,
    on_error: OnError = "next",
    limits: Limits | dict[str, object] | None = None,
) -> Stage:
    """A model that another server runs, as a stage; its metadata are read once, here.

    Types are kept: what an input of the server cannot hold is refused, not converted. Tensors go in
    binary where the server says that it reads them so ("binary_tensor_data"), else as JSON.

    Args:
        url: Address of the server, such as "http://localhost:8000"; `/v2/models/...` is added.
        model: Name of the model there.
        version: Of the model; by default the server's own.
        output: Name of the logits; by default the only output of two axes. Of probabilities
            "probabilities".
        form: "logits", "probabilities" (as `offramp serve` answers), or "confidence", where the
            server has outputs "labels" and "confidence".
        classes: Number of classes, where the metadata do not tell.
        class_names: Their names, in the order that the stage then answers in; by default those in
            the model's parameters, where it has some. Where it has none, the order is the server's.
        key_env: As for `from_openai`; by default no key is sent.
        transform: Applied to the raw input first, here.
        max_batch: Examples in a request at most.
        on_error: As for `from_openai`.
        limits: As for `from_openai`.

    Raises:
        ServiceError: If the server refuses, has no such model, or does not answer.
        InputError: If the metadata do not tell what is needed, and no argument does; or if they
            tell another number of classes, or other names.
        MissingExtraError: If httpx or tenacity is not installed.
    """
    if classes is not None:
        check_positive_int("classes", classes)
    names = check_class_names(class_names, None)
    held = limits_of(limits)
    connection = Connection(url, key_env=key_env, limits=held)
    path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "")
    try:
        told = run(connection.ask(path))
        binary = run(_reads_binary(connection))
    except CallError as error:
        raise ServiceError(f"{connection.url} does not tell about {model!r}: {error}.") from None
    finally:
        run(connection.close())
    outputs, width = outputs_told(told, output, form)
    own = names_told(told)
    count = count_of(
        model, classes=classes, class_names=len(names), names_told=len(own), width=width
    )
    order = order_of(own, names) if own and names and own != names else ()
    settings = HttpSettings(
        url=connection.url,
        model=path.removeprefix("/v2/models/"),
        inputs=inputs_told(told),
        outputs=outputs,
        form=form,
        classes=count,
        class_names=names or own,
        order=tuple(order),
        binary=binary,
        key_env=key_env,
        max_batch=max_batch,
        on_error=on_error,
        limits=held,
    )
    return http_stage(settings, transform=transform)


def http_stage(settings: HttpSettings, *, transform: Transforms = None) -> Stage:
    """The stage that some settings describe; nobody is asked."""
    name = settings.model.split("/")[0]
    return Stage(
        name,
        RemoteNetwork(settings),
        transform=transform,
        outputs=settings.form,
        classes=settings.classes,
        class_names=settings.class_names,
    )


@final
class RemoteNetwork(nn.Module):
    """A network on another server.

    Args:
        settings: Of the stage.

    `counts` says how many requests were answered and failed, and why.
    """

    reads_rows = True
    asks_alone = True
    unit = None

    def __init__(self, settings: HttpSettings) -> None:
        super().__init__()
        self._connection = Connection(
            settings.url, key_env=settings.key_env, limits=settings.limits
        )
        self.settings = replace(settings, url=self._connection.url)
        self.on_error, self.waits = settings.on_error, settings.limits.concurrency
        self.counts: Counter[str] = Counter()

    def __deepcopy__(self, memo: dict[int, object]) -> "RemoteNetwork":
        return self  # one server has one connection

    def extra_repr(self) -> str:
        """Its address; no key."""
        return f"{self._connection!r}, model={self.settings.model!r}"

    @property
    def fingerprint(self) -> str:
        """The same for models that would answer alike."""
        settings = self.settings
        order = f" {settings.order}" if settings.order else ""
        return f"{settings.url} {settings.model} {settings.outputs}{order}"

    def forward(self, batch: Any) -> Any:  # noqa: ANN401  (what the stage declares)
        """Logits `(m, c)`, or labels and confidences `(m,)`; NaN where the server has failed.

        Raises:
            ServiceError: If the server cannot be used as it is set up.
        """
        m = batch_size(batch)
        sizes = [min(self.settings.max_batch, m - k) for k in range(0, m, self.settings.max_batch)]
        parts = split_rows(batch, sizes) if len(sizes) > 1 else [batch]
        answers = run(self._all(parts, sizes))
        joined = [torch.cat(tensors) for tensors in zip(*answers, strict=True)]
        if self.settings.form != "confidence":
            return joined[0]
        return {"labels": joined[0], "confidence": joined[1]}

    def close(self) -> None:
        """Close its connections; they open again where it is asked."""
        run(self._connection.close())

    async def _all(self, parts: Sequence[Any], sizes: Sequence[int]) -> list[list[Tensor]]:
        self._connection.refusal = None
        calls = map(self._part, parts, sizes)
        found = await asyncio.gather(*calls, return_exceptions=True)
        for answer in found:
            if isinstance(answer, BaseException):
                raise answer
        return found  # type: ignore[return-value]  # no errors are among them

    async def _part(self, batch: Any, m: int) -> list[Tensor]:  # noqa: ANN401
        settings, inputs = self.settings, self._inputs(batch, m)
        outputs = [{"name": name} for name in settings.outputs]
        told = {"outputs": outputs, "parameters": {"binary_data_output": settings.binary}}
        body, length = write_message(
            told if settings.binary else {},
            "inputs",
            inputs,
            binary=[settings.binary] * len(inputs),
        )
        headers = {} if length is None else {HEADER_LENGTH: str(length), **_BINARY_TYPE}
        path = f"/v2/models/{settings.model}/infer"
        try:
            said = await self._connection.ask(path, body, headers, read=_answered)
            found = self._read(said, m)
        except CallError as error:
            why = f"failed: {error}"
            if why not in self.counts:  # once for each reason
                _log.warning("The model %r at %s has %s", settings.model, settings.url, why)
            self.counts["failed"] += 1
            self.counts[why] += 1
            return self._nothing(m)
        self.counts["answered"] += 1
        return found

    def _nothing(self, m: int) -> list[Tensor]:
        if self.settings.form != "confidence":
            return [torch.full((m, self.settings.classes), math.nan)]
        return [torch.full((m,), FAILED), torch.full((m,), math.nan)]

    def _inputs(self, batch: Any, m: int) -> list[WireTensor]:  # noqa: ANN401
        declared = self.settings.inputs
        if isinstance(batch, Mapping):
            tensors = [batch.get(name) for name, _ in declared]
        elif isinstance(batch, tuple):
            tensors = list(batch)
        else:
            tensors = [batch]
        if len(tensors) != len(declared) or any(tensor is None for tensor in tensors):
            raise InputError(
                f"batch must hold the inputs {[name for name, _ in declared]} of "
                f"{self.settings.model!r}, got {_form(batch)}."
            )
        return [_put(*of, tensor, m) for of, tensor in zip(declared, tensors, strict=True)]

    def _read(self, said: Mapping[str, WireTensor], m: int) -> list[Tensor]:
        names, logits = self.settings.outputs, self.settings.form != "confidence"
        if missing := [name for name in names if name not in said]:
            raise CallError(f"no outputs {missing} in the answer")
        for name, kinds in zip(names, TYPES[self.settings.form], strict=True):
            values, kind = said[name].values, said[name].datatype
            if not is_of(kind, kinds):
                raise CallError(f"{name!r} of type {kind}, where {kinds}... is wanted")
            if not values.ndim or len(values) != m:
                raise CallError(f"{len(values) if values.ndim else 0} rows answered to {m}")
        found = [torch.from_numpy(said[name].values) for name in names]
        if logits and found[0].shape != (m, self.settings.classes):
            raise CallError(f"{names[0]!r} of shape {tuple(found[0].shape)}")
        order = self.settings.order
        if logits:
            return [(found[0][:, list(order)] if order else found[0]).float()]
        labels, confidence = (tensor.reshape(m, -1)[:, 0] for tensor in found)
        sure = confidence.float()
        if bool(((sure < 0) | (sure > 1)).any()):
            raise CallError("confidences outside [0, 1]")
        return [_turned(labels.long(), order) if order else labels.long(), sure]


async def _reads_binary(connection: Connection) -> bool:
    """Whether a server says so; one that says nothing about itself reads JSON."""
    try:
        told = await connection.ask("/v2")
    except CallError:
        return False
    extensions = told.get("extensions")
    return isinstance(extensions, list) and BINARY in extensions


def _answered(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """The outputs of an answer, by name."""
    _, tensors = read_message(body, headers.get(HEADER_LENGTH), "outputs")
    return {tensor.name: tensor for tensor in tensors}


def _turned(labels: Tensor, order: Sequence[int]) -> Tensor:
    """Labels in another order of the classes; those that name no class stay."""
    places = torch.tensor(order).argsort()
    inside = (labels >= 0) & (labels < len(places))
    return torch.where(inside, places[torch.where(inside, labels, 0)], labels)


def _put(name: str, kind: str, values: Any, m: int) -> WireTensor:  # noqa: ANN401
    """An input as the server reads it.

    Raises:
        InputError: If its type cannot hold the values exactly.
    """
    if kind == "BYTES":
        texts = np.empty((m, 1), dtype=object)
        texts[:, 0] = [value if isinstance(value, bytes) else str(value) for value in values]
        return WireTensor(name=name, datatype=kind, values=texts)
    held = array_of(f"batch[{name!r}]", values)
    wanted = DATATYPES[kind]
    if np.can_cast(held.dtype, wanted, "safe"):
        return WireTensor(name=name, datatype=kind, values=held.astype(wanted))
    whole = held.dtype.kind in "iu" and wanted.kind in "iu"
    if whole and held.size:
        low, high = np.iinfo(wanted).min, np.iinfo(wanted).max
        whole = low <= held.min() and held.max() <= high
    if not whole:
        raise InputError(
            f"Input {name!r} of the server must be {kind}, which cannot hold {held.dtype} as it "
            "is. Convert it in a transform of the stage (transform=...), where you mean it."
        )
    return WireTensor(name=name, datatype=kind, values=held.astype(wanted))


def _form(batch: Any) -> str:  # noqa: ANN401
    return str(list(batch)) if isinstance(batch, Mapping) else type(batch).__name__
