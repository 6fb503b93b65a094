"""Operations inside of torch.cond and loops are counted, or the operator is named."""

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from offramp._core.errors import UnsupportedError
from offramp.stages import Cascade, measure_flops
from offramp.stages.operations import Operations

FIRST, LAST, EACH = 2 * 6 * 8, 2 * 8 * 3, 2 * 8 * 8
INSIDE = {"Cond": 2 * EACH, "Loop": 3 * EACH, "Scan": 4 * EACH}

SCRIPT = """
import json, sys, torch
from torch import nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from offramp.stages import Cascade, cut, cut_points, measure_flops

class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.one, self.two, self.three = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("wide", torch.tensor(True))
    def forward(self, x):
        return self.last(self.middle(self.first(x).relu()))

class Cond(Base):  # the more expensive branch is not the one that is taken
    def middle(self, h):
        return torch.cond(self.wide, lambda t: self.one(t), lambda t: self.three(self.two(t)), (h,))

class Loop(Base):
    def middle(self, h):
        step = lambda k, t: (k + 1, self.one(t))
        return while_loop(lambda k, t: k < 3, step, (torch.tensor(0), h))[1]

class Scan(Base):
    def middle(self, h):
        return scan(lambda c, x: (self.one(c) + x.sum(), x.clone()), h, torch.ones(4, 1))[0]

found = {}
for kind in map(globals().get, sys.argv[1:]):
    net, x = kind().eval(), torch.randn(3, 6)
    points = cut_points(net, x)
    flops = measure_flops(Cascade.from_models({"net": net}), x).segment[0]
    found[kind.__name__] = [[[p.name, p.flops, p.share] for p in points], flops]
print(json.dumps(found))
"""


@pytest.mark.parametrize(  # loops, which torch compiles: make test-slow
    "kinds", [["Cond"], pytest.param(["Loop", "Scan"], marks=pytest.mark.slow)], ids="/".join
)
def test_points_and_costs_count_what_is_inside(kinds):
    """In a process of its own: torch runs such operators by its compiler, which keeps state."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *kinds], capture_output=True, text=True)
    if done.returncode and torch.__version__.startswith(
        "2.8."
    ):  # which shows no mode such operators
        assert "cannot be counted" in done.stderr
        return
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == kinds
    for kind, (points, flops) in found.items():
        whole = FIRST + INSIDE[kind] + LAST
        assert points == [["first", FIRST, pytest.approx(FIRST / whole)]]
        assert flops == whole


def test_an_operator_into_which_nobody_can_look_is_named():
    from torch.nn.attention.flex_attention import flex_attention

    q = torch.rand(1, 1, 16, 8)
    with (
        pytest.raises(UnsupportedError, match="inside of 'flex_attention' cannot be counted"),
        torch.no_grad(),
        Operations(),
    ):
        torch.ops.higher_order.flex_attention(
            q, q, q, lambda s, *_: s, (None,) * 11, 1.0, {}, (), ()
        )
    assert callable(flex_attention)


def test_branches_within_branches_count_once_each():
    a = torch.rand(2, 3)

    def run(k):
        return lambda: [a @ a.T for _ in range(k)]

    with Operations() as operations:
        operations.most_expensive([lambda: operations.most_expensive([run(1), run(5)]), run(2)])
    assert operations.total == 5 * 2 * 2 * 3 * 2


def test_weights_given_to_layers_are_no_trouble():
    """torch's counter has hooks that ask for gradients of a layer's inputs."""

    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.layer = nn.Parameter(torch.rand(1, 8)), nn.Linear(8, 8)
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x + self.layer(self.token))

    net = Given().eval()
    assert measure_flops(Cascade.from_models({"net": net}), torch.rand(2, 8)).segment[0] > 0
