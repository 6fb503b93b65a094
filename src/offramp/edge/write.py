"""Two folders out of one model: what the device runs, and the bundle of the cloud.

Layer: edge.  Source: docs/adr/0056.
"""

import math
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from offramp._core.checks import check_kind
from offramp._core.cut import Cut, Send
from offramp._core.errors import InputError
from offramp._core.files import atomic_folder, sha256, write_json
from offramp._core.ownership import SPLIT, check_folder
from offramp._core.packing import SCALE, WIDTHS
from offramp._core.seal import digest_of
from offramp._core.types import AnyBatch
from offramp.bundle import save
from offramp.bundle.names import MANIFEST as BUNDLE_MANIFEST
from offramp.bundle.names import POLICY
from offramp.bundle.onnx.export import example_of, stored_policy
from offramp.bundle.onnx.folder import segments_told, write_parts
from offramp.bundle.onnx.graph import FLOAT, values_of
from offramp.bundle.onnx.parts import Parts, export_parts
from offramp.edge.gateway import at_the_gateway, in_the_cloud, stage_of_the_cloud
from offramp.edge.resume import EDGE, FORMAT
from offramp.models import ModelSpec, build
from offramp.runtime import Adaptive
from offramp.runtime.plans import plan_segments
from offramp.stages import Cascade, HeldStages, Stage, weights_digest

DEVICE, GATEWAY, CLOUD, MANIFEST = "device", "gateway", "cloud", "split.json"
SCRIPT = "device.mjs"  # runs the device's folder in a browser


@final
@dataclass(frozen=True, kw_only=True)
class Split:
    """What was written.

    Args:
        path: The folder; `device` and `cloud` are in it.
        id: The same in both, and in no other split.
        device: Names of the stages on the device.
        cloud: Those in the cloud.
        gateway: Those at the gateway between the two; none where there is none.
        send: What is sent.
        bytes: What one example sends, without the headers; None where its raw input has no size of
            its own, as files of images.
    """

    path: Path
    id: str
    device: tuple[str, ...]
    cloud: tuple[str, ...]
    send: Send
    bytes: int | None
    gateway: tuple[str, ...] = ()


