"""A compiled network from the files in which a bundle keeps it.

Layer: backends.
"""

from collections.abc import Sequence

from offramp._core.checks import check_choice
from offramp._core.errors import FileFormatError, InputError, UnsupportedError
from offramp.backends.compiled import Compiled, thread_count
from offramp.backends.form import TensorSpec
from offramp.backends.table import BACKENDS


def restored(
    backend: str,
    files: Sequence[bytes],
    *,
    inputs: TensorSpec,
    outputs: TensorSpec,
    name: str,
    threads: int | None = None,
) -> Compiled:
    """What a backend made, from the contents of its files (`Compiled.files`).

    Args:
        backend: Which; one that keeps files.
        files: Their contents.
        inputs: What it takes.
        outputs: What it gives.
        name: Whose it is, for messages.
        threads: By default as many as torch uses.

    Raises:
        FileFormatError: If that is no model, refers to other files, or has other inputs or outputs;
            or if the backend keeps none.
        MissingExtraError: If the backend is not installed.
        UnsupportedError: If this processor cannot run it.
    """
    known = {each: made.kept for each, made in BACKENDS.items() if made.kept is not None}
    try:
        kept = known[check_choice("backend", backend, known)]
    except InputError as error:
        raise FileFormatError(f"The model of {name} cannot be opened: {error}") from error
    if len(files) != len(kept.endings):
        raise FileFormatError(
            f"The model of {name} must have files {list(kept.endings)}, got {len(files)}."
        )
    run = kept.open(files, outputs, name, thread_count(threads))
    try:
        found = run(inputs.parts(1))
    except (UnsupportedError, RuntimeError, KeyError, ValueError) as error:
        raise FileFormatError(f"The model of {name} does not run: {error}") from error
    shapes = tuple(tuple(tensor.shape[1:]) for tensor in found)
    dtypes = tuple(tensor.dtype for tensor in found)
    if (shapes, dtypes) != (outputs.shapes, outputs.torch_dtypes):
        raise FileFormatError(
            f"The model of {name} must give {outputs.described()}, got the shapes {shapes}."
        )
    contents = tuple(files)
    return Compiled(
        run,
        inputs=inputs,
        outputs=outputs,
        name=name,
        backend=backend,
        content=b"".join(contents),
        files=lambda: contents,
    )
