"""Stages of a cascade made of what people have: models of other packages, functions, services.

Each adapter returns a `Stage` with its transform, its class names where they are known, and how a
bundle builds it again. The package that it needs is imported when it is called.

Layer: adapters.
"""

from offramp._core.lazy import lazy

_HOME: dict[str, str] = {
    "Limits": "offramp.adapters.limits",
    "Prices": "offramp.adapters.openai_settings",
    "from_http": "offramp.adapters.http",
    "from_openai": "offramp.adapters.openai",
    "from_function": "offramp.adapters.of_functions",
    "from_huggingface": "offramp.adapters.of_huggingface",
    "from_onnx": "offramp.adapters.of_onnx",
    "from_sklearn": "offramp.adapters.of_sklearn",
    "from_timm": "offramp.adapters.of_timm",
    "from_torchvision": "offramp.adapters.of_torchvision",
    "in_order": "offramp.adapters.answers",
    "timm_exits": "offramp.adapters.of_timm",
}

__all__ = sorted(_HOME)

__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return list(__all__)