def split(
    model: Adaptive,
    path: Path | str,
    *,
    device: Collection[str] | None = None,
    gateway: Collection[str] | None = None,
    cloud_url: str | None = None,
    send: Send = "raw",
    example: AnyBatch | None = None,
    transform: bool = True,
    offline: Mapping[str, object] | None = None,
    gateway_offline: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> Split:
    """Write the device's part of a model and the cloud's.

    `device/` holds ONNX files that numpy and onnxruntime run (`offramp.edge.Client`), and browsers
    (`device.mjs`), `cloud/` a bundle that `offramp serve` serves, which goes on from what a device
    sends; networks that only the device runs are not in it. Together they answer what the model
    answers, to rounding; with "float16" and "int8" what a model answers whose carry
    is rounded so, for which its policy has to be fitted (`offramp.tuning.plan_edge`).

    With a gateway there are three folders. `gateway/` is what devices ask; its server goes on from
    what they send, and asks `cloud/` about who goes on from there. Where the cloud cannot be had,
    the last stage at the gateway answers, and says so ("failed").

    Args:
        model: Its networks are in PyTorch, or in ONNX Runtime, and have specs; its policy is the
            whole system's.
        path: The folder to make.
        device: Names of the stages on the device, with the first; by default those that the costs
            of the model place there.
        gateway: Names of the stages at the gateway, which leave the cloud one network; by default
            those that the costs of the model place there, if there are three places.
        cloud_url: Where a gateway finds the server of `cloud/`.
        send: What the device sends of an example that goes on, beside what its stages answered:
            "raw", the raw input as it came; or the carry of the last stage that ran, "float32" as
            it is, "float16", or "int8" with a scale for each example.
        example: As for `offramp.export_onnx`.
        transform: Whether the device's networks bring their transforms along. Without, the device
            is given what the networks read, and "raw" sends what the transforms take.
        offline: What is known of the answers that the device gives by itself, for its manifest.
        gateway_offline: The same of the gateway without the cloud, for `gateway/edge.json`.
        overwrite: Whether a split at `path` may be replaced.

    Raises:
        InputError: If nothing is left on either side; the policy cannot run there; `path` exists;
            or a gateway would need another cloud than one network that reads the raw input.
        UnsupportedError: As `offramp.export_onnx`.
        MissingExtraError: Without the extra "onnx".

    >>> import tempfile, torch
    >>> from offramp import Candidate, Cascade, ModelSpec, Policy
    >>> from offramp.models import build
    >>> from offramp.policy import Feature, Linear, Node
    >>> spec = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2, "classes": 3})
    >>> nets, specs = {"a": build(spec), "b": build(spec)}, {"a": spec, "b": spec}
    >>> cascade = Cascade.from_models(nets, specs=specs)
    >>> rule = Linear.threshold(Feature("max_prob", 0), 0.6)
    >>> policy = Policy(cascade.topology, {(0,): Node(rule)})
    >>> model = Adaptive(cascade, Candidate(policy=policy, method="mine", reference="b"))
    >>> with tempfile.TemporaryDirectory() as place:
    ...     made = split(model, place + "/split", device=["a"], example=torch.zeros(1, 1, 8, 8))
    >>> made.device, made.cloud, made.bytes
    (('a',), ('b',), 268)
    """
    check_kind("model", model, Adaptive, read="offramp.load(path)")
    path, candidate, topology = Path(path), model.candidate, model.policy.topology
    check_folder(path, SPLIT, overwrite=overwrite)
    here, middle = _places(model, device, gateway)
    cut = Cut.of(topology, here, send, reference=candidate.reference)
    far = _far(model, here, middle, send, cloud_url, transform=transform) if middle else None
    parts = export_parts(
        model.cascade, model.policy, example_of(model, example), transform=transform, only=cut.here
    )
    carries = _carries(parts, cut)
    away = sorted(cut.away)
    told: dict[str, Any] = {
        "version": FORMAT,
        "device": [topology.names[k] for k in sorted(cut.here)],
        "send": send,
        "packing": cut.packing,
        "carries": carries,
        "stages": weights_digest({topology.names[k]: model.cascade.stage(k) for k in away}),
    }
    with atomic_folder(path, SPLIT, overwrite=overwrite) as folder:
        (folder / DEVICE).mkdir()
        write_json(folder / DEVICE / POLICY, stored_policy(model))
        write_parts(folder / DEVICE, parts, model.class_names)
        shutil.copyfile(Path(__file__).with_name(SCRIPT), folder / DEVICE / SCRIPT)
        files = {file.name: sha256(file) for file in _content(folder / DEVICE)}
        known = {"files": files, "class_names": model.class_names}
        name = digest_of({**told, **known})[:16]
        # What is sent is called by the split, so that no cloud of another one takes it.
        raw = {v.name: f"{v.name}.{name}" for v in parts.inputs} if cut.raw else {}
        told |= {"id": name, "logits": f"logits.{name}", "raw": raw}
        edge = {**told, "asked": list(cut.asked), "goes_on": _goes_on(cut)}
        edge |= {"files": files, "offline": dict(offline or {}), "top": candidate.top}
        edge |= {"carry_groups": list(cut.carries), "reference": candidate.reference}
        write_parts(folder / DEVICE, parts, model.class_names, edge=edge)
        whole = _stages_of(model)
        held, note = _without(whole, cut, parts.classes), {**told, "files": files}
        note["types"] = sorted({v.dtype.name for v in parts.inputs}) if raw else []
        place = CLOUD
        if far is not None and cloud_url is not None:
            save(in_the_cloud(whole.stage(far), raw), folder / CLOUD)
            held, place = at_the_gateway(held, far, parts, raw, cloud_url), GATEWAY
            note["offline"] = dict(gateway_offline or {})
        save(Adaptive(held, model.choice, costs=model.costs), folder / place, extra={EDGE: note})
        size = _size(parts, cut, transform=transform)
        made = Split(
            path=path,
            id=name,
            device=tuple(told["device"]),
            cloud=tuple(topology.names[k] for k in away if topology.names[k] not in middle),
            send=send,
            bytes=size,
            gateway=tuple(n for n in topology.names if n in middle),
        )
        facts = {"id": name, "device": made.device, "cloud": made.cloud, "send": send}
        facts |= {"gateway": made.gateway} if middle else {}
        folders = [DEVICE, GATEWAY, CLOUD] if middle else [DEVICE, CLOUD]
        kind = {"format": SPLIT.format, "version": FORMAT, "files": folders}
        write_json(folder / MANIFEST, {**kind, **facts, "bytes": size})
    return made


def _places(
    model: Adaptive, device: Collection[str] | None, gateway: Collection[str] | None
) -> tuple[list[str], list[str]]:
    """Names of the stages on the device and at the gateway."""
    for name, given in (("device", device), ("gateway", gateway)):
        if isinstance(given, str):
            raise InputError(f"{name} must be a list of names of stages, got the text {given!r}.")
    if device is not None:
        return list(device), list(gateway or ())
    if model.costs is None or not model.costs.places:
        raise InputError(
            f"device must name the stages on the device, of {list(model.stage_names)}: the costs "
            "of the model do not say where they run. offramp.tuning.plan_edge chooses them."
        )
    places, names = model.costs.places, model.policy.topology.names
    if max(places) > 2:
        raise InputError(
            f"A split has at most three places, and the costs of the model name {max(places) + 1}."
        )
    here = [name for name, at in zip(names, places, strict=True) if at == 0]
    between = [name for name, at in zip(names, places, strict=True) if max(places) == 2 and at == 1]
    return here, between if gateway is None else list(gateway)


def _far(
    model: Adaptive,
    here: Collection[str],
    middle: Collection[str],
    send: Send,
    cloud_url: str | None,
    *,
    transform: bool,
) -> str:
    """The stage that a gateway asks the cloud about."""
    if cloud_url is None:
        raise InputError("cloud_url must say where the gateway finds the cloud, got None.")
    if not transform:
        raise InputError(
            "transform must be True with a gateway, which hands on what a device reads."
        )
    return stage_of_the_cloud(model, here, middle, send)


def _stages_of(model: Adaptive) -> Cascade | HeldStages:
    if isinstance(model.cascade, Cascade | HeldStages):
        return model.cascade
    raise InputError(f"model must be made of a cascade, got {type(model.cascade).__name__}.")


def _without(cascade: Cascade | HeldStages, cut: Cut, classes: int) -> Cascade | HeldStages:
    """The cascade as the cloud holds it: without the networks that only the device runs.

    A network that is cut is of one file, and stays whole: it is cut again where it is loaded, and
    its exits have to answer there what they answered here, through the device's weights too.
    """
    topology, stages = cascade.topology, []
    for stage in cascade:
        k = topology.index(stage.name)
        shared = k in topology.sources or topology.groups.count(topology.groups[k]) > 1
        alone = stage.source is None and not shared and not stage.part
        if k in cut.here - cut.again and alone:
            spec = ModelSpec(name="absent", arguments={"classes": classes})
            stage = Stage(
                stage.name,
                build(spec),
                transform=stage.transform,
                spec=spec,
                classes=classes,
                class_names=stage.class_names,
            )
        stages.append(stage)
    return cascade.with_stages(stages)


def _carries(parts: Parts, cut: Cut) -> dict[str, list[str]]:
    """By group the names of the tensors that are sent, scales among them."""
    found = {}
    for group in cut.carries:
        names = []
        for i, value in enumerate(values_of(parts.segments[group].graph.output)):
            names.append(f"carry.{group}.{i}")
            if cut.packing == "int8" and value.kind == FLOAT:
                names.append(names[-1] + SCALE)
        found[group] = names
    return found


def _goes_on(cut: Cut) -> dict[str, Any]:
    """For each stage that examples go on to, what must run here, and what of it some may lack."""
    plans, found = plan_segments(cut.topology), {}
    for k, segments in cut.goes_on().items():
        lacking = [j for j in plans[k].segments if j in segments]
        found[str(k)] = {
            "all": segments_told(cut.topology, segments),
            "lacking": segments_told(cut.topology, lacking),
        }
    return found


def _content(folder: Path) -> list[Path]:
    """All files that a manifest lists, which itself is none of them."""
    return sorted(file for file in folder.iterdir() if file.name != BUNDLE_MANIFEST)


def _size(parts: Parts, cut: Cut, *, transform: bool) -> int | None:
    """Bytes of what one example sends; None where they differ."""
    sent = [*(parts.inputs if cut.raw else ())]
    for group in cut.carries:
        sent += values_of(parts.segments[group].graph.output)
    if any(isinstance(size, str) for value in sent for size in value.row):
        return None
    if cut.raw and not transform:
        return None
    total = 4 * parts.classes * len(cut.asked)
    for k, value in enumerate(sent):
        packed = value.kind == FLOAT and k >= (len(parts.inputs) if cut.raw else 0)
        width = WIDTHS[cut.packing] if packed else value.dtype.itemsize
        total += width * math.prod(map(int, value.row)) + 4 * (packed and cut.packing == "int8")
    return total
