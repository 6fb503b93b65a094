"""Existing ONNX files as stages, run by ONNX Runtime.

What a bundle keeps is one model with inputs "in.0", ... and outputs "out.0", ..., as those that
offramp exports; so a file of somebody else's is brought into that form once, when it is opened.

Layer: adapters.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from offramp._core.checks import check_choice, check_class_names, check_known, check_positive_int
from offramp._core.errors import FileFormatError, InputError, UnsupportedError
from offramp._core.types import Raw
from offramp.adapters.answers import order_of
from offramp.adapters.onnx_form import (
    Gives,
    check_labels_whole,
    free_sizes,
    input_spec,
    rewritten,
    shaped,
)
from offramp.backends import Compiled, TensorSpec, require_onnx, thread_count
from offramp.backends.foreign import check_onnx
from offramp.backends.ort import FLOAT, Session
from offramp.stages import Stage, Transforms, chained

if TYPE_CHECKING:
    import onnx


def from_onnx(
    path: Path | str,
    *,
    gives: Gives = "logits",
    output: str | Sequence[str] | None = None,
    transform: Transforms = None,
    own_names: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
    classes: int | None = None,
    example: Raw | None = None,
    threads: int | None = None,
) -> Stage:
    """An ONNX file as a stage, on the CPU; a bundle holds the model and its digest.

    Args:
        path: The file; weights in files beside it are read along.
        gives: What the output holds: "logits" `(m, c)`; "probabilities" `(m, c)`, in [0, 1] with
            the sum 1, whose logarithms become the logits; or "labels", whole numbers, and their
            confidences in [0, 1], two outputs `(m,)`. A label that is no class is wrong.
        output: Name of the output, or of labels and confidences; by default the only one, or the
            one called "logits", "probabilities", or "label" and "confidence".
        transform: What makes the inputs out of raw rows. A network of several inputs reads a
            mapping with their names.
        own_names: Names of the classes in the order of the file.
        class_names: All classes in the order of the cascade, which the stage then answers in.
        classes: Number of classes; needed where the file gives labels and nobody names them.
        example: Some raw input, needed where sizes beside the batch are free.
        threads: Of ONNX Runtime; by default as many as torch uses.

    Raises:
        MissingExtraError: Without the extra "onnx".
        FileFormatError: If that is no ONNX model, or one that a bundle could not hold: with loops
            or branches.
        UnknownNameError: If there is no such output.
        UnsupportedError: If the batch size is fixed, or ONNX Runtime cannot run the model.
        InputError: If it gives something else than declared, or class names do not fit.

    >>> import tempfile
    >>> from torch import nn
    >>> from offramp.backends import to_onnx
    >>> model = to_onnx(nn.Linear(4, 3), torch.zeros(1, 4), name="net")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "net.onnx").write_bytes(model.SerializeToString())
    ...     stage = from_onnx(Path(folder, "net.onnx"))
    >>> stage.name, stage.run(torch.zeros(2, 4))[0].logits.shape
    ('net', torch.Size([2, 3]))
    """
    require_onnx()
    check_choice("gives", gives, ("logits", "probabilities", "labels"))
    if not isinstance(path, str | PathLike):
        raise InputError(f"path must be the path of an ONNX file, got {path!r}.")
    if classes is not None:
        check_positive_int("classes", classes)
    own, names = _names(own_names, class_names)
    name = Path(path).stem
    model = _read(Path(path))
    read = _outputs(model, gives, output)
    if gives == "labels":
        check_labels_whole(model, read[0], str(path))
    made = chained(transform)
    sizes = None if example is None else free_sizes(_prepared(made, example))
    inputs = input_spec(model, sizes, str(path))
    order = order_of(own, names) if own and names and own != names else None

    def opened(order: Sequence[int] | None) -> "tuple[onnx.ModelProto, Session]":
        changed = rewritten(model, gives, read, order)
        content = changed.SerializeToString()
        check_onnx(content, str(path))
        return changed, Session(content, thread_count(threads))

    made_over, run = opened(None)
    outputs = _tried(run, inputs, gives, str(path))
    width = outputs.shapes[0][0] if outputs.shapes[0] else None
    count = _count(str(path), width, classes=classes, own_names=own, class_names=names)
    if order is not None:
        made_over, run = opened(order)
    content = shaped(made_over, outputs)
    return Stage(
        name,
        Compiled(
            run,
            inputs=inputs,
            outputs=outputs,
            name=f"stage {name!r}",
            backend=FLOAT,
            content=content,
            files=lambda: (content,),
        ),
        transform=made,
        outputs="confidence" if gives == "labels" else gives,
        classes=count,
        class_names=names,
    )


def _names(
    own_names: Sequence[str], class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the classes in the order of the file, and in that of the answers."""
    try:
        own = check_class_names(own_names, None)
    except InputError as error:
        raise InputError(str(error).replace("class_names", "own_names")) from None
    return own, own if class_names is None else check_class_names(class_names, None)


