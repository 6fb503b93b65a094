import json
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from offramp._core.errors import FileFormatError, InputError, UnknownNameError, UnsupportedError
from offramp._core.files import sha256
from offramp._core.schema import from_json, to_json
from offramp.models import MODELS, ModelSpec, build, extract_logits, save_weights, small_cnn


@pytest.mark.parametrize(
    ("name", "kind", "blocks"),
    [
        ("resnet8", "ResNet", 1),
        ("resnet20", "ResNet", 3),
        ("resnet26", "ResNet", 4),
        ("preresnet32", "PreResNet", 5),
        ("preresnet38", "PreResNet", 6),
        ("resnet21", "ResNet", 3),
    ],
)
def test_residual_networks_are_built_by_name_at_any_legal_depth(name, kind, blocks):
    net = build(ModelSpec(name=name))
    assert (type(net).__name__, len(net.layer1)) == (kind, blocks)
    assert not net.training


def test_resnet21_has_projections_and_resnet20_has_none():
    assert list(build(ModelSpec(name="resnet21")).layer2[0].shortcut.parameters())
    assert not list(build(ModelSpec(name="resnet20")).layer2[0].shortcut.parameters())


def test_every_registered_name_builds():
    for name in MODELS:
        with torch.device("meta"):  # weights without values: the large ones cost nothing
            assert isinstance(build(ModelSpec(name=name)), nn.Module)


def test_an_illegal_depth_in_a_name_gets_the_nearest():
    with pytest.raises(InputError, match=r"got 22. Nearest: 20 or 26"):
        build(ModelSpec(name="preresnet22"))


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UnknownNameError, match=r"no model 'smal_cnn'. Did you mean 'small_cnn'"):
        build(ModelSpec(name="smal_cnn"))


def test_refused_arguments_are_shown():
    with pytest.raises(InputError, match=r"small_cnn refuses \{'widht': 3\}: .*widht"):
        build(ModelSpec(name="small_cnn", arguments={"widht": 3}))


def test_anything_importable_is_built_by_module_and_callable():
    spec = ModelSpec(name="torch.nn:Linear", arguments={"in_features": 3, "out_features": 2})
    assert build(spec)(torch.zeros(1, 3)).shape == (1, 2)
    nested = ModelSpec(name="torch:nn.Linear", arguments={"in_features": 3, "out_features": 2})
    assert isinstance(build(nested), nn.Linear)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package.nets:make", "module 'no_such_package.nets' of .* cannot be imported"),
        ("torch.nn:Linaer", "module 'torch.nn' has no callable 'Linaer'"),
        ("torch:version.cuda", "no callable 'version.cuda'"),
        ("torch.nn:", "no callable ''"),
        (":Linear", "module '' of ':Linear' cannot be imported"),
    ],
)
def test_what_cannot_be_imported_is_named(name, message):
    with pytest.raises(UnsupportedError, match=message):
        build(ModelSpec(name=name))


def test_imports_can_be_forbidden():
    spec = ModelSpec(name="torch.nn:Identity")
    with pytest.raises(UnsupportedError, match=r"'torch.nn:Identity' would import and run code"):
        build(spec, allow_import=False)
    assert isinstance(build(ModelSpec(name="resnet8"), allow_import=False), nn.Module)


def test_a_callable_that_makes_no_network_is_refused():
    with pytest.raises(InputError, match=r"math:sqrt refuses|must return an nn\.Module, got dict"):
        build(ModelSpec(name="builtins:dict"))


def test_a_spec_survives_json():
    spec = ModelSpec(
        name="small_cnn", arguments={"width": 3, "depth": 2}, weights="w.npz", weights_sha256="0a"
    )
    assert from_json(ModelSpec, json.loads(json.dumps(to_json(spec)))) == spec
    assert from_json(ModelSpec, {"name": "resnet8"}) == ModelSpec(name="resnet8")


def test_a_spec_does_not_follow_later_changes_of_its_arguments():
    arguments = {"width": [3]}
    spec = ModelSpec(name="small_cnn", arguments=arguments)
    arguments["width"].append(4)
    assert spec.arguments == {"width": [3]}


def test_arguments_that_are_not_json_values_are_refused():
    with pytest.raises(InputError, match="arguments of 'small_cnn' must be JSON values"):
        ModelSpec(name="small_cnn", arguments={"width": object()})
    with pytest.raises(InputError, match=r"must be JSON values, got {'width': nan}"):
        ModelSpec(name="small_cnn", arguments={"width": float("nan")})


def test_unknown_keys_and_a_missing_name_are_refused():
    with pytest.raises(
        FileFormatError, match=r"name: this field is missing; nam: there is no such"
    ):
        from_json(ModelSpec, {"nam": "resnet8"})
    with pytest.raises(InputError, match="weights_sha256 needs weights"):
        ModelSpec(name="resnet8", weights_sha256="0a")


def test_weights_are_loaded_and_their_checksum_compared(tmp_path):
    path = tmp_path / "w.safetensors"
    first = small_cnn(width=2, depth=2, seed=5)
    save_weights(first, path)
    size = {"width": 2, "depth": 2}
    good = ModelSpec(
        name="small_cnn", arguments=size, weights=str(path), weights_sha256=sha256(path).upper()
    )
    assert torch.equal(build(good).linear.weight, first.linear.weight)
    bad = ModelSpec(name="small_cnn", arguments=size, weights=str(path), weights_sha256="0" * 64)
    with pytest.raises(FileFormatError, match=r"w\.safetensors has changed: .* 0000"):
        build(bad)
    missing = ModelSpec(
        name="small_cnn", arguments=size, weights=str(tmp_path / "x.npz"), weights_sha256="0" * 64
    )
    with pytest.raises(FileFormatError, match=r"x\.npz is missing"):
        build(missing)


class Outputs(NamedTuple):
    logits: Tensor
    aux: Tensor


class Held:
    def __init__(self, logits):
        self.logits = logits


def test_logits_are_found_in_whatever_a_network_returns():
    logits, other = torch.zeros(2, 3), torch.ones(2, 3)
    for output in (
        logits,
        Held(logits),
        {"loss": None, "logits": logits},
        Outputs(logits, other),
        (logits, torch.ones(2, 3, 4)),
        [logits],
    ):
        assert extract_logits(output) is logits


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "got NoneType"),
        ({"scores": torch.zeros(1, 2)}, r"got dict with the keys \['scores'\]"),
        (((torch.zeros(1, 2),),), r"got tuple of \['tuple'\]"),
        ((), r"got tuple of \[\]"),
        (Held(None), "got Held"),
    ],
)
def test_an_output_without_logits_is_described(output, message):
    with pytest.raises(InputError, match=message):
        extract_logits(output)


def test_logits_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"must have shape .* got \(2, 5, 3\)"):
        extract_logits(torch.zeros(2, 5, 3))
