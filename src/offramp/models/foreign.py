"""Networks of other packages, built by name from plain data.

Nothing is downloaded, and nothing imported but the package, so that whoever loads a bundle need not
allow imports.

Layer: models.
"""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from offramp._core.checks import check_choice, check_known
from offramp._core.errors import InputError, MissingExtraError, UnknownNameError, UnsupportedError
from offramp._core.optional import imported
from offramp._core.registry import Registry
from offramp.models.estimator import Estimator

#: Arguments of timm with which it would read files, or look for some elsewhere.
_READING = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
)


#: Networks of torchvision that were trained on images scaled otherwise, and scale theirs.
SCALING = ("googlenet", "inception_v3")

#: How the classes of transformers are called that classify, by what they read.
TASKS = {"image": "ForImageClassification", "text": "ForSequenceClassification"}
_LOADING = ("auto_map", "quantization_config", "attn_implementation", "use_pretrained_backbone")
#: Of a configuration, what says nothing about how to build the network.
DROPPED = (*_LOADING, "transformers_version", "dtype", "torch_dtype", "label2id")


def package(name: str, extra: str) -> Any:  # noqa: ANN401  (an optional package)
    """Import a package of networks.

    Raises:
        MissingExtraError: If it is not installed.
        UnsupportedError: If it does not fit the installed torch.

    >>> package("json", "none").loads("1")
    1
    """
    try:
        return imported(name, extra)
    except MissingExtraError:
        raise
    except RuntimeError as error:  # torchvision, where its operations are of another torch
        raise UnsupportedError(
            f"{name} cannot be imported: {error}. Install the versions of torch and torchvision "
            "that belong together."
        ) from error


def check_options(options: Mapping[str, Any]) -> None:
    """Raise `InputError` where options of timm say which weights to read."""
    reading = [name for name in _READING if options.get(name)]
    if reading:
        raise InputError(
            f"options must not say where weights come from, got {reading}. The name of the "
            "network says it with its tag, as in 'resnet18.a1_in1k', or checkpoint= does."
        )


def check_class_count(options: Mapping[str, Any]) -> None:
    """Raise `InputError` where options ask for a network that does not tell classes apart."""
    count = options.get("num_classes", 2)
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise InputError(
            f"num_classes must be an integer of at least 2, got {count!r}: a stage says which of "
            "several classes it is. Networks without a head are for Cascade.from_network."
        )


def check_architecture(timm: Any, architecture: str) -> None:  # noqa: ANN401
    """Raise `UnknownNameError` unless timm has a network of this name."""
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownNameError(f"timm {timm.__version__} has no network {architecture!r}.{hint}")


def timm_network(*, architecture: str, **options: Any) -> nn.Module:  # noqa: ANN401
    """A network of timm without its weights.

    Args:
        architecture: A name of `timm.list_models()`.
        options: As `timm.create_model` takes them.

    Raises:
        UnknownNameError: If timm has no such network.
        InputError: If an option would read files or download something.
    """
    timm = package("timm", "timm")
    check_options(options)
    check_architecture(timm, architecture)
    made: nn.Module = timm.create_model(architecture, pretrained=False, **options)
    return made


def check_classifier(models: Any, architecture: str) -> None:  # noqa: ANN401
    """Raise `UnknownNameError` unless `torchvision.models` has a classifier of this name."""
    check_known("classifier of torchvision", architecture, models.list_models(module=models))


def torchvision_network(*, architecture: str, **options: Any) -> nn.Module:  # noqa: ANN401
    """A classifier of torchvision without its weights.

    Args:
        architecture: A name of `torchvision.models.list_models(module=torchvision.models)`; those
            of detectors would download a backbone.
        options: As `torchvision.models.get_model` takes them.

    Raises:
        UnknownNameError: If torchvision has no such classifier.
        InputError: If an option would download something.
    """
    models = package("torchvision", "torchvision").models
    check_classifier(models, architecture)
    if options.get("weights"):
        raise InputError("options must not say where weights come from, got ['weights'].")
    if architecture in SCALING:
        options.setdefault("init_weights", False)  # which takes minutes
    made: nn.Module = models.get_model(architecture, **{**options, "weights": None})
    return made


def auto_model(transformers: Any, task: str) -> Any:  # noqa: ANN401  (of an optional package)
    """The class of transformers that makes classifiers for a task of `TASKS`."""
    return getattr(transformers, f"AutoModel{TASKS[check_choice('task', task, TASKS)]}")


def huggingface_network(*, task: str, config: Mapping[str, Any]) -> nn.Module:
    """A classifier of transformers without its weights, from its configuration.

    Args:
        task: "image" or "text".
        config: Its configuration: "model_type" and what that takes.

    Raises:
        UnknownNameError: If transformers has no such type.
        InputError: If that is no configuration of a classifier, or would load something.
    """
    transformers = package("transformers", "huggingface")
    given = dict(config)
    loading = [key for key in given if key.startswith("_") or key in _LOADING]
    kind = given.pop("model_type", None)
    if loading or kind == "timm_wrapper":
        raise InputError(f"config must not load anything, got {loading or kind}.")
    check_known("model type of transformers", str(kind), transformers.CONFIG_MAPPING)
    try:
        made = transformers.AutoConfig.for_model(kind, **given)
        auto = auto_model(transformers, task)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"config must be one of {kind!r}: {error}") from error
    try:
        net: nn.Module = auto.from_config(made, trust_remote_code=False, attn_implementation="sdpa")
    except ValueError:
        try:
            net = auto.from_config(made, trust_remote_code=False, attn_implementation="eager")
        except ValueError as error:
            raise InputError(f"config must be one of a classifier: {error}") from error
    return net


#: By the name that a spec has.
FOREIGN: Registry[Callable[..., nn.Module]] = Registry(
    "model",
    {
        "timm": timm_network,
        "torchvision": torchvision_network,
        "huggingface": huggingface_network,
        "sklearn": Estimator,
    },
)
