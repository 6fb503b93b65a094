"""A layer that runs more than once ends more than once, and each end can get an exit."""

import sys

import pytest
import torch
from torch import Tensor, nn

from offramp._core.errors import InputError
from offramp.bundle import load, save
from offramp.models import ModelSpec, build, head_arguments
from offramp.policy import Candidate, Constant, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade, choose_points, cut, cut_points
from offramp.train.class_exits.points import attachment_points

RUNS = 6


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(8, 16), nn.Linear(16, 8), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.act(self.a(self.act(x))))


class Looped(nn.Module):
    """One block six times, as ALBERT, and a stack of two that is run twice."""

    def __init__(self, runs: int = RUNS):
        super().__init__()
        self.first, self.block, self.last = nn.Linear(4, 8), Block(), nn.Linear(8, 3)
        self.runs = runs

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for _ in range(self.runs):
            h = self.block(h)
        return self.last(h)


class Unrolled(nn.Module):
    """A recurrent cell over time steps."""

    def __init__(self):
        super().__init__()
        self.cell, self.last = nn.GRUCell(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0]).repeat(1, 2)
        for step in range(x.shape[1]):
            h = self.cell(x[:, step], h)
        return self.last(h)


@pytest.fixture(scope="module")
def net():
    torch.random.manual_seed(0)
    return Looped().eval()


@pytest.fixture(scope="module")
def points(net):
    return cut_points(net, torch.rand(1, 4))


def test_there_is_a_point_after_each_run(points):
    ends = [p for p in points if any(n.startswith("block@") for n in (p.name, *p.aliases))]
    assert [p.name for p in ends] == [*(f"block@{k}" for k in range(1, RUNS)), "block"]
    assert ends[-1].aliases == (f"block@{RUNS}",)  # "block" is its last run, as ever
    each = ends[1].share - ends[0].share
    assert [p.share for p in ends] == pytest.approx([ends[0].share + k * each for k in range(RUNS)])
    assert {"block.act@1", f"block.act@{2 * RUNS - 1}"} <= {p.name for p in points}


def test_quantiles_of_a_looped_network_are_between_the_runs(points):
    chosen = choose_points(points, quantiles=2)
    assert [p.name for p in chosen] == ["block@2", "block@4"]
    assert [p.share for p in chosen] == pytest.approx([1 / 3, 2 / 3], abs=0.05)


def test_globs_mean_last_runs_unless_they_say_which(points):
    found = choose_points(points, match="block@*")
    assert [p.name for p in found] == [f"block@{k}" for k in range(1, RUNS + 1)]
    assert [p.name for p in choose_points(points, match="block*")] == ["block"]


def test_cutting_at_runs_gives_the_networks_answer(net):
    x = torch.rand(5, 4)
    carry = x
    with torch.no_grad():
        for segment in cut(net, ["first", "block@1", "block.a@3", "block@5"], x):
            carry = segment(carry) if isinstance(carry, Tensor) else segment(*carry)
        assert torch.allclose(carry, net(x), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("block@7", "runs 6 times, so its runs are 'block@1' to 'block@6', got 'block@7'"),
        ("block@0", "runs 6 times"),
        ("first@1", "'first' runs at most once; name it 'first', got 'first@1'"),
        ("blok@2", "no layer 'blok@2'"),
    ],
)
def test_runs_that_are_none_are_refused(net, name, message):
    with pytest.raises((InputError, KeyError), match=message):
        cut(net, [name], torch.rand(1, 4))
    if name == "block@0":
        with pytest.raises(InputError, match="at names one point twice"):
            cut(net, ["block", f"block@{RUNS}"], torch.rand(1, 4))


def test_time_steps_of_a_cell_are_points():
    net = Unrolled().eval()
    points = cut_points(net, torch.rand(1, 5, 4))
    assert [p.name for p in points][:4] == [f"cell@{k}" for k in range(1, 5)]
    assert [p.name for p in choose_points(points, quantiles=1)] in (["cell@2"], ["cell@3"])


class Shared(nn.Module):
    """One activation used everywhere, as many networks have it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu, self.last = nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.bn1(self.conv1(x)))
        h = self.relu(self.bn2(self.conv2(h)))
        return self.last(h.mean(dim=(2, 3)))


def test_a_layer_of_its_own_is_taken_before_one_of_several_runs():
    net, example = Shared().eval(), torch.rand(1, 3, 8, 8)
    points = cut_points(net, example)
    assert "relu@1" in [p.name for p in points]
    assert [p.name for p in choose_points(points)] == ["bn1", "relu"]
    assert [p.name for p in choose_points(points, match="relu@*")] == ["relu@1", "relu@2"]
    assert [p.name for p in attachment_points(net, example)] == ["bn1", "relu"]


MODULE = """
import torch
from torch import nn

class Looped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.block, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.first(x)
        for _ in range(6):
            h = torch.tanh(self.block(h))
        return self.last(h)
"""


def test_a_bundle_holds_exits_after_runs(tmp_path, monkeypatch):
    (tmp_path / "looped_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    spec, at = ModelSpec(name="looped_networks:Looped"), ["block@2", "block@4"]
    head = ModelSpec(name="vector_linear", arguments=head_arguments("vector_linear", (8,), 3))
    x = torch.rand(7, 4)
    cascade = Cascade.from_network(
        build(spec), at, head={"block@2": head, "block@4": {"a": head}}, example=x, spec=spec
    )
    assert [stage.name for stage in cascade] == ["block@2", "block@4/a", "last"]
    part = cascade.topology.chain(["block@2", "block@4/a", "last"])
    nodes = {path: Node(Constant(False)) for path in part.paths() if part.children(path[-1])}
    chosen = Candidate(policy=Policy(part, nodes), method="x", reference="last")
    save(Adaptive(cascade, chosen), tmp_path / "bundle")
    again = load(tmp_path / "bundle", allow_import=True)
    assert torch.equal(again(x).log_probs, Adaptive(cascade, chosen)(x).log_probs)
    sys.modules.pop("looped_networks")


@pytest.mark.slow
def test_albert_gets_exits_between_its_iterations():
    transformers = pytest.importorskip("transformers")
    config = transformers.AlbertConfig(
        vocab_size=99, embedding_size=16, hidden_size=32, num_hidden_layers=6, num_labels=3
    )
    config.num_attention_heads, config.intermediate_size = 2, 48
    net = transformers.AlbertForSequenceClassification(config).eval()
    example = {
        "input_ids": torch.randint(5, 99, (1, 12)),
        "attention_mask": torch.ones(1, 12).long(),
    }
    chosen = choose_points(cut_points(net, example), quantiles=2)
    assert [p.name.rpartition(".")[2] for p in chosen] == ["0@2", "0@4"]
    assert [p.share for p in chosen] == pytest.approx([1 / 3, 2 / 3], abs=0.02)
