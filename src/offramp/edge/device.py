"""The device's folder: what it promises to be, and the runner in it.

Layer: edge.  Needs numpy and onnxruntime.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import sha256
from offramp._core.optional import imported
from offramp._core.packing import packed

FORMAT = 1
Arrays = Mapping[str, NDArray[Any]]


@final
class Device:
    """The stages on the device.

    Args:
        folder: `device/` of a split.
        threads: Of each session; 0 lets onnxruntime choose.

    Raises:
        FileFormatError: If it is no such folder, or a file has changed.
        MissingExtraError: If onnxruntime is not installed.
    """

    def __init__(self, folder: Path | str, threads: int = 0) -> None:
        imported("onnxruntime", "onnx")
        from offramp._core.onnx_runner import RAW, Carry, Cascade

        self._raw, self._carry = RAW, Carry
        if not isinstance(folder, str | Path):
            raise InputError(f"folder must be a path, got {type(folder).__name__}.")
        self.folder = Path(folder)
        manifest = read(self.folder)
        for name, digest in manifest["edge"]["files"].items():
            path = self.folder / name
            if not path.is_file() or sha256(path) != digest:
                raise FileFormatError(f"{path} is missing, or has changed since it was written.")
        self._cascade = Cascade(self.folder, threads)
        self.edge: dict[str, Any] = manifest["edge"]
        self.class_names: list[str] = manifest["class_names"]
        self.stages: list[str] = manifest["stage_names"]
        self._inputs: list[str] = manifest["inputs"]
        self._here = [stage["index"] for stage in manifest["stages"]]
        self._paths = [tuple(path) for path in manifest["paths"]]
        self._ends = np.array([path[-1] for path in self._paths])
        self._visited = np.array(  # by node, whether each stage was run on the way
            [[k in path[:-1] for k in self.edge["asked"]] for path in self._paths], dtype=bool
        ).reshape(len(self._paths), -1)

    def run(self, inputs: "NDArray[Any] | Arrays") -> "Walked":
        """Take a batch as far as it comes here."""
        raw = dict(inputs) if isinstance(inputs, Mapping) else {self._inputs[0]: np.asarray(inputs)}
        if set(raw) != set(self._inputs):
            raise InputError(f"inputs must be {self._inputs}, got {list(raw)}.")
        sizes = {len(values) if values.ndim else -1 for values in raw.values()}
        if len(sizes) != 1 or -1 in sizes:
            raise InputError(
                "inputs must have examples along the first axis, as many in each, got the shapes "
                f"{ {name: values.shape for name, values in raw.items()} }."
            )
        try:
            self._cascade.look(raw[self._inputs[0]])
        except ValueError as error:
            raise InputError(str(error)) from error
        state, carries = self._cascade.walk(raw)
        ends = self._ends[state["node"]]
        return Walked(raw, state, carries, ends, ~np.isin(ends, self._here))

    def last(self, walked: "Walked") -> NDArray[Any]:
        """The stage that each example has visited last here, `(n,)`."""
        before = [path[-1 if path[-1] in self._here else -2] for path in self._paths]
        return np.asarray(np.array(before)[walked.state["node"]])

    def to_send(
        self, walked: "Walked", rows: NDArray[Any], raw: Arrays | None
    ) -> dict[str, NDArray[Any]]:
        """What the cloud needs of some examples that go on, by name.

        Args:
            walked: Of `run`.
            rows: Of those that go on.
            raw: What is sent in the place of the inputs, for these rows; None for the inputs.
        """
        node, edge = walked.state["node"], self.edge
        for stage, segments in edge["goes_on"].items():
            going = rows[walked.ends[rows] == int(stage)]
            self._cascade.reach(segments["lacking"], going, len(node), walked.carries)
        return self._sent(walked, rows, raw, walked.carries)

    def to_audit(
        self, walked: "Walked", rows: NDArray[Any], raw: Arrays | None
    ) -> dict[str, NDArray[Any]]:
        """What the cloud needs of some examples that have been answered here, by name."""
        everyone = np.arange(len(walked.ends))
        inputs = [walked.inputs[name] for name in self._inputs]
        carries = {self._raw: self._carry(inputs, everyone)}
        for segments in list(self.edge["goes_on"].values())[:1]:
            self._cascade.reach(segments["all"], rows, len(everyone), carries)
        return self._sent(walked, rows, raw, carries)

    def _sent(
        self,
        walked: "Walked",
        rows: NDArray[Any],
        raw: Arrays | None,
        carries: Mapping[str, Any],
    ) -> dict[str, NDArray[Any]]:
        from offramp._core.onnx_runner import taken

        edge, state = self.edge, walked.state
        found = {}
        if edge["asked"]:
            logits = np.stack([state[f"logits.{k}"][rows] for k in edge["asked"]], axis=1)
            visited = self._visited[state["node"][rows]]
            for i, k in enumerate(edge["asked"]):  # who has left here has visited its end as well
                visited[:, i] |= walked.ends[rows] == k
            logits = np.where(visited[:, :, None], logits, np.float32(np.nan))
            found[edge["logits"]] = logits.astype(np.float32)
        for name, sent in edge["raw"].items():
            found[sent] = walked.inputs[name][rows] if raw is None else raw[name]
        for group in edge["carry_groups"]:
            for i, tensor in enumerate(taken(carries[group], rows)):
                found |= packed(f"carry.{group}.{i}", tensor, edge["packing"])
        return found


@final
class Walked:
    """How far a batch has come.

    Args:
        inputs: By name.
        state: Of the runner.
        carries: Of the runner.
        ends: For each example the stage where it is, or where it is on its way to, `(n,)`.
        away: Whether that is in the cloud, `(n,)`.
    """

    def __init__(
        self,
        inputs: Arrays,
        state: dict[str, NDArray[Any]],
        carries: dict[str, Any],
        ends: NDArray[Any],
        away: NDArray[Any],
    ) -> None:
        self.inputs, self.state, self.carries = inputs, state, carries
        self.ends, self.away = ends, away


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a device's folder.

    Raises:
        FileFormatError: If it is none, or of another version.
    """
    path = folder / "manifest.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error
    edge = found.get("edge") if isinstance(found, dict) else None
    if not isinstance(edge, dict) or found.get("format") != "offramp-onnx":
        raise FileFormatError(
            f"{folder} is no device's folder of a split; offramp edge split makes one."
        )
    if edge.get("version") != FORMAT:
        raise FileFormatError(
            f"{path} was written by another version of offramp: its version is "
            f"{edge.get('version')!r}, this one reads {FORMAT}. Split again with this version."
        )
    manifest: dict[str, Any] = found
    return manifest
