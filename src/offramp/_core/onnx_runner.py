"""Runs an exported folder: needs numpy and onnxruntime, nothing else of offramp.

    python run.py inputs.npz answers.npz

The first file holds the inputs by name, `(n, ...)` each; the second gets `log_probs` `(n, c)`,
`label` and `stage`, both `(n,)`. From Python: `Cascade(folder)(inputs)`.

Layer: _core; copied into each folder that `offramp.export_onnx` writes.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Or onnxruntime keeps an id of this device, and events to be sent, under the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

RAW = ""  # stands for the raw input among the carries


class Prediction(NamedTuple):
    """What a cascade says about a batch, in order.

    Log-probabilities `(n, c)`, NaN where there is no answer; labels `(n,)`, -1 where there is
    none; and the index of the stage at which each example left, `(n,)`.
    """

    log_probs: np.ndarray
    label: np.ndarray
    stage: np.ndarray


class Carry(NamedTuple):
    """Tensors with one row for each example that has them; its row for each example, or -1."""

    tensors: list[np.ndarray]
    place: np.ndarray


class Cascade:
    """The cascade of a folder.

    Args:
        folder: What `offramp export --out` wrote.
        threads: Threads of each session; 0 lets onnxruntime choose.
    """

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        self.folder = Path(folder)
        self.manifest = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        if self.manifest.get("format") != "offramp-onnx" or self.manifest.get("version") != 1:
            raise ValueError(f"{self.folder} is no folder that this runner reads.")
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        # Threads that spin after one stage take the cores from the next.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions = {file: self._session(file) for file in self.manifest["files"]}
        self._ends = np.array([path[-1] for path in self.manifest["paths"]])
        self._seen: set[np.dtype] = set()  # types of numbers that have been looked at

    def __call__(self, inputs: np.ndarray | Mapping[str, np.ndarray]) -> Prediction:
        """Answer a batch: one array, or arrays by name."""
        state, _ = self.walk(inputs)
        label = np.where(np.isnan(state["answer"][:, 0]), -1, state["answer"].argmax(axis=1))
        return Prediction(state["answer"], label, self._ends[state["node"]])

    def walk(
        self, inputs: np.ndarray | Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, Carry]]:
        """Take a batch through the stages that are here; what is known then, and the carries."""
        names = self.manifest["inputs"]
        given = inputs if isinstance(inputs, Mapping) else {names[0]: inputs}
        raw = [np.asarray(given[name]) for name in names]
        self.look(raw[0])
        n, everyone = len(raw[0]), np.arange(len(raw[0]))
        state = {
            "node": np.zeros(n, dtype=np.int64),
            "answer": np.full((n, self.manifest["classes"]), np.nan, dtype=np.float32),
            "clean": np.ones(n, dtype=bool),
        }
        void = np.zeros_like(state["answer"])  # what stages that nobody has visited have said
        state |= {f"logits.{stage['index']}": void for stage in self.manifest["stages"]}
        carries = {RAW: Carry(raw, everyone)}
        for stage in self.manifest["stages"]:
            rows = np.flatnonzero(self._ends[state["node"]] == stage["index"])
            if len(rows):
                self._visit(stage, rows, state, carries)
        return state, carries

    def look(self, x: np.ndarray) -> None:
        """Raise `ValueError` where the first numbers of a type are not those that stages read."""
        if x.dtype in self._seen or not x.size:
            return
        said = True
        for low, high in self.manifest.get("domains", ()):
            picture, room = x.ndim >= 3 and x.shape[-3] in (1, 3), (high - low) / 2
            if high <= 1 and not picture:
                continue
            known, whole = x, x.dtype.kind != "f"
            if not (whole or np.isfinite(float(x.min()) + float(x.max()))):
                known, said = x[np.isfinite(x)], False  # the others hide none of these
                if not known.size:
                    continue
            least, most = float(known.min()), float(known.max())
            largest, pixels = max(abs(least), abs(most)), x.dtype == np.uint8 and high >= 255
            dark = high > 2 and 0 < largest <= max(1.0, high / 64) and not pixels
            if whole:  # a mask is no picture; counts in a table may all be 1
                dark = dark and largest <= 1 and (high >= 255 or picture)
            elif dark:
                dark = largest <= 1 or not np.array_equal(known, known.round())
            if dark or least < low - room or most > high + room:
                raise ValueError(
                    f"inputs must hold numbers in [{low:g}, {high:g}], which the stages read, got "
                    f"{x.dtype} in [{least:.4g}, {most:.4g}]."
                )
            said &= pixels or (largest > 0 and (not whole or high > 1))
        if said:
            self._seen.add(x.dtype)

    def reach(
        self, segments: list[dict[str, str]], rows: np.ndarray, n: int, carries: dict[str, Carry]
    ) -> None:
        """Run those segments that the examples at `rows`, of `n`, have not run."""
        for segment in segments:
            held = carries.get(segment["group"])
            lacking = rows if held is None else rows[held.place[rows] < 0]
            if len(lacking):
                made = self._run(segment["file"], taken(carries[segment["source"]], lacking))
                carries[segment["group"]] = joined(held, made, lacking, n)

    def _visit(
        self,
        stage: dict[str, Any],
        rows: np.ndarray,
        state: dict[str, np.ndarray],
        carries: dict[str, Carry],
    ) -> None:
        """Run what the examples at `rows` lack, answer and decide."""
        self.reach(stage["segments"], rows, len(state["node"]), carries)
        carry = taken(carries[stage["group"]], rows)
        (logits,) = carry if stage["head"] is None else self._run(stage["head"], carry)
        name = f"logits.{stage['index']}"
        state[name] = np.zeros_like(state["answer"])
        state[name][rows] = logits
        given = [logits if what == "logits" else state[what][rows] for what in stage["reads"]]
        found = self._run(stage["decision"], given)
        for what, values in zip(("answer", "node", "clean"), found, strict=True):
            state[what][rows] = values
        for group in set(carries) - set(stage["keep"]):
            del carries[group]

    def _run(self, file: str, given: list[np.ndarray]) -> list[np.ndarray]:
        session = self._sessions[file]
        names = [value.name for value in session.get_inputs()]
        return list(session.run(None, dict(zip(names, given, strict=True))))

    def _session(self, file: str) -> onnxruntime.InferenceSession:
        path = str(self.folder / file)
        return onnxruntime.InferenceSession(path, self._options, providers=["CPUExecutionProvider"])


def taken(carry: Carry, rows: np.ndarray) -> list[np.ndarray]:
    """The rows of some examples; the arrays themselves where those are all, in order."""
    index = carry.place[rows]
    if len(index) == len(carry.tensors[0]) and np.array_equal(index, np.arange(len(index))):
        return carry.tensors
    return [tensor[index] for tensor in carry.tensors]


def joined(held: Carry | None, made: list[np.ndarray], rows: np.ndarray, n: int) -> Carry:
    """A carry with rows of other examples behind those that are there."""
    start = 0 if held is None else len(held.tensors[0])
    place = np.full(n, -1) if held is None else held.place.copy()
    place[rows] = start + np.arange(len(rows))
    if held is not None:
        made = [np.concatenate(pair) for pair in zip(held.tensors, made, strict=True)]
    return Carry(made, place)


def main(arguments: list[str]) -> None:
    """Answer the inputs of one file into another."""
    if len(arguments) != 2:
        raise SystemExit("usage: python run.py INPUTS.npz ANSWERS.npz")
    with np.load(arguments[0], allow_pickle=False) as inputs:
        answer = Cascade(Path(__file__).parent)(dict(inputs))
    np.savez(arguments[1], **answer._asdict())


if __name__ == "__main__":
    main(sys.argv[1:])
