"""A model on another server, by the Open Inference Protocol (V2, REST, JSON), as a stage.

Triton, KServe, MLServer, OpenVINO Model Server and others speak it. A batch goes as one request, or
as several where it is large; the server keeps no example from another.

Layer: adapters.  Needs the extra `services`.
Source: kserve.github.io/open-inference-protocol, the REST part.
"""

import asyncio
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from offramp._core.batch import batch_size, split_rows
from offramp._core.checks import check_choice, check_class_names, check_positive_int
from offramp._core.errors import InputError, ServiceError
from offramp._core.outputs import FAILED
from offramp._core.types import OnError
from offramp.adapters.answers import order_of
from offramp.adapters.connection import CallError, Connection, checked_url, run
from offramp.adapters.limits import Limits, limits_of
from offramp.adapters.service import ON_ERROR
from offramp.stages import Stage
from offramp.stages.transforms import Transforms

_TYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
_TEXT = "BYTES"
_NAMES_IN = ("class_names", "labels", "classes")  # of a model's parameters
HttpForm = Literal["logits", "confidence"]


@final
@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """All that is known of such a stage, without its key; most fields are those of `from_http`.

    `inputs` and `outputs` hold the names and types of tensors, as the server has told them; `order`
    says for each class of the answer which of the server's it is, where the order is another.
    """

    url: str
    model: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]
    form: HttpForm
    classes: int
    class_names: tuple[str, ...] = ()
    order: tuple[int, ...] = ()
    key_env: str | None = None
    max_batch: int = 64
    on_error: OnError = "next"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        checked_url(self.url, self.key_env)
        if re.fullmatch(r"[\w.-]*\w[\w.-]*(/versions/\w[\w.-]*)?", str(self.model)) is None:
            raise InputError(
                "model must be the name of a model on the server, of letters, digits, '.', '_' and "
                f"'-', got {self.model!r}."
            )
        check_choice("form", self.form, ("logits", "confidence"))
        check_choice("on_error", self.on_error, ON_ERROR)
        check_positive_int("max_batch", self.max_batch)
        for name, kind in self.inputs:
            check_choice(f"the type of input {name!r}", kind, (*_TYPES, _TEXT))
        wanted = 1 if self.form == "logits" else 2
        if not self.inputs or len(self.outputs) != wanted or self.classes < 2:
            raise InputError(
                f"A stage of {self.form} needs inputs, {wanted} outputs and at least 2 classes, "
                f"got {len(self.inputs)}, {list(self.outputs)} and {self.classes}."
            )
        check_class_names(self.class_names, self.classes)
        if self.order and sorted(self.order) != list(range(self.classes)):
            raise InputError(
                f"order must have each of 0 to {self.classes - 1} once, got {self.order[:20]}."
            )


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

    Args:
        url: Address of the server, such as "http://localhost:8000"; `/v2/models/...` is added.
        model: Name of the model there.
        version: Of the model; by default the server's own.
        output: Name of the logits; by default the only output of two axes.
        form: "logits"; or "confidence", where the server has outputs "labels" and "confidence".
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
    except CallError as error:
        raise ServiceError(f"{connection.url} does not tell about {model!r}: {error}.") from None
    finally:
        run(connection.close())
    outputs, width = _outputs_told(told, output, form)
    own = _names_told(told)
    count = _count(model, classes=classes, class_names=len(names), names_told=len(own), width=width)
    order = order_of(own, names) if own and names and own != names else ()
    settings = HttpSettings(
        url=connection.url,
        model=path.removeprefix("/v2/models/"),
        inputs=_inputs_told(told),
        outputs=outputs,
        form=form,
        classes=count,
        class_names=names or own,
        order=tuple(order),
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
        if self.settings.form == "logits":
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
        body = {"inputs": self._inputs(batch, m)}
        try:
            said = await self._connection.ask(f"/v2/models/{self.settings.model}/infer", body)
            found = self._read(said, m)
        except CallError as error:
            self.counts["failed"] += 1
            self.counts[f"failed: {error}"] += 1
            return self._nothing(m)
        self.counts["answered"] += 1
        return found

    def _nothing(self, m: int) -> list[Tensor]:
        if self.settings.form == "logits":
            return [torch.full((m, self.settings.classes), math.nan)]
        return [torch.full((m,), FAILED), torch.full((m,), math.nan)]

    def _inputs(self, batch: Any, m: int) -> list[dict[str, Any]]:  # noqa: ANN401
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

    def _read(self, said: Mapping[str, Any], m: int) -> list[Tensor]:
        try:
            held = {output["name"]: output for output in said["outputs"]}
            found = [_tensor(held[name]) for name in self.settings.outputs]
        except (LookupError, TypeError, ValueError, RuntimeError, OverflowError):
            raise CallError(f"no outputs {list(self.settings.outputs)} in the answer") from None
        for tensor in found:
            if not tensor.dim() or len(tensor) != m:
                rows = len(tensor) if tensor.dim() else 0
                raise CallError(f"{rows} rows answered to {m}")
        logits = self.settings.form == "logits"
        if logits and found[0].shape != (m, self.settings.classes):
            raise CallError(f"logits of shape {tuple(found[0].shape)}")
        order = self.settings.order
        if logits:
            return [(found[0][:, list(order)] if order else found[0]).float()]
        labels, confidence = (tensor.reshape(m, -1)[:, 0] for tensor in found)
        sure = confidence.float()
        if labels.is_floating_point() or bool(((sure < 0) | (sure > 1)).any()):
            raise CallError("labels that are no integers, or confidences outside [0, 1]")
        return [_turned(labels.long(), order) if order else labels.long(), sure]


def _turned(labels: Tensor, order: Sequence[int]) -> Tensor:
    """Labels in another order of the classes; those that name no class stay."""
    places = torch.tensor(order).argsort()
    inside = (labels >= 0) & (labels < len(places))
    return torch.where(inside, places[torch.where(inside, labels, 0)], labels)


def _put(name: str, kind: str, values: Any, m: int) -> dict[str, Any]:  # noqa: ANN401
    if kind == _TEXT:
        return {"name": name, "shape": [m, 1], "datatype": kind, "data": [str(v) for v in values]}
    tensor = values if isinstance(values, Tensor) else torch.as_tensor(values)
    data = tensor.to("cpu", _TYPES[kind])
    return {
        "name": name,
        "shape": list(data.shape),
        "datatype": kind,
        "data": data.flatten().tolist(),
    }


def _tensor(output: Mapping[str, Any]) -> Tensor:
    kind = _TYPES[output["datatype"]]
    return torch.tensor(_flat(output["data"]), dtype=kind).reshape(output["shape"])


def _flat(data: Any) -> list[Any]:  # noqa: ANN401  (nested lists are allowed as well)
    if data and isinstance(data[0], list):
        return [value for part in data for value in _flat(part)]
    return list(data)


def _inputs_told(told: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    try:
        return tuple((str(one["name"]), str(one["datatype"])) for one in told["inputs"])
    except (LookupError, TypeError):
        raise InputError("The metadata of the model do not name its inputs.") from None


def _outputs_told(
    told: Mapping[str, Any], output: str | None, form: HttpForm
) -> tuple[tuple[str, ...], int]:
    """Names of the outputs that are read, and how many columns the logits have; 0 if unknown."""
    try:
        shapes = {str(one["name"]): list(one["shape"]) for one in told["outputs"]}
    except (LookupError, TypeError):
        raise InputError("The metadata of the model do not name its outputs.") from None
    if form == "confidence":
        wanted: tuple[str, ...] = ("labels", "confidence")
    else:
        flat = [name for name, shape in shapes.items() if len(shape) == 2]
        wanted = (output,) if output is not None else tuple(flat)
    missing = [name for name in wanted if name not in shapes]
    if missing or not wanted or (form == "logits" and len(wanted) > 1):
        raise InputError(
            f"output must name the logits among the model's outputs {shapes}, got {output!r}; for "
            "form='confidence' there must be 'labels' and 'confidence'."
        )
    last = shapes[wanted[0]][-1] if form == "logits" else 0
    return wanted, last if isinstance(last, int) and last > 1 else 0


def _names_told(told: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names out of a model's parameters, where it has some."""
    parameters = told.get("parameters")
    if not isinstance(parameters, Mapping):
        return ()
    for name in _NAMES_IN:
        found = parameters.get(name)
        if isinstance(found, list) and len(found) > 1 and all(isinstance(f, str) for f in found):
            return tuple(found)
    return ()


def _count(
    model: str, *, classes: int | None, class_names: int, names_told: int, width: int
) -> int:
    """The number of classes, on which all agree who tell it; 0 and None tell nothing."""
    told = {
        "the argument classes": classes,
        "the argument class_names": class_names,
        "the class names in the metadata": names_told,
        "the width of the output in the metadata": width,
    }
    found = {who: count for who, count in told.items() if count}
    if not found:
        raise InputError(f"classes must be given: the metadata of {model!r} do not tell it.")
    if len(set(found.values())) > 1:
        said = ", ".join(f"{count} by {who}" for who, count in found.items())
        raise InputError(
            f"The number of classes of {model!r} must be one, got {said}. Correct the arguments, "
            "or the model's metadata on the server."
        )
    return next(iter(found.values()))


def _form(batch: Any) -> str:  # noqa: ANN401
    return str(list(batch)) if isinstance(batch, Mapping) else type(batch).__name__
