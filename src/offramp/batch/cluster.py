"""Ray, as far as it is needed here.

Layer: batch.
"""

import os
from typing import Any

from offramp._core.checks import check_positive_int
from offramp._core.cluster import ray_module
from offramp._core.errors import InputError

#: How many processes, or the least and the most of them.
Workers = int | tuple[int, int]


def ray_data() -> Any:  # noqa: ANN401  (Ray is optional)
    """Ray with its package of data, which runs here or on the cluster that RAY_ADDRESS names.

    Raises:
        MissingExtraError: If it is not installed.
    """
    ray = ray_module("ray")
    ray_module("ray.data")
    if not ray.is_initialized():
        here = {} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}
        ray.init(log_to_driver=False, **here)
    return ray


def resources(
    ray: Any,  # noqa: ANN401
    threads: int,
    workers: Workers | None,
    num_gpus: float = 0,
) -> dict[str, Any]:
    """What `map_batches` is told of a pool of processes.

    Raises:
        InputError: If `workers` is not one number of at least 1, or two, the first the smaller.
    """
    if workers is None:
        workers = max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
    least, most = (workers, workers) if isinstance(workers, int) else workers
    if not 1 <= check_positive_int("workers", least) <= check_positive_int("workers", most):
        raise InputError(f"workers must be the least and the most of them, got {workers}.")
    pool = ray.data.ActorPoolStrategy(min_size=least, max_size=most)
    return {"compute": pool, "num_cpus": threads, "num_gpus": num_gpus}
