"""The backbones against what is published about them, and against torchvision.

Key checksums and logits in `PUBLISHED` were recorded once from torchvision 0.28.0 (no auxiliary
heads; `transform_input=True` where there is one), each with `checksum(net)` and
`net(images(name))[0, :4]` after `fill(net)`; where torchvision can be imported, the tests at the
end record them again.
"""

import hashlib
import inspect
import re
from functools import cache
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from offramp._core.errors import InputError
from offramp.models import load_weights, model_factory
from offramp.models.networks.imagenet import Branches, InceptionScale
from support.zoo import wanted


class Published(NamedTuple):
    pixels: int
    parameters: float  # millions
    multiply_adds: float  # billions
    checksum: str
    logits: tuple[float, float, float, float]
    stem: str  # first weight
    head: str  # last linear layer
    first_block: str
    options: dict[str, bool]


PUBLISHED = {
    "alexnet": Published(
        *(224, 61.10, 0.71),
        "dd9c4dec53aa7bdfce257b52a1d96c613b4c05cd26569600fba0206e13d0ca42",
        (-3.43949, 2.79759, -7.37117, -3.55565),
        *("features.0.weight", "classifier.6", "features.3"),
        {},
    ),
    "googlenet": Published(
        *(224, 6.62, 1.50),
        "104f4367b66a6247dcb15111e0cc8cc986e3cf9a78caaccd01e4d004d8da1d56",
        (-2.90144, 4.22726, 0.0477094, -0.299542),
        *("conv1.conv.weight", "fc", "inception3a"),
        {"transform_input": True},
    ),
    "resnet50": Published(
        *(224, 25.56, 4.09),
        "ce6ad2593ee187ab7eb19a42ce88b92f0532cd6bb5c8090c8fe45e0eaaa0462d",
        (-2127.78, -2736.83, -925.802, 2437.11),
        *("conv1.weight", "fc", "layer1"),
        {},
    ),
    "densenet121": Published(
        *(224, 7.98, 2.83),
        "ab49849b3ca214f51d2edb7c1e8c9e7f5096f904d9b1bb484f4167448a664023",
        (2.86913, -1.1742, 3.57221, -2.73536),
        *("features.conv0.weight", "classifier", "features.denseblock1"),
        {},
    ),
    "inception_v3": Published(
        *(299, 23.83, 5.71),
        "83cbf1061c036d17310f624c9977c6b5d24c2fc4277c8ef425bfc1f26b0fd9b2",
        (0.214493, 0.38303, -0.121669, 0.362434),
        *("Conv2d_1a_3x3.conv.weight", "fc", "Mixed_5b"),
        {"transform_input": True},
    ),
}
NAMES = tuple(PUBLISHED)
SLOW = pytest.mark.slow  # large networks with values, or packages that `zoo` brings: make test-slow
VALUED = [n if n in ("googlenet", "densenet121") else pytest.param(n, marks=SLOW) for n in NAMES]
SIZES = ("imagenet", "cifar")
WITH_AUXILIARY = ("googlenet", "inception_v3")


