"""Networks by name, and a record that says how to build one again.

Layer: models.
"""

import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, final

from torch import nn

from offramp._core.checks import check_known
from offramp._core.errors import FileFormatError, InputError, UnsupportedError
from offramp._core.files import sha256
from offramp._core.lazy import Later
from offramp._core.registry import Registry
from offramp._core.schema import from_json
from offramp.models.foreign import FOREIGN
from offramp.models.heads import HEADS
from offramp.models.in_order import InOrder
from offramp.models.weights import load_weights

_BY_DEPTH: dict[str, Callable[..., nn.Module]] = {
    "resnet": Later("offramp.models.networks.resnet:cifar_resnet"),
    "preresnet": Later("offramp.models.networks.preresnet:cifar_preresnet"),
}
_DEPTHS = (8, 14, 20, 32, 44, 56, 110)

#: Networks by name; "resnet<depth>" and "preresnet<depth>" exist for every depth 6m + 2 besides,
#: but for "resnet50", which is the bottleneck network of that name.
MODELS: Registry[Callable[..., nn.Module]] = Registry(
    "model",
    {
        **{f"{k}{d}": partial(make, d) for k, make in _BY_DEPTH.items() for d in _DEPTHS},
        "resnet21": Later("offramp.models.networks.resnet:resnet21"),
        "small_cnn": Later("offramp.models.networks.small_cnn:small_cnn"),
        "alexnet": Later("offramp.models.networks.alexnet:alexnet"),
        "googlenet": Later("offramp.models.networks.googlenet:googlenet"),
        "resnet50": Later("offramp.models.networks.bottleneck:resnet50"),
        "densenet121": Later("offramp.models.networks.densenet:densenet121"),
        "inception_v3": Later("offramp.models.networks.inception:inception_v3"),
    },
)


#: What is made of another network, by name. The argument "model" says how to build that one, as a
#: `ModelSpec` in JSON values; the factory gets it built. What has to cut networks stands above.
WRAPPERS: Registry[Callable[..., nn.Module]] = Registry(
    "model", {"tapped": Later("offramp.stages.tapped:tapped"), "in_order": InOrder}
)

#: What is made of something that is imported, by name: the argument "call" is its "module:name".
CALLERS: Registry[Callable[..., nn.Module]] = Registry(
    "model", {"function": Later("offramp.models.on_rows:OnRows")}
)

#: What designs make, and what stands for a network of another machine.
_PARTS: dict[str, Callable[..., nn.Module]] = {
    "class_head": Later("offramp.models.class_heads:class_head"),
    "absent": Later("offramp.models.absent:Absent"),
}


