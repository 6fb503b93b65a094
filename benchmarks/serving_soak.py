"""Mixed load on one server for some minutes: what it loses, and whether it grows.

Two small cascades with gears, audits and a folder for what is watched. Clients send rows in JSON,
binary tensors, images, late labels, and bodies that are no requests; some go away before they are
answered, others scrape metrics and load the models anew.

    requests           that were sent, also by kind
    errors_5xx         answers that say that the server is to blame
    lost               requests that nothing was said to, but for those whose client went away
    refused            429: the queue was full
    memory_first_mib   resident memory after the first tenth of the time
    memory_growth_mib, threads_growth, files_growth   from then to the end
    minutes            the same at every minute (of a short run at every fifth of it)
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import parser, report
from PIL import Image
from serving_load import Line, Server, free_port, post

import offramp
from offramp import ModelSpec
from offramp.models import build
from offramp.stages import Normalize, Resize
from offramp.trace import make_trace

SHAPE = (3, 16, 16)
RELOAD = 3.0  # seconds between two loads of a model
PAUSE = 0.02  # between two requests of those who are not served
JSON = {"Content-Type": "application/json"}

#: A client: sends once over a line, and says with what status it was answered (None: it went away).
Client = Callable[[Line, int], Awaitable[int | None]]


# ---- what is served


def save_bundles(folder: Path) -> None:
    """`rows` takes tensors, `pictures` takes images; their promises are of a made-up trace."""
    trace = make_trace(3000, accuracies=[0.8, 0.85, 0.9], classes=3, seed=2)
    trace = trace.split_into({"fit": 1000, "calibrate": 1000, "test": 1000}, seed=0)
    frontier = offramp.fit(trace, "threshold", progress=False)
    gears = frontier.gears((0.02, 0.05), delta=0.1, examples=trace.subset("calibrate"))
    arguments = {"width": 2, "depth": 2, "classes": 3, "in_channels": 3}
    spec = ModelSpec(name="small_cnn", arguments=arguments)
    stages = trace.topology.names
    for name, transform in (("rows", None), ("pictures", [Resize(SHAPE[1:]), Normalize(1 / 255)])):
        cascade = offramp.Cascade.from_models(
            {stage: build(spec) for stage in stages},
            specs=dict.fromkeys(stages, spec),
            transform=transform,
        )
        gear = gears[gears.names[-1]]
        model = offramp.Adaptive(cascade, gear, costs=trace.costs, gears=gears)
        offramp.save(model, folder / name, input_shape=SHAPE)


# ---- who asks


def picture(k: int) -> bytes:
    """A PNG of some size."""
    size = 12 + 8 * (k % 5)
    drawn = np.random.default_rng(k).integers(0, 256, (size, size + 4, 3), dtype=np.uint8)
    held = io.BytesIO()
    Image.fromarray(drawn).save(held, "PNG")
    return held.getvalue()


def rows_request(k: int, n: int, *, binary: bool) -> bytes:
    """An Open Inference request of n rows."""
    rows = np.random.default_rng(k).standard_normal((n, *SHAPE), dtype=np.float32)
    entry: dict[str, Any] = {"name": "input", "shape": [n, *SHAPE], "datatype": "FP32"}
    headers, data = dict(JSON), b""
    if binary:
        data = rows.tobytes()
        entry["parameters"] = {"binary_data_size": len(data)}
    else:
        entry["data"] = rows.ravel().tolist()
    head = json.dumps({"id": f"r{k}", "inputs": [entry]}).encode()
    if binary:
        headers["Inference-Header-Content-Length"] = str(len(head))
    return post("/v2/models/rows/infer", head + data, headers)


def spoiled(k: int) -> bytes:
    """A request with something wrong in it."""
    draw = random.Random(k)
    body = bytearray(rows_request(k, 1, binary=False).partition(b"\r\n\r\n")[2])
    for _ in range(draw.randrange(1, 5)):
        body[draw.randrange(len(body))] = draw.randrange(256)
    return post("/v2/models/rows/infer", bytes(body[: draw.randrange(1, len(body))]), JSON)


def get(path: str) -> bytes:
    """A request without a body."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


async def asked(line: Line, request: bytes) -> int:
    """The status of the answer."""
    return (await line.ask(request))[0]


async def json_rows(line: Line, k: int) -> int:
    """One to eight rows in JSON."""
    return await asked(line, rows_request(k, 1 + k % 8, binary=False))


async def binary_rows(line: Line, k: int) -> int:
    """One to two hundred rows in bytes."""
    return await asked(line, rows_request(k, 200 if k % 50 == 0 else 1 + k % 8, binary=True))


