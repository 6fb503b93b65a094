"""Checkpoints and digests of cut networks depend on no name, and no order, of torch.export."""

import hashlib
import sys
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from offramp import Costs
from offramp._core.errors import InputError
from offramp.data import arrays
from offramp.recording import record
from offramp.recording.record import _fingerprint
from offramp.stages import Cascade, cut, own_names, weights_digest
from offramp.stages.cutting import segments as segments_module
from offramp.train import train_joint
from offramp.train.features import backbone_digest

AT = ["first", "second"]
COSTS = Costs.simple("usd", [1.0, 2.0, 4.0])


class Net(nn.Module):
    """Equal shapes, weights used twice, a buffer of each kind, and constants."""

    def __init__(self, shift=1.0, seed=0):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.tied, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 2)
        self.tied.weight = self.first.weight
        self.register_buffer("kept", torch.full((4,), 0.5))
        self.register_buffer("made", torch.full((4,), 0.25), persistent=False)
        self.shift = torch.full((4,), shift)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))
        self.eval()

    def forward(self, x):
        x = self.norm(self.first(x)).relu() + self.kept * self.shift
        x = self.tied(self.second(x).relu() + self.made) + torch.tensor([0.0, 1.0, 0.0, 1.0])
        return self.last(x)


X = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
EXAMPLES = arrays(X, (X[:, 0] > 0).long().tolist())


def cascade_of(net):
    generator = torch.Generator().manual_seed(1)
    heads = {name: nn.Linear(4, 2) for name in AT}
    with torch.no_grad():
        for head in heads.values():
            for weight in head.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))
    return Cascade.from_network(net, AT, head=heads, example=X[:1])


@pytest.fixture
def other_torch(monkeypatch):
    """A torch that gives other names, in another order."""

    def use():
        build = segments_module.build_segments

        def turned(*given):
            found = build(*given)
            for segment in found:
                for held in ("_parameters", "_buffers", "_modules"):
                    turned = reversed(list(getattr(segment, held).items()))
                    setattr(segment, held, OrderedDict(turned))
            return found

        def named(target, value, taken):
            found = next((k for k, held in taken.items() if held is value), None)
            return found or f"t{9 - len(taken)}_of_torch"

        monkeypatch.setattr(segments_module, "_flat_name", named)
        monkeypatch.setattr(sys.modules["offramp.stages.cutting.cut"], "build_segments", turned)

    return use


def test_the_other_torch_of_these_tests_is_one(other_torch):
    before = [sorted(own_names(segment)) for segment in cut(Net(), AT, X[:1])]
    other_torch()
    assert all(
        set(own_names(segment)).isdisjoint(names)
        for segment, names in zip(cut(Net(), AT, X[:1]), before, strict=True)
    )


def test_state_dicts_of_segments_have_the_names_of_the_network(other_torch):
    net = Net()
    wanted = set(net.state_dict()) - {"tied.weight"}
    for _k in range(2):
        found = [set(segment.state_dict()) for segment in cut(net, AT, X[:1])]
        assert set().union(*found) == wanted
        assert found[0] == {"first.weight", "first.bias"}
        assert "first.weight" in found[2]  # tied
        other_torch()


def test_state_goes_from_one_cut_to_the_other_and_constants_stay(other_torch):
    one, two = cut(Net(), AT, X[:1]), Net(seed=3)
    other_torch()
    others = cut(two, AT, X[:1])
    for segment, other in zip(one, others, strict=True):
        other.load_state_dict(segment.state_dict())
    assert torch.equal(two(X), Net()(X))
    state = one[0].state_dict()
    del state["first.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        others[0].load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        others[0].load_state_dict({**one[0].state_dict(), "first.gain": torch.ones(1)})


def digests(cascade):
    fingerprint = _fingerprint(cascade, [(X, EXAMPLES.labels)])
    return fingerprint, backbone_digest(cascade), weights_digest({"": cascade})


def test_digests_of_equal_networks_are_equal(other_torch):
    wanted = digests(cascade_of(Net()))
    other_torch()
    assert digests(cascade_of(Net())) == wanted


@pytest.mark.parametrize("twin", [{"seed": 1}, {"shift": 1.5}])
def test_digests_of_other_weights_or_constants_are_others(twin, other_torch):
    first = digests(cascade_of(Net()))
    other_torch()
    for one, two in zip(first, digests(cascade_of(Net(**twin))), strict=True):
        assert one != two


def test_a_digest_of_a_whole_network_is_one_of_its_state_dict():
    net, before = Net(), hashlib.sha256(b"net\n")
    for name, value in sorted(net.state_dict().items()):
        before.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        before.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    assert weights_digest({"net": net}) == before.hexdigest()


def train(cascade, path, *, stop=None):
    def told(epoch):
        if stop is not None:
            raise KeyboardInterrupt

    return train_joint(
        cascade,
        EXAMPLES,
        cost_weight=0.1,
        epochs=3,
        seed=0,
        batch_size=16,
        learning_rate=0.05,
        costs=COSTS,
        checkpoint=path,
        on_epoch=told,
        progress=False,
    )


def test_a_joint_training_goes_on_with_another_torch(tmp_path, other_torch):
    wanted = train(cascade_of(Net()), None)
    path = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(cascade_of(Net()), path, stop=True)
    state = cascade_of(Net()).state_dict()
    named = {k.partition(".cascade.")[2] for k in load_file(path) if ".cascade." in k}
    assert {name.removesuffix(".momentum_buffer") for name in named} == set(state)
    other_torch()
    cascade = cascade_of(Net())
    found = train(cascade, path)
    assert [epoch.exit_share for epoch in found.history] == [e.exit_share for e in wanted.history]
    assert found.state.keys() == wanted.state.keys() == state.keys()
    for name, value in wanted.state.items():
        torch.testing.assert_close(found.state[name], value, atol=1e-5, rtol=1e-5)
    wanted.load_into(cascade)
    assert torch.equal(
        cascade.stage("first").module.state_dict()["first.weight"],
        wanted.state["stages.0.module.first.weight"],
    )


def stopping():
    yield X[:16], EXAMPLES.labels[:16]
    raise OSError("the disk of the images is gone")


@pytest.mark.parametrize("twin", [{}, {"seed": 1}, {"shift": 1.5}])
def test_a_recording_goes_on_with_another_torch_but_not_of_another_network(
    tmp_path, other_torch, twin
):
    given = {"path": tmp_path / "t", "costs": COSTS, "progress": False}
    with pytest.raises(OSError, match="is gone"):
        record(cascade_of(Net()), stopping(), **given)
    other_torch()
    cascade = cascade_of(Net(**twin))
    if twin:
        with pytest.raises(InputError, match="weights"):
            record(cascade, [(X, EXAMPLES.labels)], **given)
    else:
        found = record(cascade, [(X, EXAMPLES.labels)], **given)
        with torch.no_grad():
            torch.testing.assert_close(found.logits, cascade(X))
