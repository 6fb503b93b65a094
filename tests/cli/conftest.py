from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from offramp.cli import main
from offramp.data import digits
from offramp.models import ModelSpec, build, save_weights
from offramp.stages import Normalize
from offramp.trace import make_trace, save_trace
from offramp.train import train_classifier

CONFIG = """
[data]
kind = "digits"
splits = { fit = 400, calibrate = 300, test = 300 }
seed = 7

[[stage]]
name = "small"
model = "small_cnn"
arguments = { width = 2, depth = 2 }
weights = "small.safetensors"
transform = { kind = "normalize", scale = 0.0625 }

[[stage]]
name = "large"
model = "small_cnn"
arguments = { width = 8, depth = 3 }
weights = "large.safetensors"
transform = { kind = "normalize", scale = 0.0625 }

[fit]
policy = "threshold"
combines = ["last"]
max_drop = 0.02
delta = "none"

[output]
dir = "run"
"""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the program in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        caught = capsys.readouterr()
        return Outcome(code, caught.out, caught.err)

    return call


@pytest.fixture(scope="session")
def trace_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic trace of two stages with splits."""
    trace = make_trace(900, accuracies=[0.8, 0.93], seed=3)
    path = tmp_path_factory.mktemp("traces") / "made.trace"
    save_trace(trace.split_into({"fit": 400, "calibrate": 250, "test": 250}, seed=0), path)
    return path


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and the trained networks that it names."""
    folder = tmp_path_factory.mktemp("project")
    torch.set_num_threads(1)
    part = digits().split_into({"train": 600}, seed=1)
    for name, width, depth, epochs in (("small", 2, 2, 6), ("large", 8, 3, 8)):
        net = build(ModelSpec(name="small_cnn", arguments={"width": width, "depth": depth}))
        train_classifier(net, part, epochs=epochs, seed=0, transform=Normalize(1 / 16))
        save_weights(net, folder / f"{name}.safetensors")
    (folder / "run.toml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="session")
def deployed(project: Path) -> Path:
    """The same folder after record and fit, with a run and a bundle."""
    config = str(project / "run.toml")
    if main(["record", "--config", config]) or main(
        ["fit", "--config", config, "--bundle", str(project / "bundle")]
    ):
        raise RuntimeError("record or fit failed")
    return project


EXITS = """
[data]
kind = "digits"
splits = { train = 500, fit = 400, calibrate = 300, test = 300 }
seed = 3

[network]
model = "small_cnn"
arguments = { width = 8, depth = 4 }
weights = "net.safetensors"
transform = { kind = "normalize", scale = 0.0625 }

[exits]
match = "features.[02]"
heads = { linear = "gap_linear", deep = { kind = "conv_head", filters = 8 } }

[train]
epochs = 4
batch_size = 16
learning_rate = 0.02

[cost]
also = ["seconds"]
batch_size = 16

[fit]
policy = "threshold"
combines = ["last"]
max_drop = 0.03
delta = "none"

[output]
dir = "run"
"""


@pytest.fixture(scope="session")
def one_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained network and a configuration that gives it exits."""
    folder = tmp_path_factory.mktemp("exits")
    torch.set_num_threads(1)
    splits = {"train": 500, "fit": 400, "calibrate": 300, "test": 300}
    part = digits().split_into(splits, seed=3, stratified=True).subset("train")
    net = build(ModelSpec(name="small_cnn", arguments={"width": 8, "depth": 4}))
    train_classifier(net, part, epochs=8, seed=0, transform=Normalize(1 / 16))
    save_weights(net, folder / "net.safetensors")
    (folder / "exits.toml").write_text(EXITS)
    return folder


@pytest.fixture(scope="session")
def exits_deployed(one_network: Path) -> Path:
    """The same folder after train, record and fit, with a run and a bundle."""
    config = str(one_network / "exits.toml")
    steps = (
        ["train", "--config", config],
        ["record", "--config", config],
        ["fit", "--config", config, "--bundle", str(one_network / "bundle")],
    )
    for step in steps:
        if main(step):
            raise RuntimeError(f"{step[0]} failed")
    return one_network
