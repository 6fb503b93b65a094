"""Part `checks`: the tests that need a device, and the runtime on it (`runtime_cuda.py`)."""

import argparse
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import runtime_cuda
from setting import Setting

ROOT = Path(__file__).resolve().parents[2]
SHARE = 0.4  # of the time, for the tests
COLUMNS = ("what", "batch 1", "batch 128", "batch 1024")


def run(setting: Setting) -> dict[str, Any]:
    """Run the tests, then measure."""
    tests = _tests(setting)
    sizes = (1, 4) if setting.tiny else runtime_cuda.SIZES
    measured = runtime_cuda.measure(
        argparse.Namespace(
            device=str(setting.device),
            batch_sizes=list(sizes),
            rounds=1 if setting.tiny else 9,
            tiny=setting.tiny,
            weights=setting.state / "networks",
            compile=not setting.tiny,
        ),
        lambda: setting.budget.left - setting.reserve,
    )
    rows = [{"what": f"tests {name}", "batch 1": count} for name, count in tests.items()]
    columns = ("what", *(f"batch {size}" for size in sizes))
    return {
        "tests": tests,
        "measured": measured,
        "rows": rows + runtime_cuda.rows(measured, sizes),
        "columns": columns,
        "complete": not tests["failed"] and not measured["left_out"],
    }


def _tests(setting: Setting) -> dict[str, int]:
    """How many passed, failed and were skipped."""
    path = setting.state / "checks" / "tests.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", str(ROOT / "tests" / "gpu"), "-q"]
    command += ["-p", "no:cacheprovider", f"--junitxml={path}"]
    with (path.parent / "tests.txt").open("w", encoding="utf-8") as said:
        try:
            subprocess.run(
                command,
                stdout=said,
                stderr=subprocess.STDOUT,
                check=False,
                cwd=ROOT,
                timeout=max(60.0, SHARE * setting.budget.left),
                env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            )
        except subprocess.TimeoutExpired:
            said.write("\nThe time was over.\n")
    setting.keep("checks/tests.txt")
    if not path.exists():
        return {"passed": 0, "failed": 1, "skipped": 0}
    suite = next(ElementTree.parse(path).getroot().iter("testsuite")).attrib
    count = {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    return {
        "passed": count["tests"] - failed - count["skipped"],
        "failed": failed,
        "skipped": count["skipped"],
    }
