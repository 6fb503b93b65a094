"""One ONNX file for a whole cascade with its policy: it skips work by itself, wherever it runs.

Layer: bundle.  Source: methods.md 6; peers.md 6.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from offramp._core.errors import InputError, UnsupportedError
from offramp._core.files import new_file
from offramp._core.ownership import check_file
from offramp._core.types import AnyBatch
from offramp.bundle.onnx.graph import Scope
from offramp.bundle.onnx.parts import ENDING, Parts, check_fits, export_parts
from offramp.bundle.onnx.routing import write_cascade
from offramp.runtime import Choice, StageSource, policy_of


@final
@dataclass(frozen=True, kw_only=True)
class SingleFile:
    """What was written.

    Args:
        path: The file.
        bytes: Its size.
        inputs: Name and shape of each input, the batch size as "batch".
        stages: Names of the stages it holds.
    """

    path: Path
    bytes: int
    inputs: dict[str, tuple[str | int, ...]]
    stages: tuple[str, ...]


def export_single_file(
    path: Path | str,
    cascade: StageSource,
    choice: Choice,
    *,
    example: AnyBatch,
    class_names: Sequence[str] = (),
    transform: bool = True,
    overwrite: bool = False,
) -> SingleFile:
    """Write a cascade with its policy as one ONNX file.

    Its inputs are those of the networks: "input"; "input.0", "input.1"... for a tuple; or the
    names of a mapping; the batch size is free. Its outputs are, for each example of the batch, in
    order: "logits" `(n, c)`, the log of the combined probabilities, NaN where no stage gave finite
    numbers; "label" `(n,)`, -1 where there is none; "stage" `(n,)`, the index of the stage at
    which it left. Answers are those of `offramp.Adaptive`, to rounding.

    Args:
        path: The file to make; it ends in .onnx.
        cascade: The networks, in PyTorch, or in ONNX Runtime, int8 included.
        choice: A candidate, an operating point, or a policy, made for them.
        example: Some raw input; one example is enough. Its types and shapes become the file's.
        class_names: For people; by default those of the cascade.
        transform: Whether the networks' transforms are part of the file; else its input is
            what the networks read.
        overwrite: Whether a file at `path` may be replaced.

    Raises:
        UnsupportedError: If the policy draws at random; if a network cannot be exported; or if
            everything together is larger than 2 GB, the most that a file may hold.
        InputError: If `path` ends otherwise or exists, or the example does not fit.
        MissingExtraError: Without the extra "onnx".
        StorageError: If the disk is full.

    >>> import tempfile, torch
    >>> from offramp import Cascade
    >>> from offramp.policy import Candidate
    >>> cascade = Cascade.from_models({"a": torch.nn.Linear(4, 3).eval()})
    >>> candidate = Candidate.single(cascade.topology, "a", reference="a")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = export_single_file(folder + "/a.onnx", cascade, candidate,
    ...                               example=torch.zeros(1, 4))
    >>> made.inputs, made.stages
    ({'input': ('batch', 4)}, ('a',))
    """
    path = check_path(Path(path), overwrite=overwrite)
    parts = export_parts(cascade, policy_of(choice), example, transform=transform)
    model = single_model(parts, class_names or cascade.class_names)
    with new_file(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(model.SerializeToString())
    names = parts.policy.topology.names
    return SingleFile(
        path=path,
        bytes=path.stat().st_size,
        inputs={value.name: ("batch", *value.row) for value in parts.inputs},
        stages=tuple(names[k] for k in parts.plans),
    )


def single_model(parts: Parts, class_names: Sequence[str]) -> Any:  # noqa: ANN401
    """The file's content, an `onnx.ModelProto` that has been checked.

    Args:
        parts: Of the cascade.
        class_names: Kept in its metadata, with the names of the stages.

    Raises:
        UnsupportedError: If it is too large for one file.
    """
    from onnx import checker, helper

    groups = parts.policy.topology.groups
    segments = [parts.segments[groups[j]] for plan in parts.plans.values() for j in plan.segments]
    each = [*segments, *parts.heads.values(), *(part.model for part in parts.decisions.values())]
    check_fits("The cascade", sum(model.ByteSize() for model in each))
    scope = Scope("cascade")
    outputs = write_cascade(parts, scope)
    model = helper.make_model(
        scope.graph(outputs, parts.inputs),
        opset_imports=_opsets(each),
        ir_version=each[0].ir_version,
        producer_name="offramp",
    )
    facts = {"stages": parts.policy.topology.names, "class_names": tuple(class_names)}
    helper.set_model_props(model, {name: json.dumps(value) for name, value in facts.items()})
    checker.check_model(model, full_check=True)
    return model


def _opsets(models: Sequence[Any]) -> list[Any]:
    """The operator sets that all parts use; those that ran elsewhere may be of another version."""
    found: dict[str, Any] = {}
    for each in (opset for model in models for opset in model.opset_import):
        if found.setdefault(each.domain, each).version != each.version:
            raise UnsupportedError(
                f"The stages use the versions {found[each.domain].version} and {each.version} of "
                f"the ONNX operators {each.domain or 'ai.onnx'}, and one file can have one. Make "
                "them anew with this version of offramp, or export a folder."
            )
    return list(found.values())


def check_path(path: Path, *, overwrite: bool) -> Path:
    """Return a path where a file may be written; else raise `InputError`."""
    if path.suffix != ENDING:
        raise InputError(f"path must end in {ENDING}, got {path.name!r}.")
    check_file(path, overwrite=overwrite)
    return path
