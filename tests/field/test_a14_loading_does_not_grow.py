"""Cutting, listing cut points and exporting again and again leave torch's caches as they were.

What stays behind is torch's own: of each network followed one shape environment with the tensors
without values of its weights and inputs. Nothing that Python's garbage collector sees refers to
them (so far as seen in torch 2.13, where 4 networks left 4 environments and 28 such tensors), and
no call of torch gives them back; we can only empty the cache of operations in them. That leaves
88 instead of 163 KiB of Python's memory a cut of this network.
"""

import gc
import linecache

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from offramp.backends import to_onnx
from offramp.models import small_cnn
from offramp.stages import cut, cut_points
from offramp.stages.cutting.graph import capture, rows_of

X = torch.rand(1, 1, 8, 8)


def net():
    return small_cnn(width=2, depth=2).eval()


@pytest.mark.parametrize(
    "work",
    [
        lambda: cut(net(), ["features.0"], X),
        lambda: cut_points(net(), X),
        lambda: to_onnx(net(), X, name="x"),
    ],
    ids=["cut", "cut_points", "to_onnx"],
)
def test_what_torch_keeps_of_a_graph_is_given_back(work):
    def kept():
        gc.collect()
        graphs = sum(name.startswith("<eval_with_key>") for name in linecache.cache)
        cached = [m.cache_info() for m in vars(ShapeEnv).values() if hasattr(m, "cache_info")]
        shapes = sum(info.currsize for info in cached)
        return len(graph_module._loader.eval_cache), graphs, len(FakeTensorMode.cache), shapes

    work()
    before = kept()
    work()
    assert kept() == before


def test_segments_still_run_and_can_be_followed_again():
    first, last = cut(net(), ["features.0"], X)
    assert torch.equal(last(first(X)), net()(X))
    assert to_onnx(first, X, name="x").graph.node
    with pytest.raises(RuntimeError, match="type"):  # torch explains, without its sources
        first(X.double())


def test_the_environment_that_torch_keeps_of_a_graph_has_forgotten_its_operations():
    captured = capture(net(), rows_of(net(), X))
    environment = captured.inputs[0].meta["val"].shape[0].node.shape_env
    assert not environment.fake_tensor_cache
