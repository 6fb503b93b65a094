"""Networks of timm: their transform, their names, their blocks, and their way into a bundle."""

import sys
from pathlib import Path

import pytest
import torch

import offramp
from offramp import Cascade
from offramp._core.errors import InputError, MissingExtraError, UnknownNameError, UnsupportedError
from offramp.adapters import from_timm, timm_exits
from offramp.adapters.of_timm import _transform
from offramp.models import ModelSpec, build, save_weights
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from support.zoo import photographs, real, wanted

pytestmark = pytest.mark.filterwarnings("ignore")  # the package warns of its own future


@pytest.fixture(scope="module")
def timm():
    return wanted("timm")


@pytest.fixture(scope="module")
def stage(timm):
    return from_timm("test_resnet.r160_in1k", pretrained=False)


def apart(stage, timm, images):
    """How far the inputs are from timm's own, in steps of a byte, everywhere."""
    config = timm.data.resolve_data_config(model=stage.module)
    make = timm.data.create_transform(**config)
    theirs = torch.stack([make(image) for image in images])
    return (stage.prepare(images) - theirs).abs() * torch.tensor(config["std"])[:, None, None] * 255


def test_the_transform_is_that_of_timm_but_for_roundings_in_between(timm, stage):
    steps = apart(stage, timm, photographs())
    assert steps.max() <= 3
    assert steps.mean() < 0.5


@pytest.mark.shared
@pytest.mark.parametrize("name", ["efficientnet_b0", "test_vit.r160_in1k"])
def test_the_transform_is_that_of_timm_on_real_photographs(timm, name):
    """Bicubic scaling overshoots at edges, and Pillow cuts that off twice: up to 12 steps there."""
    image = pytest.importorskip("PIL.Image")
    files = sorted(real("imagenet_val500", "images").glob("*/*"))[::25]
    images = [image.open(file).convert("RGB") for file in files]
    steps = apart(from_timm(name, pretrained=False), timm, images)
    assert steps.max() <= 12
    assert steps.mean() < 0.3
    assert (steps > 1).float().mean() < 0.001


def test_squash_and_tensors_of_one_size_are_taken_as_well(timm):
    says = {"input_size": (3, 64, 48), "crop_mode": "squash", "crop_pct": 1.0, "mean": (0.5,) * 3}
    made = _transform(timm, "net", {**says, "std": (0.5,) * 3, "interpolation": "bilinear"}, {})
    images = torch.randint(0, 256, (2, 3, 90, 70), dtype=torch.uint8)
    assert made(images).shape == (2, 3, 64, 48)
    wide = _transform(timm, "net", {"input_size": (3, 64, 64)}, {"img_size": 96})
    assert wide.steps[0].size == 96


@pytest.mark.parametrize(
    ("field", "value"),
    [("crop_mode", "border"), ("interpolation", "lanczos"), ("input_size", (3, 64, 48))],
)
def test_a_transform_that_ours_cannot_do_is_refused_by_the_name_of_its_field(timm, field, value):
    with pytest.raises(UnsupportedError, match=f"has {field}="):
        _transform(timm, "net", {"input_size": (3, 64, 64), field: value}, {})


def test_names_of_classes_come_where_they_are_known(timm, stage):
    assert len(stage.class_names) == 1000
    assert stage.class_names[:2] == ("tench, Tinca tinca", "goldfish, Carassius auratus")
    other = from_timm("test_resnet.r160_in1k", pretrained=False, num_classes=5)
    assert (other.class_names, other.classes) == ((), 5)


def test_a_checkpoint_gives_weights_and_only_a_tag_gives_names(stage, tmp_path):
    save_weights(stage.module, tmp_path / "own.safetensors")
    plain = from_timm("test_resnet", checkpoint=tmp_path / "own.safetensors")
    tagged = from_timm("test_resnet.r160_in1k", checkpoint=tmp_path / "own.safetensors")
    assert (plain.class_names, tagged.class_names) == ((), stage.class_names)
    images = photographs()
    assert torch.equal(plain.run(images)[0].logits, stage.run(images)[0].logits)


