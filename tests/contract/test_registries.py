"""Every data set and every network that a configuration file can name."""

import inspect

import pytest

from offramp._core.errors import InputError, UnknownNameError
from offramp.data import SOURCES, load_dataset
from offramp.models import MODELS, ModelSpec, build, model_factory

SETS, NETWORKS = sorted(SOURCES), sorted(MODELS)


def documentation(factory):
    return inspect.getdoc(getattr(factory, "func", factory)) or ""


def test_the_sweeps_are_not_empty():
    assert {"digits", "cifar10", "cifar100", "imagenet32", "folder", "npz"} <= set(SETS)
    assert {"resnet20", "resnet110", "preresnet20", "resnet21", "small_cnn"} <= set(NETWORKS)


@pytest.mark.parametrize("name", SETS)
def test_every_data_set_says_what_it_is(name):
    first = documentation(SOURCES[name]).partition("\n")[0]
    assert first.endswith((".", ":"))


@pytest.mark.parametrize("name", SETS)
def test_every_data_set_refuses_an_option_it_does_not_have(name, tmp_path):
    path = None if name == "digits" else tmp_path
    with pytest.raises(InputError, match=f"option of '{name}' .*'nonsense'"):
        load_dataset(name, path, nonsense=1)


@pytest.mark.parametrize("name", [name for name in SETS if name != "digits"])
def test_every_data_set_that_lies_somewhere_asks_where(name):
    with pytest.raises(InputError, match=f"'{name}' needs a path, got None"):
        load_dataset(name)


@pytest.mark.parametrize("name", [name for name in SETS if name != "digits"])
def test_every_data_set_names_what_is_not_there(name, tmp_path):
    with pytest.raises((OSError, ValueError), match="nowhere"):
        load_dataset(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_says_what_it_is(name):
    assert documentation(MODELS[name]).partition("\n")[0].endswith(".")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_refuses_an_option_it_does_not_have(name):
    with pytest.raises(InputError, match=f"{name} refuses .*nonsense"):
        build(ModelSpec(name=name, arguments={"nonsense": 1}))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_have_other_classes_and_a_seed(name):
    assert {"classes", "seed"} <= set(inspect.signature(MODELS[name]).parameters)


@pytest.mark.parametrize(
    ("ask", "near"),
    [
        (lambda: load_dataset("digit"), "digits"),
        (lambda: load_dataset("cifar-10", "somewhere"), "cifar10"),
        (lambda: model_factory("smal_cnn"), "small_cnn"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_the_nearest(ask, near):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'"):
        ask()
