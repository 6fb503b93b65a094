"""Classifiers of Hugging Face as stages: of images and of texts.

Layer: adapters.
"""

import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from offramp._core.checks import check_positive_int
from offramp._core.errors import FileFormatError, InputError, UnsupportedError
from offramp.adapters.answers import in_order
from offramp.adapters.huggingface_pictures import processor_transform
from offramp.models import ModelSpec
from offramp.models.foreign import DROPPED, TASKS, auto_model, package
from offramp.stages import Chain, Pad, Stage, Tokenize, Transforms

_UNNAMED = re.compile(r"LABEL_\d+")  # what a configuration says where nobody named the classes


def from_huggingface(
    name: Path | str,
    *,
    revision: str | None = None,
    class_names: Sequence[str] | None = None,
    transform: Transforms = None,
    length: int | None = None,
) -> Stage:
    """A classifier of images or texts as a stage, with its image processor or tokenizer.

    Weights are read from safetensors alone, and no code out of a repository is run. A bundle builds
    the network again from its configuration, with transformers installed and nothing downloaded;
    the tokenizer goes with it as data.

    Args:
        name: A local folder of `save_pretrained`, or an id on the hub: "owner/name".
        revision: Branch, tag or commit on the hub.
        class_names: All classes in the order of the cascade, which the stage then answers in; by
            default those of `id2label`. `[]` for none.
        transform: In place of the model's own.
        length: Most tokens of a text; longer ones are cut. By default what the tokenizer and the
            positions of the network allow.

    Returns:
        A stage that reads images (uint8 tensors `(m, 3, h, w)`, or lists of bytes or images), or
        lists of texts. Texts of a batch are padded on the right to the longest of them, with a
        mask.

    Raises:
        MissingExtraError: Without the extra "huggingface".
        InputError: If there is no such folder or model, or `class_names` are others than its own.
        UnsupportedError: If it is no classifier of one image or text with two classes or more; if
            it needs code of its repository; if it has no fast tokenizer, or none that pads; if its
            transform cannot be said with ours; the field is named.
        FileFormatError: If weights are missing, such as those of a head that was never trained.
    """
    transformers = package("transformers", "huggingface")
    if length is not None:
        check_positive_int("length", length)
    place = {"pretrained_model_name_or_path": str(name), "revision": revision or "main"}
    config = _loaded(transformers.AutoConfig, place, name)
    task = _task(config, name)
    net = _network(transformers, place, name, config, task)
    if transform is None:
        if task == "image":
            processor = _loaded(transformers.AutoImageProcessor, place, name)
            transform = _image_transform(str(name), processor)
        else:
            tokenizer = _loaded(transformers.AutoTokenizer, place, name)
            transform = _text_transform(str(name), tokenizer, net, length)
    labels = [str(config.id2label[k]) for k in range(config.num_labels)]
    stage = Stage(
        Path(name).name,
        net,
        transform=transform,
        spec=ModelSpec(name="huggingface", arguments={"task": task, "config": _plain(net.config)}),
        classes=config.num_labels,
        class_names=() if all(map(_UNNAMED.fullmatch, labels)) else labels,
    )
    return in_order(stage, class_names)


def _loaded(kind: Any, place: Mapping[str, str], name: Path | str, **more: Any) -> Any:  # noqa: ANN401
    """What `from_pretrained` gives, or an error of ours."""
    try:
        return kind.from_pretrained(**place, trust_remote_code=False, **more)
    except Exception as error:  # whatever is wrong with the files of others
        text = str(error)
        if "remote" in text or "custom code" in text:
            raise UnsupportedError(
                f"{name} needs code out of its repository, which is never run here. Export it to "
                "ONNX where it is trusted, and use from_onnx."
            ) from error
        raise InputError(f"{name} cannot be opened with {kind.__name__}: {text}") from error


