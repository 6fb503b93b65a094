"""The first minutes of a newcomer: from the sources to a promise, and to a model that is served.

In a new folder a copy of this checkout's sources is installed into a bare environment with pip, as
a newcomer would; then the commands that the documentation names are typed one after the other, and
timed by the clock.

    seconds_to_install      from a bare Python to `offramp` (with what pip has cached by then)
    seconds_to_promise      from there to the end of `offramp demo`
    commands_to_promise     typed, installation included
    seconds_to_own_model    from the end of the demo to the answer of a server of one's own model:
                            two trained networks lie on the disk, `offramp init`, `record`,
                            `fit --bundle` and `serve` follow, and a request is answered
    commands_to_own_model   typed, from there
    load_at_the_start       processes that wanted a core in the minute before

`--installed` times an environment that has offramp already, and installs nothing. `--torch` is what
is asked of pip beside it, such as torch==2.13.0: without it pip may take a build with CUDA.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import parser, report

ROOT = Path(__file__).resolve().parents[1]
NOT_READY = 503  # while the model is loaded
_TRAIN = """
from offramp.data import digits
from offramp.models import save_weights, small_cnn
from offramp.stages import Normalize
from offramp.train import train_classifier
part = digits().split_into({"train": 600}, seed=1)
for name, width in (("small", 4), ("large", 16)):
    net = small_cnn(width=width)
    train_classifier(net, part, epochs=EPOCHS, seed=0, transform=Normalize(1 / 16), progress=False)
    save_weights(net, f"{name}.safetensors")
"""


class Shell:
    """Types commands in a folder, with the programs of an environment, and counts them."""

    def __init__(self, place: Path, programs: Path) -> None:
        self.place, self.programs = place, programs
        self.typed: list[str] = []
        self.environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def program(self, name: str) -> str:
        """Of the environment."""
        return str(self.programs / name)

    def type(self, *words: object, expected: tuple[int, ...] = (0,)) -> None:
        """Type a command, which has to work."""
        self.typed.append(" ".join(map(str, words)))
        name, *rest = map(str, words)
        done = subprocess.run(
            [self.program(name), *rest],
            cwd=self.place,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in expected:
            raise SystemExit(f"{self.typed[-1]} failed:\n{done.stdout}\n{done.stderr}")

    @contextmanager
    def serving(self, bundle: str) -> Iterator[str]:
        """Type `offramp serve`, and give its address."""
        self.typed.append(f"offramp serve {bundle}")
        words = [self.program("offramp"), "serve", bundle, "--port", "0", "--json"]
        with subprocess.Popen(
            words,
            cwd=self.place,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            try:
                yield json.loads((process.stdout or sys.stdin).readline())["url"]
            finally:
                process.terminate()


def installed(place: Path, torch: str) -> Shell:
    """A bare environment with the sources of this checkout in it."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    copy = place / "offramp"
    shutil.copytree(ROOT / "src", copy / "src", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    venv.create(place / "env", with_pip=True)
    shell = Shell(place, place / "env" / "bin")
    shell.type("pip", "install", torch, f"{copy}[serve]")
    return shell


def answered(url: str) -> int:
    """Ask until the model is loaded, and say how many examples were answered."""
    body = json.dumps({"rows": [[[[0] * 8] * 8]]}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return len(json.load(answer)["answers"])
        except urllib.error.HTTPError as error:
            if error.code != NOT_READY or time.monotonic() > deadline:
                raise SystemExit(f"The server says: {error.read().decode()}") from error
        time.sleep(0.05)


def main() -> None:
    """Install, see the demo, serve one's own."""
    options = parser(__doc__ or "")
    options.add_argument("--installed", action="store_true", help="time this environment")
    options.add_argument("--torch", default="torch", help="what pip is asked for")
    options.add_argument("--tiny", action="store_true", help="recorded answers for the demo")
    arguments = options.parse_args()
    result: dict[str, Any] = {"load_at_the_start": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="first-minutes-") as folder:
        place, start = Path(folder), time.perf_counter()
        if arguments.installed:
            shell = Shell(place, Path(sys.executable).parent)
            shell.environment = dict(os.environ)
        else:
            shell = installed(place, arguments.torch)
        result["seconds_to_install"] = time.perf_counter() - start
        start = time.perf_counter()
        shell.type("offramp", "demo", *(["--services"] if arguments.tiny else []))
        result["seconds_to_promise"] = time.perf_counter() - start
        result["commands_to_promise"] = len(shell.typed)
        code = _TRAIN.replace("EPOCHS", "2" if arguments.tiny else "10")
        subprocess.run(
            [shell.program("python"), "-c", code], cwd=place, env=shell.environment, check=True
        )
        shell.typed.clear()
        start = time.perf_counter()
        networks = ("small_cnn width=4", "small.safetensors", "small_cnn", "large.safetensors")
        given = zip(("--model", "--weights") * 2, networks, strict=True)
        shell.type("offramp", "init", "--case", "networks", *(w for pair in given for w in pair))
        shell.type("offramp", "record", "--config", "run.toml")
        shell.type("offramp", "fit", "--config", "run.toml", "--bundle", "bundle", expected=(0, 3))
        with shell.serving("bundle") as url:
            answered(url)
        result["seconds_to_own_model"] = time.perf_counter() - start
        result["commands_to_own_model"] = len(shell.typed)
    report(arguments, result)


if __name__ == "__main__":
    main()
