"""Loading a bundle: nothing is run or built before the files are what the manifest says.

A bundle is data of others. Its files may be links, and other files may lie beside them: those that
are listed must have the checksum that is listed, the rest is not read.

Layer: bundle.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from offramp._core.checks import check_known, check_path
from offramp._core.device import check_device
from offramp._core.errors import FileFormatError, InputError, OfframpError
from offramp._core.files import read_json, steadily
from offramp._core.schema import from_json
from offramp._core.types import Batch
from offramp.bundle.check import check_files, read_manifest
from offramp.bundle.manifest import ChoiceEntry, CompiledEntry, ExitEntry, Manifest, WholeEntry
from offramp.bundle.names import GEARS, POLICY
from offramp.bundle.rebuild import rebuild
from offramp.bundle.services import AllowNetwork, ServiceEntry, allowed_hosts
from offramp.policy import Candidate
from offramp.policy.gears import Gears
from offramp.policy.promise import Guarantee
from offramp.runtime import Adaptive
from offramp.stages import HeldStages

_MOST_BYTES = 64 * 2**20  # of a policy


@final
@dataclass(frozen=True, kw_only=True)
class StoredChoice:
    """A choice as a bundle keeps it.

    Args:
        candidate: The policy and how it came about.
        why: The choice in one sentence, its figures, and what is promised.
    """

    candidate: Candidate
    why: ChoiceEntry

    @property
    def sentence(self) -> str | None:
        """The choice in one plain sentence; None where nothing was chosen."""
        return self.why.sentence

    @property
    def numbers(self) -> Mapping[str, object]:
        """The figures behind it, by name."""
        return self.why.numbers

    @property
    def guarantee(self) -> Guarantee | None:
        """What is promised on new examples; None where nothing was certified."""
        return self.why.guarantee


def load(
    path: Path | str,
    *,
    device: torch.device | str = "cpu",
    verify: bool = True,
    fold: bool = False,
    allow_import: bool = False,
    allow_network: AllowNetwork = False,
    allow_types: Collection[str] = (),
    backend: str | Mapping[str, str] | None = None,
    example: Batch | None = None,
    threads: int | None = None,
) -> Adaptive:
    """Read what `save` wrote: the stages that the policy uses, and the reference.

    The model has it all: `reference` is the reference alone, `choice` says in a `sentence`,
    `numbers` and a `guarantee` what was chosen and promised, and there are `class_names`, `costs`
    and `gears`.

    Args:
        path: The folder.
        device: Where to run.
        verify: Compare the checksum of every file, and for exits the answers to the example of the
            bundle. Without it sizes are compared, and exits only have to run; a link that leads
            out of the folder is verified all the same.
        fold: As for `Adaptive`.
        allow_import: Whether networks may be built by "module:callable". That runs code by a name
            that stands in the bundle, so allow it only for bundles whose origin you trust.
        allow_network: Whether stages may be services, which inputs are sent to with the content of
            environment variables that the bundle names: True, or the hosts that may be called, such
            as "api.openai.com" or a list of them. Nobody is called while it is loaded.
        allow_types: Types that classifiers of scikit-learn may be made of, beside those that skops
            trusts, by name: those of a bundle whose origin you trust. What is refused is named.
        backend: What runs the stages, one for all or for each by name, as for `with_backend`; of
            those whose answers are equal to rounding. "auto" takes the fastest by the measurements
            in the bundle, of those that are installed. Stages saved in a backend stay there.
        example: Some raw input, for backends; by default one of the form that was measured, or of
            the bundle's `input_shape` in float32.
        threads: As for `with_backend`.

    Raises:
        FileFormatError: If a file is missing, truncated, changed or foreign, or written by a newer
            version; if a network is larger than its weights, or cannot be built, cut, or given its
            heads as the manifest says; or if exits answer otherwise than when they were saved. It
            names the file.
        UnsupportedError: If a network needs an import that is not allowed or not installed, a stage
            would call a host that is not allowed, a classifier is made of types that are not
            allowed, or a backend cannot run a stage.
        MissingExtraError: If a backend is not installed, also one that stages were saved in.
        UnknownNameError: If there is no such backend or stage.
        InputError: If a backend changes answers; if nothing was measured; if it is not known what
            the input looks like; or if `allow_network` or `allow_types` is anything else.
    """
    folder, where = check_path("path", path), check_device(device)
    allowed_hosts(allow_network)
    if isinstance(allow_types, str) or not all(isinstance(name, str) for name in allow_types):
        raise InputError(f"allow_types must be a list of names of types, got {allow_types!r}.")

    def read() -> Adaptive:
        return _load(
            folder,
            where,
            verify=verify,
            fold=fold,
            allow_import=allow_import,
            allow_network=allow_network,
            allow_types=allow_types,
            backend=backend,
            example=example,
            threads=threads,
        )

    return steadily(folder, read)


def _load(
    folder: Path,
    device: torch.device,
    *,
    verify: bool,
    fold: bool,
    allow_import: bool,
    allow_network: AllowNetwork,
    allow_types: Collection[str],
    backend: str | Mapping[str, str] | None,
    example: Batch | None,
    threads: int | None,
) -> Adaptive:
    if not folder.is_dir():
        raise FileFormatError(
            f"{folder} is not a folder; a bundle is one, which `offramp fit --bundle` writes."
        )
    manifest = read_manifest(folder)
    check_files(folder, manifest, verify=verify)
    candidate = _read_candidate(folder / POLICY, manifest)
    _check_heads(folder / POLICY, candidate, manifest)
    gears = _read_gears(folder / GEARS, manifest)
    stages = rebuild(
        folder,
        manifest,
        verify=verify,
        allow_import=allow_import,
        allow_network=allow_network,
        allow_types=allow_types,
        threads=threads,
    )
    if backend is not None:
        from offramp.bundle.accelerate import in_backend

        stages = in_backend(stages, manifest, backend, example=example, threads=threads)
    held = HeldStages(
        topology=manifest.topology,
        class_names=manifest.class_names,
        stages=stages,
        input_shape=manifest.input_shape,
    )
    choice = StoredChoice(candidate=candidate, why=manifest.choice)
    try:
        model = Adaptive(held, choice, costs=manifest.costs, fold=fold, gears=gears)
        if gears and model.gear is None:
            raise InputError("its policy is none of the gears")
    except OfframpError as error:
        raise FileFormatError(f"{folder / POLICY} does not fit the bundle: {error}") from error
    return model.to(device)


def read_extra(path: Path | str, name: str) -> dict[str, Any]:
    """An additional JSON file of a bundle, as `save` took it.

    Args:
        path: The bundle.
        name: Of the file.

    Raises:
        UnknownNameError: If there is none of this name.
        FileFormatError: If the manifest or the file is damaged.
    """
    return read_json(
        check_path("path", path) / check_known("file", name, read_manifest(path).files)
    )


def _read_candidate(path: Path, manifest: Manifest) -> Candidate:
    candidate = from_json(Candidate, read_json(path, most_bytes=_MOST_BYTES), where=path)
    if candidate.reference != manifest.reference:
        raise FileFormatError(
            f"{path} has the reference {candidate.reference!r}, but the manifest says "
            f"{manifest.reference!r}."
        )
    return candidate


def _read_gears(path: Path, manifest: Manifest) -> Gears:
    if manifest.gears is None:
        return Gears()
    gears = from_json(Gears, read_json(path, most_bytes=_MOST_BYTES), where=path)
    references = {gear.candidate.reference for gear in gears}
    if gears.delta != manifest.gears or references != {manifest.reference}:
        raise FileFormatError(
            f"{path} has the references {sorted(references)} and delta = {gears.delta}, but the "
            f"manifest says {manifest.reference!r} and {manifest.gears}."
        )
    for gear in gears:
        _check_heads(path, gear.candidate, manifest)
    return gears


def _check_heads(path: Path, candidate: Candidate, manifest: Manifest) -> None:
    """Where somebody may leave there must be a head, or the carry would pass for an answer."""
    topology = manifest.topology
    answering = {*candidate.policy.topology.active, topology.index(candidate.reference)}
    for entry in manifest.stages:
        if isinstance(entry, WholeEntry | ServiceEntry) or entry.head is not None:
            continue
        if isinstance(entry, CompiledEntry) and entry.part.column is not None:
            continue
        index = topology.index(entry.name)
        if isinstance(entry, ExitEntry):
            continues = entry.segment.index < len(manifest.networks[entry.segment.network].at)
        else:
            continues = index in topology.sources
        if continues and index in answering:
            raise FileFormatError(
                f"{path} uses the exit {entry.name!r}, but the bundle has no head for it."
            )
