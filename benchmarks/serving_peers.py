"""What `serving.py` and `ray_cluster.py` compare with, each in a process of its own."""

import argparse
import base64
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import offramp
from offramp.runtime import Adaptive

SHAPE = (3, 32, 32)
FULL = 64
SEEN = 3000  # images that policies were chosen on; the others are sent


def loaded(bundle: str, backend: str) -> Adaptive:
    """The bundle in a backend, one thread."""
    torch.set_num_threads(1)
    return offramp.load(bundle, backend=backend)


def image_in(request: dict[str, str]) -> np.ndarray:
    """The image of a request."""
    return np.frombuffer(base64.b64decode(request["image"]), np.uint8).reshape(SHAPE)


def ray(bundle: str, port: int, backend: str) -> None:
    """Two deployments that batch for themselves, and one that asks them."""
    from starlette.requests import Request

    import ray as ray_package
    from ray import serve

    ray_package.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    options: dict[str, Any] = {"max_ongoing_requests": 256}

    @serve.deployment(**options)
    class Stage:
        def __init__(self, k: int) -> None:
            model = loaded(bundle, backend)
            self.stage, self.policy = model.program.stages[k], model.policy
            self.first = k == 0

        @serve.batch(max_batch_size=FULL, batch_wait_timeout_s=0.002)
        async def __call__(self, images: list[np.ndarray]) -> list[tuple[int, float]]:
            with torch.inference_mode():
                said, _ = self.stage.run(torch.from_numpy(np.stack(images)))
                sure, labels = said.scores().softmax(dim=1).max(dim=1)
            return list(zip(labels.tolist(), sure.tolist(), strict=True))

    @serve.deployment(**options)
    class Both:
        def __init__(self, small: Any, large: Any) -> None:
            self.small, self.large = small, large
            rule = loaded(bundle, backend).policy.node((0,)).leave
            self.value = -float(rule.bias)

        async def __call__(self, request: Request) -> dict[str, int]:
            image = image_in(json.loads(await request.body()))
            label, sure = await self.small.remote(image)
            if sure < self.value:
                label, _ = await self.large.remote(image)
            return {"label": label}

    serve.run(Both.bind(Stage.bind(0), Stage.bind(1)), route_prefix="/predict")
    while True:
        time.sleep(3600)


def cluster(bundle: str, port: int, backend: str, fuse: str) -> None:
    """The application of offramp, on the same Ray."""
    import ray as ray_package
    from offramp.serve.ray import build_app
    from ray import serve

    ray_package.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_app(bundle, fuse=fuse, settings={"backend": backend}), route_prefix="/")
    while True:
        time.sleep(3600)


def offline(bundle: str, data: Path, backend: str) -> dict[str, float]:
    """Images a second of `stream`, fed by batches of the size that its first stage likes."""
    model = loaded(bundle, backend)
    with np.load(data / "test_jpeg_1000_5500.npz", allow_pickle=False) as held:
        images = torch.from_numpy(held["images"]).permute(0, 3, 1, 2).contiguous()[SEEN:]
    batches = images.split(FULL)
    list(model.stream(batches[:8]))
    begin = time.perf_counter()
    count = sum(len(ids) for ids, _ in model.stream(batches))
    return {"images_per_second": count / (time.perf_counter() - begin)}


def single(bundle: str, count: int, backend: str) -> dict[str, float]:
    """Median time of one image."""
    model = loaded(bundle, backend)
    held = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(count, 1, *SHAPE)
    images = torch.from_numpy(held.copy())
    times = []
    for _ in range(3):
        for image in images:
            begin = time.perf_counter()
            model(image).labels.tolist()
            times.append(time.perf_counter() - begin)
    return {"median_us": 1e6 * median(times[count:])}


def main() -> None:
    """Run the one that the command line names."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "what", choices=["litserve", "static", "ray", "cluster", "apart", "offline", "single"]
    )
    options.add_argument("bundle")
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--data", type=Path)
    options.add_argument("--images", type=int, default=0)
    options.add_argument("--backend", default="folded")
    given = options.parse_args()
    if given.what in ("litserve", "static"):
        from serving_litserve import run

        run(given.bundle, given.port, given.backend, static=given.what == "static")
    elif given.what == "ray":
        ray(given.bundle, given.port, given.backend)
    elif given.what in ("cluster", "apart"):
        cluster(
            given.bundle, given.port, given.backend, "auto" if given.what == "cluster" else "none"
        )
    elif given.what == "offline":
        print(json.dumps(offline(given.bundle, given.data, given.backend)))
    else:
        print(json.dumps(single(given.bundle, given.images, given.backend)))
