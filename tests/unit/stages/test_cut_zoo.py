"""Cutting networks of many kinds, with random weights, at every point they have."""

import pytest
import torch
from torch import nn

from offramp import models
from offramp._core.batch import apply
from offramp.models import extract_logits
from offramp.stages import cut, cut_points, take_rows
from support.zoo import wanted

N = 7

QUICK = ("resnet20",)  # the others are large, or need other packages: make test-slow

# The packages warn of their own future.
pytestmark = pytest.mark.filterwarnings("ignore")


def hugging_face(kind, **config):
    def make():
        package = wanted("transformers")
        ending = "ForSequenceClassification" if kind == "Bert" else "ForImageClassification"
        candidates = getattr(package, f"{kind}Config")(num_labels=5, **config)
        return getattr(package, f"{kind}{ending}")(candidates)

    return make


def vision(name, **arguments):
    return lambda: getattr(wanted("torchvision.models"), name)(**arguments)


def own(name, **arguments):
    return lambda: getattr(models, name)(**arguments)


def timm(name):
    return lambda: wanted("timm").create_model(name)


def images(side):
    return lambda: torch.randn(N, 3, side, side, generator=torch.Generator().manual_seed(1))


def sentences():
    mask = torch.ones(N, 12, dtype=torch.int64)
    mask[1, 5:] = 0
    mask[4, 3:] = 0
    ids = torch.randint(0, 100, (N, 12), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask}


SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
NETWORKS = {
    "bert": (hugging_face("Bert", vocab_size=100, **SMALL), sentences, "bert.encoder.layer.1"),
    "vit": (hugging_face("ViT", image_size=32, patch_size=8, **SMALL), images(32), None),
    "swin": (
        hugging_face(
            "Swin",
            embed_dim=16,
            depths=[2, 2],
            num_heads=[2, 4],
            image_size=32,
            patch_size=2,
            window_size=4,
        ),
        images(32),
        None,
    ),
    "convnext": (hugging_face("ConvNext"), images(64), None),
    "mobilenet_v2": (hugging_face("MobileNetV2"), images(64), None),
    "efficientnet": (
        hugging_face("EfficientNet", width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280),
        images(64),
        None,
    ),
    "resnet20": (own("cifar_resnet", depth=20), images(32), "layer2.1"),
    "resnet56": (own("cifar_resnet", depth=56), images(32), "layer2.8"),
    "resnet110": (own("cifar_resnet", depth=110), images(32), "layer3.3"),
    "alexnet": (own("alexnet", size="cifar"), images(32), "features.5"),
    "googlenet": (own("googlenet", size="cifar"), images(32), "inception4a"),
    "resnet50": (own("resnet50"), images(64), "layer2.1"),
    "densenet121": (own("densenet121"), images(64), "features.denseblock2"),
    "inception_v3": (own("inception_v3"), images(139), "Mixed_6b"),
    "torchvision_resnet50": (vision("resnet50"), images(64), "layer2.1"),
    "torchvision_swin_t": (vision("swin_t"), images(64), "features.3"),
    "timm_vit": (timm("vit_tiny_patch16_224"), images(224), "blocks.5"),
    "timm_swin": (timm("swin_tiny_patch4_window7_224"), images(224), "layers.1"),
    "timm_efficientnet_b0": (timm("efficientnet_b0"), images(64), "blocks.3"),
}


def lively(net, seed=0):
    """Weights of a size at which signals neither die nor grow."""
    generator = torch.Generator().manual_seed(seed)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features, generator=generator) * 0.1
            part.running_var = torch.rand(part.num_features, generator=generator) + 0.5
    for parameter in net.parameters():
        if parameter.dim() > 1:
            scale = (1.5 / max(parameter[0].numel(), 1)) ** 0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return net.eval()


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS]
)
@torch.no_grad()
def test_a_network_of_the_zoo_is_its_segments(name):
    make, example, block = NETWORKS[name]
    net, x = lively(make()), example()
    one = take_rows(x, torch.arange(1))
    points = cut_points(net, one)
    assert len(points) > 10
    if block is not None:
        assert block in {alias for point in points for alias in (point.name, *point.aliases)}
    segments = cut(net, [point.name for point in points], one)
    reference = extract_logits(apply(net, x))
    assert reference.std() > 1e-3
    close = {"rtol": 0, "atol": 1e-5 * max(1.0, reference.abs().max().item())}
    for m in (1, 2, N):
        batch = take_rows(x, torch.arange(m))
        for segment in segments:
            batch = apply(segment, batch)
        torch.testing.assert_close(batch, reference[:m], **close)
    generator, batch, rows = torch.Generator().manual_seed(0), x, torch.arange(N)
    for k, segment in enumerate(segments):
        batch = apply(segment, batch)
        if k < len(segments) - 1:  # other rows at every cut, and one less now and then
            less = len(rows) > 2 and k % (len(segments) // 5 + 1) == 0
            kept = torch.randperm(len(rows), generator=generator)[: len(rows) - less]
            batch, rows = take_rows(batch, kept), rows[kept]
    torch.testing.assert_close(batch, reference[rows], **close)
    assert len(rows) < N