def checksum(net) -> str:
    """SHA-256 of the sorted lines "name:shape" of a state dict."""
    lines = sorted(f"{k}:{tuple(v.shape)}" for k, v in net.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def fill(net) -> nn.Module:
    """Give each weight values that depend on its name's place and its shape alone."""
    generator = torch.Generator().manual_seed(0)
    for key, value in sorted(net.state_dict().items()):
        if value.ndim > 1:
            fan_in = value[0].numel()
            value.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point():
            one = not key.endswith(("bias", "running_mean"))
            value.normal_(float(one), 0.1, generator=generator)
    return net.eval()


def images(name: str, count: int = 1, size: str = "imagenet") -> torch.Tensor:
    pixels = 32 if size == "cifar" else 75 if name == "inception_v3" else 65
    generator = torch.Generator().manual_seed(1)
    return torch.randn((count, 3, pixels, pixels), generator=generator)


@cache
def net_of(name: str, size: str) -> nn.Module:
    """One network per name and size for the tests that only read it."""
    return model_factory(name)(size=size).eval()


@cache
def shapes_of(name: str, size: str) -> nn.Module:
    """The same without values: what runs on it computes shapes only, and costs nothing."""
    with torch.device("meta"):
        return model_factory(name)(size=size).eval()


def full_image(name: str, size: str) -> torch.Tensor:
    pixels = 32 if size == "cifar" else PUBLISHED[name].pixels
    return torch.zeros(2, 3, pixels, pixels, device="meta")


def multiply_adds(name: str, size: str) -> float:
    with FlopCounterMode(display=False) as counter:
        shapes_of(name, size)(full_image(name, size))
    return counter.get_total_flops() / 2 / 2  # a multiply-add is two, and two images


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference in units of the largest value: some untrained logits are in hundreds."""
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_multiply_adds_are_the_published_ones(name):
    paper = PUBLISHED[name]
    count = sum(p.numel() for p in shapes_of(name, "imagenet").parameters())
    assert round(count / 1e6, 2) == paper.parameters
    assert multiply_adds(name, "imagenet") / 1e9 == pytest.approx(paper.multiply_adds, abs=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_of_weights_are_torchvisions(name):
    assert checksum(shapes_of(name, "imagenet")) == PUBLISHED[name].checksum
    assert checksum(shapes_of(name, "cifar")) != PUBLISHED[name].checksum


@pytest.mark.parametrize("name", VALUED)
def test_logits_are_those_that_torchvision_gave(name):
    net = fill(model_factory(name)(**PUBLISHED[name].options))
    with torch.no_grad():
        logits = net(images(name))[0, :4]
    assert difference(logits, torch.tensor(PUBLISHED[name].logits)) < 1e-4


def test_the_logits_above_depend_on_the_details_of_a_network():
    name = "googlenet"
    wrong = fill(model_factory(name)())  # without the rescaling of its input
    padded = fill(model_factory(name)(transform_input=True))
    padded.inception5b.branch4[0] = nn.AvgPool2d(3, stride=1, padding=1)
    other_eps = fill(model_factory(name)(transform_input=True))
    for part in other_eps.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1e-5
    for net in (wrong, padded, other_eps):
        with torch.no_grad():
            logits = net(images(name))[0, :4]
        assert difference(logits, torch.tensor(PUBLISHED[name].logits)) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_cifar_size_differs_in_the_first_convolution_and_the_classifier_alone(name):
    paper = PUBLISHED[name]
    large, small = (
        {k: tuple(v.shape) for k, v in shapes_of(name, size).state_dict().items()} for size in SIZES
    )
    assert list(large) == list(small)
    different = {k for k in large if large[k] != small[k]}
    assert different - {paper.stem} == {f"{paper.head}.weight", f"{paper.head}.bias"}
    assert small[paper.stem][2:] == (3, 3)
    assert small[f"{paper.head}.bias"] == (10,)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_block_sees_every_pixel_of_a_cifar_image(name):
    seen = []
    net = shapes_of(name, "cifar")
    hook = net.get_submodule(PUBLISHED[name].first_block).register_forward_pre_hook(
        lambda _, inputs: seen.append(tuple(inputs[0].shape[2:]))
    )
    net(full_image(name, "cifar"))
    hook.remove()
    assert seen == [(32, 32)]


def test_the_cifar_resnet50_is_the_usual_one():
    net = shapes_of("resnet50", "cifar")
    assert sum(p.numel() for p in net.parameters()) == 23_520_842
    assert multiply_adds("resnet50", "cifar") / 1e9 == pytest.approx(1.30, abs=0.005)


class Counter(TorchDispatchMode):
    """Counts activations and poolings that run, whoever calls them."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # an adaptive pooling to one pixel runs as a mean
        self.count += bool(re.search(r"aten\.(relu|mean|_?(max|avg|adaptive_avg)_pool)", str(func)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_every_activation_and_pooling_is_a_module_that_runs_once(name, size):
    net, runs = shapes_of(name, size), {}
    leaves = {k: m for k, m in net.named_modules() if not list(m.children())}
    hooks = [
        m.register_forward_hook(lambda *_, k=k: runs.update({k: runs.get(k, 0) + 1}))
        for k, m in leaves.items()
    ]
    with Counter() as counter:
        net(full_image(name, size))
    for hook in hooks:
        hook.remove()
    assert runs == dict.fromkeys(leaves, 1)
    kinds = (nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
    assert counter.count == sum(isinstance(m, kinds) for m in leaves.values())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_classes_and_channels_are_respected(name, size):
    with torch.device("meta"):
        net = model_factory(name)(classes=7, in_channels=1, size=size)
    assert net(full_image(name, size)[:, :1]).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "pixels"), [("alexnet", 63), ("densenet121", 29), ("inception_v3", 75)]
)
def test_the_smallest_image_is_the_one_in_the_documentation(name, pixels):
    net = shapes_of(name, "imagenet")
    assert f"at least {pixels}x{pixels}" in inspect.unwrap(model_factory(name)).__doc__
    assert net(torch.zeros(1, 3, pixels, pixels, device="meta")).shape == (1, 1000)
    with pytest.raises(RuntimeError, match=r"too small|can't be greater"):
        net(torch.zeros(1, 3, pixels - 1, pixels - 1, device="meta"))


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_are_refused_with_their_value(name):
    make = model_factory(name)
    with pytest.raises(InputError, match=r"size must be one of .* got 'cifr'\. .*'cifar'"):
        make(size="cifr")
    with pytest.raises(InputError, match=r"classes must be .* at least 1, got 0"):
        make(classes=0)
    with pytest.raises(InputError, match=r"in_channels must be .* at least 1, got -3"):
        make(in_channels=-3)


@pytest.mark.parametrize("name", WITH_AUXILIARY)
def test_only_color_images_can_be_rescaled(name):
    with pytest.raises(InputError, match=r"transform_input needs in_channels=3, .* got 1"):
        model_factory(name)(transform_input=True, in_channels=1)


@pytest.mark.parametrize("name", VALUED)
def test_first_weights_depend_on_the_seed_alone(name):
    def values(net):
        return [p.detach() for p in net.parameters()]

    first = values(net_of(name, "cifar"))  # the global generator has moved on since
    assert all(map(torch.equal, first, values(model_factory(name)(size="cifar", seed=0))))


def test_another_seed_gives_other_weights():
    one, other = (model_factory("googlenet")(seed=seed) for seed in (0, 1))
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs if a.ndim > 1)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_takes_part(name):
    net = shapes_of(name, "imagenet")
    net(full_image(name, "imagenet")).sum().backward()
    assert not [k for k, p in net.named_parameters() if p.grad is None]
    net.zero_grad()


@pytest.mark.parametrize("name", VALUED)
def test_channels_last_gives_the_same_logits(name):
    net = model_factory(name)(size="cifar").eval()
    x = images(name, 2, "cifar")
    with torch.no_grad():
        plain = net_of(name, "cifar")(x)
        last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert difference(last, plain) < 1e-5


def exported(name: str, size: str) -> None:
    net = net_of(name, size)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (images(name, 2, size),), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        for count in (1, 3):
            x = images(name, count, size)
            assert difference(program.module()(x), net(x)) < 1e-5


def test_a_backbone_is_exported_with_a_batch_of_any_size():
    exported("alexnet", "cifar")


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_all_backbones_are_exported_with_a_batch_of_any_size(name, size):
    exported(name, size)


def test_branches_agree_with_running_each_chain_from_its_start():
    names = ("a", "b", "c", "d")
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, nn.Module] = {k: nn.Conv2d(4, 4, 1) for k in names}
    block = Branches(parts, ("a", "b c", "b d", "b d a"))
    x = torch.randn((2, 4, 3, 3), generator=generator)
    a, b, c, d = (parts[k] for k in names)
    runs = []
    b.register_forward_hook(lambda *_: runs.append("b"))
    fast = block(x)
    assert runs == ["b"]
    assert torch.equal(fast, torch.cat([a(x), c(b(x)), d(b(x)), a(d(b(x)))], dim=1))


