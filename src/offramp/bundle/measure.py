"""Measuring, where a bundle is to run, which backend runs its stages fastest.

Layer: bundle.
"""

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from offramp._core.checks import check_path
from offramp._core.errors import InputError
from offramp._core.files import steadily, write_json
from offramp._core.schema import to_json
from offramp._core.seal import sealed
from offramp._core.types import Batch
from offramp.backends import BackendTable, choose_backends
from offramp.bundle.check import check_files, read_manifest
from offramp.bundle.manifest import FORMAT_VERSION, Manifest
from offramp.bundle.names import MANIFEST
from offramp.bundle.rebuild import rebuild
from offramp.bundle.services import AllowNetwork
from offramp.stages import Stage


def tune(
    path: Path | str,
    example: Batch,
    *,
    batch_sizes: Sequence[int] = (1, 32, 128),
    candidates: Sequence[str] | None = None,
    rounds: int = 7,
    threads: int | None = None,
    allow_import: bool = False,
    allow_network: AllowNetwork = False,
    allow_types: Collection[str] = (),
    progress: bool = False,
) -> BackendTable:
    """Measure the stages of a bundle in all backends, and keep the times in the bundle.

    `load(path, backend="auto")` then takes the fastest. Answers stay equal to rounding, and
    policy and weights as they are; times of another machine are replaced.

    Args:
        path: The bundle.
        example: Raw input as it will come, of that type; one example is enough.
        batch_sizes: As for `choose_backends`; so are the others.
        candidates: Backends; by default those with float32 answers that are installed.
        rounds: Of measuring.
        threads: For ONNX Runtime and OpenVINO; by default as many as torch uses.
        allow_import: As for `load`.
        allow_network: As for `load`; services are not measured, and nobody is called.
        allow_types: As for `load`.
        progress: Whether to show a bar.

    Raises:
        FileFormatError: As `load`.
        UnsupportedError: As `load`.
        UnknownNameError: If there is no such backend.
        InputError: As `choose_backends`: also if every stage was saved in a backend; or if the
            bundle is read-only, or replaced meanwhile.

    >>> import tempfile, torch
    >>> from offramp import Adaptive, Candidate, save
    >>> from offramp.models import ModelSpec, build
    >>> from offramp.stages import Cascade
    >>> spec = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2})
    >>> cascade = Cascade.from_models({"a": build(spec)}, specs={"a": spec})
    >>> candidate = Candidate.single(cascade.topology, "a", reference="a")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Adaptive(cascade, candidate), folder + "/b")
    ...     table = tune(folder + "/b", torch.zeros(1, 1, 8, 8), batch_sizes=[1], rounds=1)
    >>> "onnxruntime" in table.seconds["a"]
    True
    """
    folder = check_path("path", path)
    if folder.is_dir() and not os.access(folder, os.W_OK):  # before the work, not after it
        raise InputError(f"{folder} is read-only, so times cannot be kept in it. Copy the bundle.")
    manifest, stages = steadily(
        folder,
        lambda: _read(
            folder,
            allow_import=allow_import,
            allow_network=allow_network,
            allow_types=allow_types,
            threads=threads,
        ),
    )
    table = choose_backends(
        stages.values(),
        example,
        candidates=candidates,
        batch_sizes=batch_sizes,
        rounds=rounds,
        threads=threads,
        progress=progress,
    )
    if read_manifest(folder).files != manifest.files:
        raise InputError(f"{folder} was replaced while it was measured. Repeat the call.")
    tuned = replace(read_manifest(folder), version=FORMAT_VERSION, backends=table)
    write_json(folder / MANIFEST, sealed(to_json(tuned)), beside=folder)
    return table


def _read(folder: Path, **how: Any) -> tuple[Manifest, dict[str, Stage]]:  # noqa: ANN401  (of `rebuild`)
    manifest = read_manifest(folder)
    check_files(folder, manifest, verify=True)
    return manifest, rebuild(folder, manifest, verify=True, **how)
