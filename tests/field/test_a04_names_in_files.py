"""No name in a file comes from torch.export: weights have the network's own names."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from offramp.bundle import load, save
from offramp.models import ModelSpec, build, head_arguments, load_weights
from offramp.policy import Candidate, Constant, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade
from offramp.train.class_exits import Tap, tapped_spec

NETWORKS = [
    (
        ModelSpec(name="small_cnn", arguments={"width": 4, "depth": 3}),
        ["features.0", "features.1"],
        1,
    ),
    (ModelSpec(name="resnet8", arguments={"width": 0.25}), ["layer1.0", "layer2"], 3),
]


SIDE = 8


def tapped(model, points, channels):
    taps = [Tap(name="cat", reads=(points[0],)), Tap(name="dog", reads=tuple(points))]
    return tapped_spec(model, points, taps, [channels, SIDE, SIDE], grid=1)


SLOW = pytest.param(NETWORKS[1], marks=pytest.mark.slow)  # make test-slow


@pytest.fixture(params=[NETWORKS[0], SLOW], ids=["small_cnn", "resnet8"])
def made(request):
    model, points, channels = request.param
    return build(model).eval(), tapped(model, points, channels)


def test_a_bundle_of_taps_names_weights_as_the_network_does(made, tmp_path):
    net, spec = made
    whole = build(spec).eval()
    x = torch.rand(3, *spec.arguments["shape"])
    width = {"exits.cat": None, "exits.dog": None}
    carry = Cascade.from_network(
        whole, list(width), head=dict.fromkeys(width, torch.nn.Identity()), example=x
    )
    heads = {
        name: ModelSpec(
            name="vector_linear",
            arguments=head_arguments("vector_linear", tuple(shape), 10),
        )
        for name, shape in zip(width, _shapes(carry, x), strict=True)
    }
    cascade = Cascade.from_network(whole, list(width), head=heads, example=x, spec=spec)
    part = cascade.topology
    nodes = {path: Node(Constant(False)) for path in part.paths() if part.children(path[-1])}
    chosen = Candidate(policy=Policy(part, nodes), method="x", reference=part.names[-1])
    save(Adaptive(cascade, chosen), tmp_path / "b")
    held = load_file(tmp_path / "b" / "network.0.safetensors")
    assert set(held) == set(net.state_dict())
    assert {name: t.shape for name, t in held.items()} == {
        name: t.shape for name, t in net.state_dict().items()
    }
    again = load(tmp_path / "b")(x)
    assert torch.equal(again.log_probs, Adaptive(cascade, chosen)(x).log_probs)


def _shapes(cascade, x):
    """What a head reads at each exit."""
    shapes, carry = [], x
    for stage in list(cascade)[:-1]:
        carry = stage.segment(carry)
        shapes.append((carry if isinstance(carry, torch.Tensor) else carry[0]).shape[1:])
    return shapes


def test_files_with_the_names_of_before_are_still_read(made, tmp_path):
    _, spec = made
    whole, other = build(spec).eval(), build(spec).eval()
    x = torch.rand(3, *spec.arguments["shape"])
    before = dict(whole.named_parameters()) | dict(whole.named_buffers())
    assert any(name.startswith("segments.0.") for name in before)
    save_file({name: t.clone() for name, t in before.items()}, tmp_path / "old.safetensors")
    for parameter in other.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    assert not torch.equal(other(x), whole(x))
    load_weights(other, tmp_path / "old.safetensors")
    assert torch.equal(other(x), whole(x))


def test_the_weights_of_the_network_itself_fit(made, tmp_path):
    net, spec = made
    whole = build(spec).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    whole.load_state_dict(net.state_dict())
    x = torch.rand(3, *spec.arguments["shape"])
    assert torch.allclose(whole(x), net(x), atol=1e-5)
    copied = copy.deepcopy(whole)
    assert set(copied.state_dict()) == set(net.state_dict())
    nested = torch.nn.ModuleDict({"inner": copied})
    assert set(nested.state_dict()) == {f"inner.{name}" for name in net.state_dict()}
    nested.load_state_dict(nested.state_dict())
    short = {name: t for name, t in net.state_dict().items() if not name.endswith("weight")}
    with pytest.raises(RuntimeError, match="Missing key"):
        whole.load_state_dict(short)
