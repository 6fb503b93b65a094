"""`offramp export`: a bundle as one ONNX file, or as a folder of them.

Layer: cli.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp._core.errors import InputError
from offramp.cli import options
from offramp.cli.output import Output

if TYPE_CHECKING:
    from torch import Tensor

_TYPES = ("float32", "float16", "uint8", "int32", "int64")


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle to export.")],
    single_file: Annotated[
        Path | None, typer.Option(help="File to write; it ends in .onnx.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write instead.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Shape of one input, such as 3,32,32; by default the bundle's."),
    ] = None,
    input_type: Annotated[
        str, typer.Option(help=f"Type of the input: {', '.join(_TYPES)}.")
    ] = "float32",
    like: Annotated[
        Path | None,
        typer.Option(
            help="An npz file of inputs, one example or more, in place of --shape and "
            "--input-type: for networks with several inputs one array for each, by its name."
        ),
    ] = None,
    without_transform: Annotated[
        bool,
        typer.Option("--without-transform", help="Take inputs that are prepared already."),
    ] = False,
    overwrite: options.Overwrite = False,
    allow_import: options.AllowImport = False,
    allow_network: options.AllowNetwork = None,
    allow_types: options.AllowTypes = None,
    json: options.Json = False,
) -> None:
    """Export the cascade of a bundle, with its policy, to ONNX.

    In: a bundle.

    Out: one file that any ONNX Runtime executes, in any language, and that skips by itself what
    an input does not need; or a folder with one file for each stage and a small runner in Python
    that needs numpy and onnxruntime only.

    Example: offramp export runs/demo/bundle --single-file demo.onnx
    """
    from offramp import export_onnx, load
    from offramp.backends import require_onnx
    from offramp.bundle.onnx.export import check_path

    output = Output(as_json=json)
    path = out if single_file is None else single_file
    if path is None or (single_file is not None and out is not None):
        raise InputError("Give either --single-file or --out, and not both.")
    require_onnx()
    folder = single_file is None
    check_path(path, folder=folder, overwrite=overwrite, keep=(bundle,))
    made = export_onnx(
        load(
            bundle,
            allow_import=allow_import,
            allow_network=allow_network or False,
            allow_types=allow_types or (),
        ),
        path,
        example=_example(bundle, shape, input_type) if like is None else _read(like, shape),
        folder=folder,
        transform=not without_transform,
        overwrite=overwrite,
    )
    if folder:
        output.line(f"{path}: {_megabytes(made.bytes)}, run with python {path / 'run.py'}")
        rows = [[name, str(count)] for name, count in sorted(made.files.items())]
        output.table(["file", "bytes"], rows)
    else:
        output.line(f"{path}: {_megabytes(made.bytes)}")
        output.table(["input", "shape"], [[k, _shape(v)] for k, v in made.inputs.items()])
        output.line("outputs: log_probs (batch, classes), label (batch), stage (batch)")
    output.result({"out": str(path), "bytes": made.bytes})


def _example(bundle: Path, shape: str | None, input_type: str) -> "Tensor":
    """One input of zeros: only its shape and its type matter."""
    import torch

    from offramp._core.checks import check_choice
    from offramp.bundle import read_manifest

    check_choice("--input-type", input_type, _TYPES)
    known = read_manifest(bundle).input_shape
    if shape is not None:
        known = tuple(options.whole_numbers("--shape", shape))
    if known is None:
        raise InputError(
            f"{bundle} does not say what its inputs look like; give --shape, such as 3,32,32, "
            "or, where there are several inputs, --like with an npz file that holds one of each."
        )
    return torch.zeros((1, *known), dtype=getattr(torch, input_type))


def _read(like: Path, shape: str | None) -> "Tensor | dict[str, Tensor]":
    """One example of a file: a tensor where it holds one array, else a mapping."""
    import torch

    from offramp.data.arrays import read_arrays

    if shape is not None:
        raise InputError(f"--like says what inputs look like, so --shape {shape} is one too many.")
    arrays = read_arrays(like)
    if not arrays or any(values.ndim == 0 or len(values) == 0 for values in arrays.values()):
        raise InputError(
            f"{like} must hold arrays with one example or more along the first axis, got the "
            f"shapes { {name: values.shape for name, values in arrays.items()} }."
        )
    found = {name: torch.as_tensor(values[:1]) for name, values in arrays.items()}
    return found if len(found) > 1 else next(iter(found.values()))


def _shape(shape: tuple[str | int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