def _task(config: Any, name: Path | str) -> str:  # noqa: ANN401  (a configuration)
    built = list(config.architectures or ())
    tasks = [task for task, ending in TASKS.items() if any(ending in kind for kind in built)]
    if len(tasks) != 1 or config.model_type == "timm_wrapper":
        raise UnsupportedError(
            f"{name} must be a classifier of images or texts, got {built or config.model_type}. "
            f"{'Use from_timm.' if config.model_type == 'timm_wrapper' else ''}"
        )
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise UnsupportedError(
            f"{name} must say one of two classes or more of each example, got {config.num_labels} "
            f"labels and problem_type={config.problem_type!r}."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedError(
            f"{name} has a quantization_config, which cannot be built again. Take the weights that "
            "it was quantized from; offramp.tuning.quantize makes int8 of them."
        )
    return tasks[0]


def _network(
    transformers: Any,  # noqa: ANN401  (the package)
    place: Mapping[str, str],
    name: Path | str,
    config: Any,  # noqa: ANN401  (a configuration)
    task: str,
) -> nn.Module:
    auto = auto_model(transformers, task)
    more = {"config": config, "use_safetensors": True, "output_loading_info": True}
    try:  # others may be looked for on the hub
        net, told = _loaded(auto, place, name, attn_implementation="sdpa", **more)
    except InputError as error:
        if "attention" not in str(error):
            raise
        net, told = _loaded(auto, place, name, attn_implementation="eager", **more)
    missing = sorted(told["missing_keys"])
    if missing:
        raise FileFormatError(
            f"{name} has no weights for {missing[:3]}; a network that was trained to classify is "
            "needed."
        )
    made: nn.Module = net.float().eval()
    return made


def _plain(config: Any) -> dict[str, Any]:  # noqa: ANN401  (a configuration)
    """What builds it again, as JSON values."""
    said = json.loads(config.to_json_string())
    return {k: v for k, v in said.items() if not k.startswith("_") and k not in DROPPED}


def _image_transform(name: str, processor: Any) -> nn.Module:  # noqa: ANN401  (of transformers)
    try:
        return processor_transform(name, processor)
    except UnsupportedError:
        raise
    except Exception as error:  # whatever is wrong with the files of others
        raise UnsupportedError(
            f"The transform of {name} cannot be read: {error!r}. Give transform= to the adapter."
        ) from error


def _text_transform(
    name: str,
    tokenizer: Any,  # noqa: ANN401  (of transformers)
    net: nn.Module,
    length: int | None,
) -> nn.Module:
    if not tokenizer.is_fast:
        raise UnsupportedError(
            f"{name} has the tokenizer {type(tokenizer).__name__}, which is not a fast one: only "
            "those go into a bundle as data. Convert it with transformers, and save it again."
        )
    config: Any = net.config
    pad = tokenizer.pad_token_id
    if pad is None or config.pad_token_id not in (pad, None):
        raise UnsupportedError(
            f"{name} must pad with one token, got pad_token_id={pad} of the tokenizer and "
            f"{config.pad_token_id} of the network: texts of two lengths could not be answered "
            "together. Set tokenizer.pad_token and model.config.pad_token_id, and save both."
        )
    config.pad_token_id = pad
    takes = inspect.signature(net.forward).parameters
    fields = [f for f in ("input_ids", "token_type_ids") if f in tokenizer.model_input_names]
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UnsupportedError(
            f"{name} has no tokenizer of its own: all words would be unknown to the empty one that "
            "transformers makes. Save the tokenizer beside the network: save_pretrained(folder)."
        )
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    most = min((int(k) for k in limits if isinstance(k, int) and 0 < k < 2**31), default=None)
    if length is not None and most is not None and length > most:
        raise InputError(f"length must be at most {most}, what {name} takes, got {length}.")
    around = tokenizer.num_special_tokens_to_add()
    if (length or most or math.inf) <= around:
        raise InputError(
            f"length must be above {around}, the tokens that {name} puts around a text, got "
            f"{length or most}: of the text itself nothing would be read."
        )
    tokenize = Tokenize(
        tokenizer.backend_tokenizer.to_str(),
        length=length or most,
        fields=tuple(f for f in fields if f in takes),
        cut=tokenizer.truncation_side,
    )
    return Chain([tokenize, Pad(pad, mask="attention_mask" if "attention_mask" in takes else None)])