def _count(
    path: str,
    width: int | None,
    *,
    classes: int | None,
    own_names: Sequence[str],
    class_names: Sequence[str],
) -> int | None:
    """The number of classes: the width of the output, or what is said where it has none.

    Raises:
        InputError: If another is said.
    """
    said = {"own_names": len(own_names), "class_names": len(class_names), "classes": classes}
    given = {name: count for name, count in said.items() if count}
    right = width if width is not None else next(iter(given.values()), None)
    for name, count in given.items():
        if count != right:
            what = f"be {right}" if name == "classes" else f"have {right} entries"
            of = "as the output has columns" if width is not None else f"as {next(iter(given))} has"
            raise InputError(f"{name} must {what} for {path}, {of}, got {count}.")
    return right


def _read(path: Path) -> "onnx.ModelProto":
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx.inliner import inline_local_functions

    try:
        model: onnx.ModelProto = onnx.load(path)  # with the weights that lie beside it
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise FileFormatError(f"{path} cannot be read as an ONNX model: {error}") from error
    if not model.graph.node:
        raise FileFormatError(f"{path} cannot be read as an ONNX model: it has no operations.")
    if model.functions:
        model = inline_local_functions(model)
    return model


def _prepared(transform: Any, example: Raw) -> Any:  # noqa: ANN401  (what the network reads)
    return Stage("example", torch.nn.Identity(), transform=transform).prepare(example)


def _outputs(
    model: "onnx.ModelProto", gives: Gives, output: str | Sequence[str] | None
) -> tuple[str, ...]:
    """Names of what is read."""
    there = [value.name for value in model.graph.output]
    usual = ("label", "confidence") if gives == "labels" else (gives,)
    if output is None:
        alone = len(there) == len(usual)
        named = tuple(there) if alone and gives != "labels" else usual
    elif isinstance(output, str):
        named = (output,)
    else:
        named = tuple(output) if isinstance(output, Sequence) else ()
    if len(named) != len(usual) or not all(isinstance(each, str) for each in named):
        raise InputError(f"output must name {' and '.join(usual)}, got {output!r}.")
    for each in named:
        check_known("output of the model", each, there)
    return named


def _tried(run: Session, inputs: TensorSpec, gives: Gives, path: str) -> TensorSpec:
    """What it gives, for two examples and for three."""
    found: list[Sequence[Tensor]] = []
    for count in (2, 3):
        try:
            given = run(inputs.parts(count))
        except UnsupportedError as error:
            raise UnsupportedError(
                f"{path} does not run on {count} examples of {inputs.described()}: {error}"
            ) from error
        shapes = [tuple(tensor.shape) for tensor in given]
        wanted = 1 if gives == "labels" else 2
        if any(len(shape) != wanted or shape[0] != count for shape in shapes):
            raise InputError(
                f"gives={gives!r} needs outputs ({'m' if wanted == 1 else 'm, c'}), and {path} "
                f"gives the shapes {shapes} for {count} examples."
            )
        found.append(given)
    return TensorSpec.of(found[0][0] if len(found[0]) == 1 else tuple(found[0]))