def test_the_blocks_are_exits_of_a_cascade(timm):
    for name, blocks in {
        "test_resnet": ["act1", "layer1", "layer2", "layer3"],
        "test_vit": [f"blocks.{k}" for k in range(5)],
    }.items():
        assert timm_exits(from_timm(name, pretrained=False)) == blocks
    stage = from_timm("test_resnet", pretrained=False, num_classes=4)
    cascade = Cascade.from_network(
        stage.module,
        exits=timm_exits(stage)[1:3],
        example=torch.zeros(1, 3, 160, 160, dtype=torch.uint8),
        transform=stage.transform,
        spec=stage.spec,
    )
    assert cascade.topology.describe() == "layer1 -> layer2 -> last"


def test_a_bundle_builds_it_again_in_the_order_of_the_cascade(stage, tmp_path):
    names = [*stage.class_names[1:2], *stage.class_names[:1], *stage.class_names[2:]]
    with pytest.raises(InputError, match="several classes have one name"):
        from_timm("test_resnet.r160_in1k", pretrained=False, class_names=names)
    own = ["ant", "bee", "cow"]
    small = from_timm("test_resnet", pretrained=False, num_classes=3, class_names=own)
    large = from_timm("test_efficientnet", pretrained=False, num_classes=3)
    turned = offramp.adapters.in_order(offramp.adapters.in_order(large, ["cow", "ant", "bee"]), own)
    cascade = Cascade.from_models({"small": small, "large": turned})
    images = photographs()
    said = cascade(images)
    assert torch.equal(said[:, 1], large.run(images)[0].logits[:, [1, 2, 0]])
    candidate = Candidate.single(cascade.topology, "large", reference="large")
    offramp.save(Adaptive(cascade, candidate), tmp_path / "bundle")
    again = offramp.load(tmp_path / "bundle")
    assert again.cascade.class_names == tuple(own)
    assert torch.equal(again.cascade.stage("large").run(images)[0].logits, said[:, 1])


def test_what_a_spec_of_others_may_not_do(timm):
    with pytest.raises(InputError, match="where weights come from, got \\['pretrained'\\]"):
        build(ModelSpec(name="timm", arguments={"architecture": "test_vit", "pretrained": True}))
    for name in ("hf-hub:someone/net", "local-dir:net", "test_vitt"):
        with pytest.raises(UnknownNameError, match="has no network"):
            build(ModelSpec(name="timm", arguments={"architecture": name}))
    with pytest.raises(InputError, match="pretrained_cfg"):
        from_timm("test_vit", pretrained=False, pretrained_cfg={"url": "elsewhere"})


def test_names_and_arguments_that_are_wrong(timm):
    with pytest.raises(UnknownNameError, match="Did you mean 'test_vit'"):
        from_timm("test_vitt", pretrained=False)
    with pytest.raises(InputError, match="'local-dir:net'"):
        from_timm("local-dir:net", pretrained=False)
    with pytest.raises(InputError, match="left out where a checkpoint is given"):
        from_timm("test_vit", pretrained=True, checkpoint=Path("a.safetensors"))


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"offramp\[timm\]"):
        from_timm("resnet18")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"name": 5}, "name must be a text that is not empty, got 5"),
        ({"name": "hf-hub:"}, "cannot be found"),
        ({"num_classes": 0}, "num_classes must be an integer of at least 2, got 0"),
        ({"num_classes": "3"}, "num_classes must be an integer of at least 2, got '3'"),
        ({"features_only": True}, "timm makes no classifier"),
        ({"checkpoint": 5}, "path must be that of a file of weights, got 5"),
        ({"class_names": "abc", "num_classes": 3}, "class_names must be a list of names"),
        ({"class_names": 5}, "class_names must be a list of names, got 5"),
        ({"transform": 5}, "transform must be a module, or a list of some, got 5"),
    ],
)
def test_an_argument_of_another_kind_is_named(timm, arguments, why):
    with pytest.raises(InputError, match=why):
        from_timm(**{"name": "test_resnet", "pretrained": False, **arguments})
