"""What published files of weights name otherwise, or hold besides."""

import re

import pytest
import torch

from offramp._core.errors import FileFormatError
from offramp.models import ModelSpec, build, cifar_resnet, load_weights, model_factory, save_weights

AUXILIARY = {
    "googlenet": ("aux1.conv.conv.weight", "aux2.fc2.bias"),
    "inception_v3": ("AuxLogits.conv0.bn.running_mean", "AuxLogits.fc.weight"),
}


@pytest.mark.parametrize("name", sorted(AUXILIARY))
def test_auxiliary_weights_in_a_file_are_left_out(name, tmp_path):
    source, target = (model_factory(name)(size="cifar", seed=seed) for seed in (1, 2))
    extra = {key: torch.zeros(3) for key in AUXILIARY[name]}
    torch.save({**source.state_dict(), **extra}, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert torch.equal(target.fc.weight, source.fc.weight)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("googlenet", "aux3.fc.bias"),
        ("googlenet", "AuxLogits.fc.bias"),
        ("inception_v3", "aux1.fc1.bias"),
        ("resnet50", "aux1.fc1.bias"),
    ],
)
def test_no_other_weights_are_left_out(name, key, tmp_path):
    with torch.device("meta"):
        net = model_factory(name)()
    torch.save({key: torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(FileFormatError, match=rf"1 unexpected \({re.escape(key)}\)"):
        load_weights(net, tmp_path / "w.pth")


def as_published(key: str) -> str:
    """A name of DenseNet's as the published file has it: "norm.1" for "norm1"."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key)


def test_the_older_names_in_densenets_published_file_are_understood(tmp_path):
    source, target = (model_factory("densenet121")(size="cifar", seed=seed) for seed in (1, 2))
    old = {as_published(k): v for k, v in source.state_dict().items()}
    assert "features.denseblock4.denselayer16.conv.2.weight" in old
    assert len(set(old) - set(source.state_dict())) > 500
    torch.save(old, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    for one, other in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(one, other)


def test_resnet50_by_name_is_the_bottleneck_network_and_its_weights_come_back(tmp_path):
    net = build(ModelSpec(name="resnet50", arguments={"size": "cifar", "seed": 3}))
    assert type(net).__name__ == "BottleneckResNet"
    assert type(cifar_resnet(50, width=0.125)).__name__ == "ResNet"
    save_weights(net, tmp_path / "w.safetensors")
    again = build(
        ModelSpec(
            name="resnet50", arguments={"size": "cifar"}, weights=str(tmp_path / "w.safetensors")
        )
    )
    assert torch.equal(again.fc.weight, net.fc.weight)
