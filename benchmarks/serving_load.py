"""Servers in processes of their own, and load for them; what `serving.py` is made of."""

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor


def environment() -> dict[str, str]:
    """Of the processes: one thread, and the modules beside this one."""
    own = str(Path(__file__).parent)
    paths = [own, *filter(None, [os.environ.get("PYTHONPATH")])]
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **one, "PYTHONPATH": os.pathsep.join(paths)}


# ---- servers


@dataclass
class Server:
    """A process group pinned to a core."""

    name: str
    command: Sequence[str]
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self, core: int | None, log: Path) -> None:
        """Begin, on one core or on all, and wait until it answers."""
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*pinned, *self.command],
                env=environment(),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        began = time.monotonic()
        while not _listens(self.port):
            if self.process.poll() is not None or time.monotonic() - began > 180:
                raise RuntimeError(f"{self.name} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.2)

    def signal(self, number: int) -> None:
        """To all of its processes."""
        if self.process is not None and self.process.poll() is None:
            for group in {self.process.pid, *_children(self.process.pid)}:
                try:
                    os.kill(group, number)
                except ProcessLookupError:
                    continue

    def resident_mib(self) -> float:
        """Resident memory of all of its processes."""
        total, own = 0, 0 if self.process is None else self.process.pid
        for pid in {own, *_children(own)}:
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            total += pages * os.sysconf("SC_PAGE_SIZE")
        return total / 2**20

    def cpu_seconds(self) -> float:
        """That all of its processes have computed so far, those that run now."""
        ticks, own = 0, 0 if self.process is None else self.process.pid
        for pid in {own, *_children(own)}:
            try:
                line = Path(f"/proc/{pid}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            ticks += sum(map(int, line.rpartition(")")[2].split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End all of it."""
        self.signal(signal.SIGCONT)
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait(20)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def _children(pid: int) -> set[int]:
    """All descendants of a process."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
            except (FileNotFoundError, ProcessLookupError):
                continue
    found: set[int] = set()
    fresh = {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def _listens(port: int) -> bool:
    """Whether the server is ready, by the health check that it has."""
    for path in ("/v2/health/ready", "/health", "/-/healthz"):
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as line:
                line.sendall(
                    f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
                )
                line.settimeout(5)
                if line.recv(64).startswith(b"HTTP/1.1 200"):
                    return True
        except OSError:
            continue
    return False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


@contextmanager
def only(server: Server, servers: Sequence[Server]) -> Iterator[None]:
    """The others hold still."""
    for other in servers:
        if other is not server:
            other.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for other in servers:
            other.signal(signal.SIGCONT)


# ---- requests, made before they are sent


def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A request, whole."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def requests_v2(images: Tensor, model: str, name: str, **parameters: object) -> list[bytes]:
    """Open Inference requests with binary tensors, one image each."""
    made = []
    for image in images:
        data = image.numpy().tobytes()
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": name,
                        "shape": [1, *image.shape],
                        "datatype": "UINT8",
                        "parameters": {"binary_data_size": len(data)},
                    }
                ],
                "outputs": [{"name": "label", "parameters": {"binary_data": False}}],
                "parameters": parameters,
            }
        ).encode()
        made.append(
            post(
                f"/v2/models/{model}/infer",
                head + data,
                {
                    "Content-Type": "application/octet-stream",
                    "Inference-Header-Content-Length": str(len(head)),
                },
            )
        )
    return made


def requests_json(images: Tensor) -> list[bytes]:
    """What the peers take: the bytes of an image, in JSON."""
    return [
        post(
            "/predict",
            json.dumps({"image": base64.b64encode(image.numpy().tobytes()).decode()}).encode(),
            {"Content-Type": "application/json"},
        )
        for image in images
    ]


# ---- load


@dataclass(frozen=True)
class Answer:
    """To one request."""

    index: int
    status: int
    arrived: float  # when it should have been sent
    ended: float
    body: bytes


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A body that comes in chunks, as Ray sends it."""
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


class Line:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; status 0 where the connection broke."""
        try:
            if self.writer is None or self.reader is None:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.writer.write(request)
            head = await self.reader.readuntil(b"\r\n\r\n")
            low = head.lower()
            at = low.find(b"content-length:")
            length = int(low[at + 15 : low.index(b"\r\n", at)]) if at >= 0 else 0
            body = await self.reader.readexactly(length)
            if b"transfer-encoding: chunked" in low:
                body = await _chunks(self.reader)
            if b"connection: close" in low:
                self.close()
            return int(head[9:12]), body
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0, b""

    def close(self) -> None:
        """Let go."""
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


async def closed_loop(
    port: int, requests: Sequence[bytes], clients: int, *, seconds: float = 0, count: int = 0
) -> tuple[float, list[Answer]]:
    """Clients that ask anew once they are answered, for some seconds or a count of requests."""
    answers: list[Answer] = []
    turn, began = 0, time.perf_counter()

    async def client() -> None:
        nonlocal turn
        line = Line(port)
        while (turn < count) if count else (time.perf_counter() - began < seconds):
            index = turn % len(requests)
            turn += 1
            at = time.perf_counter()
            status, body = await line.ask(requests[index])
            answers.append(Answer(index, status, at, time.perf_counter(), body))
        line.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - began, answers


async def open_loop(
    port: int, requests: Sequence[bytes], rate: float, seconds: float, seed: int
) -> list[Answer]:
    """Poisson arrivals; nobody waits for anybody."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    due = np.cumsum(gaps)
    answers: list[Answer] = []
    idle: list[Line] = []
    began = time.perf_counter()

    async def one(k: int) -> None:
        line = idle.pop() if idle else Line(port)
        status, body = await line.ask(requests[k % len(requests)])
        answers.append(Answer(k % len(requests), status, began + due[k], time.perf_counter(), body))
        idle.append(line)

    running = set()
    for k in range(len(due)):
        wait = began + due[k] - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.ensure_future(one(k))
        running.add(task)
        task.add_done_callback(running.discard)
    if running:
        await asyncio.wait(running, timeout=60)
    lost = len(due) - len(answers)
    answers += [Answer(0, 0, began, time.perf_counter(), b"")] * lost
    for line in idle:
        line.close()
    return answers
