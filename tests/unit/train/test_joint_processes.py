"""Joint training by several processes: the same model as by one, in every process."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from offramp._core.errors import InputError
from offramp.train.joint.processes import Processes

SCRIPT = """
import sys
from pathlib import Path

import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import nn

from offramp import Costs
from offramp.data import arrays
from offramp.stages import Cascade
from offramp.train import train_joint

count, estimator, norm, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "norm", sys.argv[4]
fabric = None
if count > 1:
    fabric = Fabric(accelerator="cpu", devices=count, strategy="ddp")
    fabric.launch()
rank = 0 if fabric is None else fabric.global_rank
generator = torch.Generator().manual_seed(0)
inputs = torch.randn(200, 5, generator=generator)
labels = (inputs[:, 0] + inputs[:, 1] * inputs[:, 2] > 0).long()
with torch.random.fork_rng():
    torch.default_generator.manual_seed(rank)  # every process has weights of its own at first
    layers = [nn.BatchNorm1d(5)] if norm else []
    large = nn.Sequential(*layers, nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))
    cascade = Cascade.from_models({"small": nn.Linear(5, 2).eval(), "large": large.eval()})
told = []
trained = train_joint(
    cascade, arrays(inputs, labels), cost_weight=0.1, epochs=4, seed=0, batch_size=32,
    estimator=estimator, costs=Costs.simple("usd", [1.0, 4.0]), fabric=fabric, patience=2,
    checkpoint=Path(folder) / f"joint_{count}.safetensors", progress=False, on_epoch=told.append,
)
assert len(told) == (len(trained.history) if rank == 0 else 0)
state = dict(trained.state)
for k, rule in enumerate(trained.rules):
    state |= {f"rule{k}.{name}": value for name, value in rule.state_dict().items()}
save_file(
    {name: value.contiguous() for name, value in state.items()},
    Path(folder) / f"weights_{count}_{rank}.safetensors",
)
"""


def trained(folder, processes, estimator, norm="plain"):
    script = Path(folder) / "together.py"
    script.write_text(SCRIPT)
    command = [str(script), str(processes), estimator, norm, str(folder)]
    if processes == 1:  # here: a process of its own takes longer to start than to train
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", command)
            runpy.run_path(str(script))
    else:
        subprocess.run(
            [sys.executable, *command],
            check=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=300,
        )
    return [
        load_file(Path(folder) / f"weights_{processes}_{rank}.safetensors")
        for rank in range(processes)
    ]


def test_two_processes_train_what_one_does(tmp_path):
    """A batch divided is the batch, to rounding: the exact loss is a mean over examples."""
    pytest.importorskip("lightning_fabric")
    (alone,) = trained(tmp_path, 1, "exact")
    first, second = trained(tmp_path, 2, "exact")
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_with_normalization_both_processes_still_have_one_model(tmp_path):
    pytest.importorskip("lightning_fabric")
    first, second = trained(tmp_path, 2, "supervised", "norm")
    assert any("running_mean" in name for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


class _Precision:
    def __init__(self, name):
        self.precision = name


class _Strategy:
    def __init__(self, name):
        self.precision = _Precision(name)


class FakeFabric:
    """The second of two processes; the other one sends what `other` holds."""

    global_rank, world_size = 1, 2

    def __init__(self, precision="32-true", other=None):
        self.strategy, self.other = _Strategy(precision), other

    def all_reduce(self, values, reduce_op):
        assert reduce_op == "mean"
        return (values + self.other) / 2

    def broadcast(self, found):
        return self.other if found is None else found


def test_loss_and_gradients_are_averaged_and_nan_reaches_every_process():
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    weights[0].grad = torch.tensor([1.0, 2.0])  # the second takes no part here, but there
    together = Processes(FakeFabric(other=torch.tensor([3.0, 3.0, 0.0, 4.0])))
    assert together.averaged(torch.tensor(1.0), weights) == 2.0
    assert weights[0].grad.tolist() == [2.0, 1.0]
    assert weights[1].grad.tolist() == [2.0]
    broken = Processes(FakeFabric(other=torch.tensor([torch.nan, 0.0, 0.0, 0.0])))
    assert broken.averaged(torch.tensor(1.0), weights).isnan()


def test_the_parts_of_a_batch_are_all_of_it_and_seeds_differ_by_process():
    alone, second = Processes(), Processes(FakeFabric())
    assert alone.part(4).tolist() == [0, 1, 2, 3]
    assert second.part(4).tolist() == [1, 3]
    assert alone.purpose("augment", 3) == ("augment", 3)
    assert second.purpose("augment", 3) == ("augment", 3, 1)
    assert second.told(lambda: pytest.fail("the first process finds")) is None


def test_a_batch_that_does_not_divide_or_another_precision_is_refused():
    with pytest.raises(InputError, match=r"among the 2 processes, got batch_size = 33"):
        Processes(FakeFabric()).check_batch(33)
    with pytest.raises(InputError, match=r"\('32-true', 'bf16-mixed'\), got '16-mixed'"):
        Processes(FakeFabric("16-mixed"))
    assert Processes(FakeFabric("bf16-mixed")).bfloat16
