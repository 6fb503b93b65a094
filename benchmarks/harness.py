"""What every benchmark shares: machine facts, and one JSON object last."""

import argparse
import json
import os
import platform
import resource
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp._core.files import write_json

if TYPE_CHECKING:
    from torch import Tensor


def parser(description: str) -> argparse.ArgumentParser:
    """Command line with the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", action="store_true", help="print one JSON object last")
    made.add_argument("--out", type=Path, help="also write the JSON object to this file")
    return made


def machine() -> dict[str, Any]:
    """Facts that a figure depends on."""
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    packages = ("torch", "numpy", "scipy", "offramp")
    from torch.backends.cpu import get_cpu_capability

    return {
        "cpu": model,
        "instructions": get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def has_bfloat16() -> bool:
    """True where the processor multiplies bfloat16; elsewhere that takes ten times as long."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text().split()


def scaled(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """The same shares of `count` examples; sizes as they are where they are enough."""
    whole = sum(sizes.values())
    return {name: size * min(count, whole) // whole for name, size in sizes.items()}


def peak_mib() -> float:
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def speedups(
    adaptive: Callable[[Any], object],
    static: Callable[[Any], object],
    images: "Tensor | Sequence[object]",
    *,
    rounds: int,
    sizes: Sequence[tuple[int, int]] = ((128, 1408), (1, 128)),
) -> dict[str, float]:
    """Time of `static` over that of `adaptive`, in interleaved rounds.

    `sizes` are batch sizes, each with the number of images.
    """
    from offramp.stages import time_side_by_side

    found = {}
    for size, count in sizes:
        some = images[:count]
        batches = [some[k : k + size] for k in range(0, len(some), size)]
        times = time_side_by_side(
            {
                "adaptive": lambda b=batches: [adaptive(x) for x in b],
                "static": lambda b=batches: [static(x) for x in b],
            },
            rounds=rounds,
        )
        found[f"speedup_batch{size}"] = times["ratio"]
    return found


def report(arguments: argparse.Namespace, result: Mapping[str, Any]) -> None:
    """Print the figures, as a table for people or as one JSON object."""
    result = {**result, "machine": machine()}
    if arguments.out is not None:
        write_json(arguments.out, result)
    if arguments.json:
        print(json.dumps(result, allow_nan=False))
        return
    for name, value in result.items():
        print(f"{name:32} {value:.4f}" if isinstance(value, float) else f"{name:32} {value}")