def test_rescaled_images_lie_between_minus_one_and_one():
    pixels = torch.rand((2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    torch.testing.assert_close(InceptionScale()((pixels - mean) / std), 2 * pixels - 1)
    assert not InceptionScale().state_dict()


@pytest.fixture(scope="module")
def torchvision_models():
    return wanted("torchvision.models")


def of_torchvision(models: ModuleType, name: str) -> nn.Module:
    options = {"init_weights": False} if name in WITH_AUXILIARY else {}
    return getattr(models, name)(weights=None, **options, **PUBLISHED[name].options)


@SLOW
@pytest.mark.parametrize("name", NAMES)
def test_weights_saved_by_torchvision_load_and_give_its_logits(name, torchvision_models, tmp_path):
    theirs = fill(of_torchvision(torchvision_models, name))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = model_factory(name)(**PUBLISHED[name].options).eval()
    load_weights(ours, tmp_path / "w.pth")
    x = images(name, 2)
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) < 1e-5


@SLOW
@pytest.mark.parametrize("name", NAMES)
def test_what_is_recorded_here_is_what_torchvision_gives(name, torchvision_models):
    theirs = of_torchvision(torchvision_models, name)
    for auxiliary in ("aux1", "aux2", "AuxLogits"):
        if hasattr(theirs, auxiliary):
            setattr(theirs, auxiliary, None)
    fill(theirs)
    with torch.no_grad():
        logits = theirs(images(name))[0, :4]
    assert checksum(theirs) == PUBLISHED[name].checksum
    assert difference(logits, torch.tensor(PUBLISHED[name].logits)) < 1e-4
