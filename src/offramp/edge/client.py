"""The device's part of a cascade, and its way to the cloud.

Layer: edge.  Needs numpy and onnxruntime.  Source: docs/adr/0056.
"""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from offramp._core.errors import InputError
from offramp.edge.calls import CallError, Calls
from offramp.edge.device import Arrays, Device, Walked
from offramp.edge.messages import message_of, outputs_of
from offramp.edge.refresh import fetched
from offramp.edge.settings import Settings
from offramp.edge.waiting import Waiting

HERE, THERE = "device", "cloud"


@final
@dataclass(frozen=True, kw_only=True)
class Told:
    """What a batch is told, in order.

    Args:
        label: `(n,)`, int64; -1 where nobody has an answer.
        probabilities: `(n, c)`, float32; NaN where nobody has an answer.
        stage: Name of the stage that answered, `(n,)`.
        where: "device" or "cloud", for each.
        reason: Why there, for each: "policy" or "last" as in the runtime; or why the device
            answered what the policy wanted to send.
        offline: True where the device answered what the policy wanted to send, `(n,)`: there the
            promise of the device alone holds, and not that of the whole.
    """

    label: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    stage: tuple[str, ...]
    where: tuple[str, ...]
    reason: tuple[str, ...]
    offline: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.label)


@final
class Client:
    """Answers easy inputs on this machine, and asks the cloud about the others.

    Every input is answered, and within `timeout` and the time of the stages here: what the cloud
    does not answer by then, or may not be asked, is answered by the last stage that ran here, and
    says so. Safe to be used from several threads.

    Args:
        folder: `device/` of a split.
        settings: How the cloud is asked; or an address alone. None answers everything here.
        threads: Of onnxruntime; 0 lets it choose.

    `counts` says how many were answered where, and why; `bytes` what was sent.

    Raises:
        FileFormatError: If the folder is damaged or no device's.
        MissingExtraError: If onnxruntime is not installed.
    """

    def __init__(
        self, folder: Path | str, settings: Settings | str | None = None, *, threads: int = 0
    ) -> None:
        given = Settings(url=settings) if isinstance(settings, str) else settings or Settings()
        self.settings, self._threads = given, threads
        self.device = Device(folder, threads)
        self.counts: Counter[str] = Counter()
        self.bytes = 0
        self._lock = threading.Lock()
        self._calls = None if given.url is None else Calls(given, self._count_bytes)
        self._waiting = None if given.queue is None else Waiting(given.queue, given.queue_most)
        self._drawn = random.Random()
        self._last, self._day = -float("inf"), (0, 0, 0.0)  # day, bytes and money of it

    @property
    def offline(self) -> Mapping[str, Any]:
        """What is promised of the answers that the device gives by itself; empty if nothing is."""
        found: Mapping[str, Any] = self.device.edge["offline"]
        return found

    def __call__(
        self, inputs: "NDArray[Any] | Arrays", *, raw: "Sequence[bytes] | Arrays | None" = None
    ) -> Told:
        """Answer a batch.

        Args:
            inputs: One array `(n, ...)`, or arrays by name.
            raw: What is sent where the raw input is, if that is something else: files of images,
                or arrays by name.

        Raises:
            InputError: If the inputs are others than the model reads.
        """
        device = self.device  # another one may come meanwhile
        walked = device.run(inputs)
        n = len(walked.ends)
        sources = None if raw is None else _sources(raw, list(device.edge["raw"]), n)
        label, chances = _said(walked.state["answer"])
        stage = [device.stages[k] for k in device.last(walked)]
        reason = ["last" if k == len(device.stages) - 1 else "policy" for k in device.last(walked)]
        where, away = [HERE] * n, np.flatnonzero(walked.away)
        offline = walked.away.copy()
        for rows in _parts(away, self.settings.max_rows):
            try:
                sent = device.to_send(walked, rows, _taken(sources, rows))
                found = self._asked(device, sent, len(rows), keep=True)
            except CallError as error:
                for k in rows:
                    reason[k] = str(error)
                continue
            label[rows], chances[rows] = found["label"], found["probabilities"]
            for i, k in enumerate(rows):
                where[k], stage[k] = THERE, found["stage"][i].decode()
                reason[k] = found["reason"][i].decode()
            offline[rows] = False
        self._audit(device, walked, sources)
        with self._lock:
            self.counts.update(where)
            self.counts["offline"] += int(offline.sum())
        return Told(
            label=label,
            probabilities=chances,
            stage=tuple(stage),
            where=tuple(where),
            reason=tuple(reason),
            offline=offline,
        )

    def check(self) -> None:
        """Ask the cloud whether it goes on from this very device.

        Raises:
            InputError: If it is the cloud of another split; both are named.
            CallError: If it cannot be asked.
        """
        if self._calls is None:
            raise InputError("url must be given to check the cloud.")
        _, _, body = self._calls.ask(f"/v2/models/{self.settings.model}", None, self._headers())
        told = json.loads(body)
        names = [column["name"] for column in told.get("inputs", ())]
        edge, mine = self.device.edge, self.device.edge["id"]
        # A cloud behind a gateway reads raw input of the same split, and no device's answers.
        wanted = [*([edge["logits"]] if edge["asked"] else []), *edge["raw"].values()]
        if not set(wanted) <= set(names) or not any(n.endswith(f".{mine}") for n in names):
            raise InputError(
                f"{self.device.folder} is the device of the split {mine}, but the model "
                f"{self.settings.model!r} at {self.settings.url} is of another one, or the cloud "
                f"of none, or not what this device asks: it reads {names}. Deploy both folders of "
                "one split, or refresh the device; where there is a gateway, ask that."
            )

    def flush(self) -> Iterator[tuple[str, Mapping[str, NDArray[Any]]]]:
        """Ask what could not be asked before; each call's name, and the outputs of its answer.

        A call leaves the disk once its answer has been handed over, so that a kill loses none; one
        that the cloud refuses, such as that of an older device, leaves it as well.
        """
        if self._waiting is None or self._calls is None:
            return
        for file, content in self._waiting.each():
            head, _, body = content.partition(b"\n")
            try:
                yield file.stem, self._called(body, int(head))
            except CallError as error:
                if not error.refused:
                    return
                with self._lock:
                    self.counts["refused later"] += 1
            file.unlink(missing_ok=True)

    def refresh(self, source: Path | str) -> bool:
        """Take another device's folder in the place of this one, if it is of another split.

        Args:
            source: A folder, or the address of one. Only files with another digest are fetched.

        Returns:
            Whether there was another one. Answers come from the old one until the new one is there.

        Raises:
            FileFormatError: If it is no device's folder, or damaged; the old one stays.
            StorageError: If the disk is full.
        """
        if not fetched(source, self.device.folder, self.device.edge):
            return False
        self.device = Device(self.device.folder, self._threads)
        return True

    def close(self) -> None:
        """Close connections; they open again where it is asked."""
        if self._calls is not None:
            self._calls.close()

    # ---- the cloud

    def _asked(
        self, device: Device, sent: Arrays, n: int, *, keep: bool
    ) -> dict[str, NDArray[Any]]:
        """The outputs of the cloud's answer, by name.

        Raises:
            CallError: If it cannot be had, or may not be asked for.
        """
        body, length = message_of(sent)
        try:
            self._check_allowed(len(body))
            found = self._called(body, length)
        except CallError as error:
            if keep and self._waiting is not None and not error.refused:
                self._waiting.put(str(length).encode() + b"\n" + body)
            raise
        label, chances = found.get("label"), found.get("probabilities")
        if label is None or len(label) != n or chances is None or chances.ndim != 2:
            raise CallError("an answer that does not fit", refused=True)
        return found

    def _called(self, body: bytes, length: int) -> dict[str, NDArray[Any]]:
        assert self._calls is not None  # noqa: S101  (whoever comes here has asked)
        return outputs_of(self._calls, self.settings.model, body, length, self._headers())

    def _headers(self) -> dict[str, str]:
        token = self.settings.token()
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    def _check_allowed(self, size: int) -> None:
        """Raise `CallError` where the cloud must not be asked now; else count the call."""
        settings, now = self.settings, time.monotonic()
        if self._calls is None:
            raise CallError("no cloud is given")
        with self._lock:
            day, sent, spent = self._today()
            if now - self._last < settings.min_time_between:
                raise CallError(f"asked less than {settings.min_time_between:g} s ago")
            self._check_bytes(sent + size)
            cost = settings.usd_per_call
            if settings.usd_per_day is not None and spent + cost > settings.usd_per_day:
                raise CallError(f"the ${settings.usd_per_day:g} of the day are used up")
            self._last, self._day = now, (day, sent, spent + cost)

    def _count_bytes(self, size: int) -> None:
        with self._lock:
            day, sent, spent = self._today()
            self._check_bytes(sent + size)
            self._day, self.bytes = (day, sent + size, spent), self.bytes + size

    def _today(self) -> tuple[int, int, float]:
        """The day, and the bytes and money of it; whoever asks holds the lock."""
        day = int(time.time() // 86400)
        return self._day if self._day[0] == day else (day, 0, 0.0)

    def _check_bytes(self, sent: int) -> None:
        most = self.settings.bytes_per_day
        if most is not None and sent > most:
            raise CallError(f"the {most} bytes of the day are used up")

    def _audit(self, device: Device, walked: Walked, raw: Arrays | None) -> None:
        """Send some of the answers that were sure, so that the cloud's watch hears of them."""
        rate = self.settings.confident_audit_rate
        if not rate or self._calls is None:
            return
        rows = np.array([k for k in np.flatnonzero(~walked.away) if self._drawn.random() < rate])
        for part in _parts(rows, self.settings.max_rows):
            try:
                sent = device.to_audit(walked, part, _taken(raw, part))
                self._asked(device, sent, len(part), keep=False)
            except CallError:
                continue
            with self._lock:
                self.counts["audited"] += len(part)


def _said(log_probs: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Labels and probabilities."""
    none = np.isnan(log_probs[:, 0])
    label = np.where(none, -1, log_probs.argmax(axis=1)).astype(np.int64)
    return label, np.exp(log_probs).astype(np.float32)


def _parts(rows: NDArray[Any], most: int) -> list[NDArray[Any]]:
    return [rows[k : k + most] for k in range(0, len(rows), most)]


def _sources(
    raw: "Sequence[bytes] | Arrays", names: Sequence[str], n: int
) -> dict[str, NDArray[Any]]:
    """What is sent of the raw input, by name."""
    if isinstance(raw, Mapping):
        found = {name: np.asarray(values) for name, values in raw.items()}
    else:
        files = np.empty(len(raw), dtype=object)
        files[:] = list(raw)
        found = {names[0]: files} if names else {}
    if set(found) != set(names) or any(len(values) != n for values in found.values()):
        raise InputError(
            f"raw must hold {list(names)}, {n} examples each, as the inputs do, got "
            f"{ {name: len(values) for name, values in found.items()} }."
        )
    return found


def _taken(raw: Arrays | None, rows: NDArray[Any]) -> dict[str, NDArray[Any]] | None:
    return None if raw is None else {name: values[rows] for name, values in raw.items()}
