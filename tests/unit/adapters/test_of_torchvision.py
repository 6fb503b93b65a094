"""Networks of torchvision: transforms and categories of their weights, and bundles."""

import pytest
import torch

import offramp
from offramp import Cascade
from offramp._core.errors import InputError, UnknownNameError
from offramp.adapters import from_torchvision
from offramp.models import ModelSpec, build, save_weights
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from support.zoo import photographs, real, wanted

pytestmark = pytest.mark.filterwarnings("ignore")  # the package warns of its own future


@pytest.fixture(scope="module")
def models():
    return wanted("torchvision").models


@pytest.fixture(scope="module")
def weights(models, tmp_path_factory):
    """As somebody has them who downloaded them before."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_weights(models.get_model("resnet18", weights=None), path)
    return path


def apart(stage, enumerated, images):
    theirs = torch.stack([enumerated.transforms()(image) for image in images])
    std = torch.tensor(enumerated.transforms().std)[:, None, None]
    return (stage.prepare(images) - theirs).abs() * std * 255


def test_transform_and_categories_are_those_of_the_weights(models, weights):
    stage = from_torchvision("resnet18", weights="IMAGENET1K_V1", checkpoint=weights)
    told = models.get_model_weights("resnet18").IMAGENET1K_V1
    assert stage.class_names == tuple(told.meta["categories"])
    steps = apart(stage, told, photographs())
    assert steps.max() <= 2
    assert stage.run(photographs())[0].logits.shape == (3, 1000)


@pytest.mark.shared
def test_the_transform_is_that_of_torchvision_on_real_photographs(models, weights):
    image = pytest.importorskip("PIL.Image")
    files = sorted(real("imagenet_val500", "images").glob("*/*"))[::25]
    stage = from_torchvision("resnet18", checkpoint=weights)
    images = [image.open(file).convert("RGB") for file in files]
    steps = apart(stage, models.get_model_weights("resnet18").DEFAULT, images)
    assert steps.max() <= 2
    assert steps.mean() < 0.3


def test_every_transform_of_torchvision_can_be_said(models):
    from offramp.adapters.of_torchvision import _transform

    for name in models.list_models(module=models):
        for told in models.get_model_weights(name):
            steps = _transform(name, told).steps
            assert steps[0].interpolation == told.transforms().interpolation.value


def test_without_weights_nothing_is_known_but_what_is_given(models, weights):
    stage = from_torchvision("resnet18", weights=None, num_classes=3, class_names=["a", "b", "c"])
    assert (stage.transform, stage.class_names) == (None, ("a", "b", "c"))
    assert stage.run(torch.zeros(2, 3, 64, 64))[0].logits.shape == (2, 3)
    same = from_torchvision("resnet18", weights=None, checkpoint=weights)
    assert same.class_names == ()


def test_a_bundle_builds_it_again_and_the_order_is_that_of_the_cascade(weights, tmp_path):
    plain = from_torchvision("resnet18", checkpoint=weights)
    names = plain.class_names[::-1]
    turned = from_torchvision("resnet18", checkpoint=weights, class_names=names)
    with pytest.raises(InputError, match="in another order: class 0 is"):
        Cascade.from_models({"one": plain, "other": turned})
    cascade = Cascade.from_models({"net": turned})
    images = photographs()
    said = cascade(images)[:, 0]
    assert torch.equal(said, plain.run(images)[0].logits.flip(1))
    candidate = Candidate.single(cascade.topology, "net", reference="net")
    offramp.save(Adaptive(cascade, candidate), tmp_path / "bundle")
    again = offramp.load(tmp_path / "bundle").cascade
    assert torch.equal(again.stage("net").run(images)[0].logits, said)


def test_networks_that_scale_their_input_do_so_in_a_bundle_as_well(models):
    stage = from_torchvision("googlenet", weights=None, transform_input=True)
    again = build(stage.spec)
    assert again.transform_input
    assert build(ModelSpec(name="torchvision", arguments={"architecture": "alexnet"})) is not None


def test_names_and_options_that_are_wrong(models):
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet18'"):
        from_torchvision("resnet81")
    with pytest.raises(UnknownNameError, match="IMAGENET1K_V1"):
        from_torchvision("resnet18", weights="IMAGENET1K_V9")
    with pytest.raises(UnknownNameError, match="classifier"):
        build(ModelSpec(name="torchvision", arguments={"architecture": "fasterrcnn_resnet50_fpn"}))
    arguments = {"architecture": "resnet18", "weights": "DEFAULT"}
    with pytest.raises(InputError, match="where weights come from"):
        build(ModelSpec(name="torchvision", arguments=arguments))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"num_classes": -1}, "num_classes must be an integer of at least 2, got -1"),
        ({"num_classes": 1}, "num_classes must be an integer of at least 2, got 1"),
        ({"class_names": ["a", "b"]}, "class_names must have 1000 entries, got 2"),
        ({"class_names": "ab", "num_classes": 2}, "class_names must be a list of names"),
        ({"checkpoint": 5}, "path must be that of a file of weights, got 5"),
    ],
)
def test_an_argument_of_another_kind_is_named(models, arguments, why):
    with pytest.raises(InputError, match=why):
        from_torchvision("resnet18", weights=None, **arguments)