@final
@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """How to build a network: what to call, with what, and which weights to load.

    Args:
        name: A registered name ("resnet20", "preresnet56", "resnet21", "small_cnn", any depth
            6m + 2; "alexnet", "googlenet", "resnet50", "densenet121", "inception_v3"), an exit
            head of `HEADS`, what `WRAPPERS` makes of a network, another package's network by that
            package's name ("timm"), or "module:callable", such as "mypackage.nets:small".
        arguments: Keyword arguments, JSON values only.
        weights: File of weights, or None for those that the callable makes.
        weights_sha256: Checksum that the file must have, 64 hexadecimal digits, or None.

    Raises:
        InputError: If `arguments` are not JSON values, or there is a checksum without a file.

    >>> from offramp._core.schema import to_json
    >>> to_json(ModelSpec(name="resnet20", arguments={"classes": 100}))["arguments"]
    {'classes': 100}
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    weights_sha256: str | None = None

    def __post_init__(self) -> None:
        try:
            plain = json.loads(json.dumps(dict(self.arguments), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"arguments of {self.name!r} must be JSON values, got {self.arguments!r}: {error}."
            ) from error
        object.__setattr__(self, "arguments", plain)
        if self.weights_sha256 is not None and self.weights is None:
            raise InputError("weights_sha256 needs weights, got weights=None.")


def build(spec: ModelSpec, *, allow_import: bool = True) -> nn.Module:
    """Build a network and load its weights.

    Args:
        spec: What to build.
        allow_import: False refuses "module:callable": such a name runs any code that is
            installed, so it must not come from a file that nobody has read.

    Returns:
        The network, in evaluation mode.

    Raises:
        UnknownNameError: If there is no model of this name; the nearest is suggested.
        UnsupportedError: If the module cannot be imported or has no such callable, or imports
            are not allowed.
        InputError: If the callable refuses the arguments or returns no `nn.Module`.
        FileFormatError: If the weights are missing, changed, or do not fit.

    >>> build(ModelSpec(name="resnet8", arguments={"width": 0.5})).linear.in_features
    32
    """
    make = imported(spec.name, allow_import) if ":" in spec.name else model_factory(spec.name)
    arguments = dict(spec.arguments)
    if spec.name in WRAPPERS:
        where = f"The argument 'model' of {spec.name}"
        inner = from_json(ModelSpec, arguments.pop("model", {}), where=where)
        arguments["model"] = build(inner, allow_import=allow_import)
    if spec.name in CALLERS:
        path = str(arguments.get("call"))
        arguments |= {"call": imported(path, allow_import), "name": path}
    try:
        module = make(**arguments)
    except TypeError as error:
        raise InputError(
            f"{spec.name} refuses {dict(spec.arguments)}: {error}.{_takes(make)}"
        ) from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{spec.name} must return an nn.Module, got {type(module).__name__}.")
    if spec.weights is not None:
        _check_sha256(Path(spec.weights), spec.weights_sha256)
        load_weights(module, spec.weights)
    return module.eval()


def _takes(make: Callable[..., nn.Module]) -> str:
    """What the arguments may be, as a sentence; nothing where it cannot be told."""
    try:
        names = list(inspect.signature(make).parameters)
    except (TypeError, ValueError):  # of a callable that is not written in Python
        return ""
    return f" Its arguments: {', '.join(names)}."


def model_factory(name: str) -> Callable[..., nn.Module]:
    """What builds the model, or the exit head, of this name.

    Raises:
        UnknownNameError: If there is none; the nearest is suggested.
        InputError: If a residual network cannot have this depth; the nearest are named.
    """
    for registered in (HEADS, WRAPPERS, CALLERS, FOREIGN, _PARTS):
        if name in registered:
            return registered[name]
    match = re.fullmatch(r"(resnet|preresnet)(\d+)", name)
    if match is None or name in MODELS:
        return MODELS[check_known("model", name, [*MODELS, *HEADS, *WRAPPERS, *FOREIGN])]
    return partial(_BY_DEPTH[match[1]], int(match[2]))


def imported(name: str, allow: bool = True) -> Callable[..., Any]:
    """What stands in a module under a name, "module:name".

    Raises:
        UnsupportedError: If imports are not allowed, or there is no such callable.

    >>> imported("math:sqrt")(4)
    2.0
    """
    if not allow:
        raise UnsupportedError(
            f"{name!r} would import and run code by name, which is not allowed here. Allow it "
            "only if you trust where the name comes from."
        )
    where, _, attribute = name.partition(":")
    try:
        value: Any = importlib.import_module(where)
    except (ImportError, ValueError, RuntimeError) as error:  # torchvision raises the last
        raise UnsupportedError(
            f"The module {where!r} of {name!r} cannot be imported: {error}. Install it, or "
            "correct the name; the form is 'module:callable'."
        ) from error
    for part in attribute.split("."):
        value = getattr(value, part, None)
    if not callable(value):
        raise UnsupportedError(f"The module {where!r} has no callable {attribute!r}, in {name!r}.")
    found: Callable[..., Any] = value
    return found


def _check_sha256(path: Path, wanted: str | None) -> None:
    if wanted is None:
        return
    if not path.is_file():
        raise FileFormatError(f"{path} is missing.")
    have = sha256(path)
    if have != wanted.lower():
        raise FileFormatError(
            f"{path} has changed: its SHA-256 is {have}, but {wanted} was expected."
        )