async def image(line: Line, k: int) -> int:
    """An image, as it is or in JSON."""
    if k % 2:
        body = json.dumps({"rows": [{"b64": base64.b64encode(picture(k)).decode()}]}).encode()
        return await asked(line, post("/predict?model=pictures", body, JSON))
    return await asked(
        line, post("/predict?model=pictures", picture(k), {"Content-Type": "image/png"})
    )


async def malformed(line: Line, k: int) -> int:
    """No request at all."""
    await asyncio.sleep(PAUSE)
    return await asked(line, spoiled(k))


async def cancelled(line: Line, k: int) -> None:
    """Goes before it is answered."""
    await asyncio.sleep(PAUSE)
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", line.port)
        writer.write(rows_request(k, 8, binary=True)[: None if k % 2 else -100])
        await asyncio.sleep(0.001 * (k % 7))
        writer.close()
    except OSError:
        return


async def feedback(line: Line, k: int) -> int:
    """Labels of earlier answers, most of which nobody waits for."""
    await asyncio.sleep(PAUSE)
    told = {"ids": [f"r{j}" for j in range(k, k + 10)], "labels": [j % 3 for j in range(10)]}
    return await asked(line, post("/v2/models/rows/feedback", json.dumps(told).encode(), JSON))


async def scrape(line: Line, k: int) -> int:
    """Looks at the numbers."""
    await asyncio.sleep(5 * PAUSE)
    return await asked(line, get(("/metrics", "/v2/models/rows/stats", "/", "/docs")[k % 4]))


async def reload(line: Line, k: int) -> int:
    """Loads a model anew."""
    await asyncio.sleep(RELOAD)
    path = f"/v2/repository/models/{('rows', 'pictures')[k % 2]}/load"
    return await asked(line, post(path, b"", {}))


CLIENTS: dict[Client, int] = {  # and how many there are of each kind
    **{json_rows: 4, binary_rows: 4, image: 4},
    **{malformed: 2, cancelled: 2, feedback: 1, scrape: 1, reload: 1},
}


# ---- the figures


def state_of(server: Server) -> dict[str, float]:
    """What the server holds now."""
    pid = 0 if server.process is None else server.process.pid
    status = Path(f"/proc/{pid}/status").read_text().split("Threads:")[1].split()[0]
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return {"memory_mib": server.resident_mib(), "threads": int(status), "files": files}


async def soak(server: Server, seconds: float) -> dict[str, Any]:
    """Ask for so long."""
    end = time.monotonic() + seconds
    by_kind, by_status = Counter[str](), Counter[int]()

    async def client(kind: Client, first: int) -> None:
        line, k = Line(server.port), first
        while time.monotonic() < end:
            status = await kind(line, k)
            by_kind[kind.__name__] += 1
            by_status.update([] if status is None else [status])
            k += 1
        line.close()

    async def look() -> list[dict[str, float]]:
        await asyncio.sleep(seconds / 10)
        found = [state_of(server)]
        step = min(60.0, seconds / 5)
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(step, left))
            found.append(state_of(server))
        return found

    many = [
        client(kind, 1_000_000 * number + 1000 * k)
        for number, (kind, count) in enumerate(CLIENTS.items())
        for k in range(count)
    ]
    states, *_ = await asyncio.gather(look(), *many)
    first, last = states[0], states[-1]
    return {
        "requests": by_kind.total(),
        "requests_by_kind": dict(by_kind),
        "statuses": {str(status): count for status, count in sorted(by_status.items())},
        "errors_5xx": sum(count for status, count in by_status.items() if status >= 500),
        "lost": by_status[0],
        "refused": by_status[429],
        "memory_first_mib": first["memory_mib"],
        **{
            f"{name}_growth{unit}": last[name + unit] - first[name + unit]
            for name, unit in (("memory", "_mib"), ("threads", ""), ("files", ""))
        },
        "minutes": states,
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        save_bundles(work)
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "offramp",
            "serve",
            str(work / "rows"),
            str(work / "pictures"),
        ]
        command += ["--port", str(port), "--audit", "0.05", "--watch", str(work / "watch")]
        server = Server("ours", [*command, "--workers", str(arguments.workers)], port)
        try:
            server.start(cores[0], work / "log")
            result = asyncio.run(soak(server, 60 * arguments.minutes))
        finally:
            server.stop()
        said = (work / "log").read_text()
    return {"minutes_asked": arguments.minutes, "tracebacks": said.count("Traceback"), **result}


def main() -> None:
    """Run it."""
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=30.0)
    options.add_argument("--workers", type=int, default=1)
    arguments = options.parse_args()
    report(arguments, measure(arguments))


if __name__ == "__main__":
    main()
