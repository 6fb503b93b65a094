"""Every head, network, backend, data set and unit keeps what `offramp.testing` says.

Each suite is shown members that are broken on purpose, so that it is seen to fail.
"""

import pytest
import torch
from torch import nn

from offramp._core.errors import InputError, UnknownNameError, UnsupportedError
from offramp._core.units import UNITS, Unit
from offramp.backends import BACKENDS, Backend
from offramp.data import SOURCES, Dataset, digits, load_dataset
from offramp.models import HEADS, MODELS, ModelSpec, build, gap_linear, model_factory
from offramp.stages import METERS
from offramp.testing import (
    check_backend,
    check_head,
    check_model,
    check_source,
    check_unit,
)

# Before any test adds to them.
SETS, NETWORKS = sorted(SOURCES), sorted(MODELS)
UNIT_NAMES = sorted({*UNITS, *METERS})


def test_the_sweeps_are_not_empty():
    assert {"digits", "cifar10", "cifar100", "imagenet32", "folder", "npz"} <= set(SETS)
    assert {"resnet20", "resnet110", "preresnet20", "resnet21", "small_cnn"} <= set(NETWORKS)
    assert {"gap_linear", "token_linear"} <= set(HEADS)
    assert {"eager", "folded", "onnxruntime"} <= set(BACKENDS)
    assert {"flops", "seconds"} <= set(METERS)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_every_head_keeps_what_heads_promise(name):
    check_head(name)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_keeps_what_networks_promise(name):
    check_model(name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(  # other variants of what make test runs: make test-slow
            name, marks=[pytest.mark.slow] if name not in ("folded", "onnxruntime") else []
        )
        for name in sorted(BACKENDS)
    ],
)
def test_every_backend_keeps_what_backends_promise(name):
    if not BACKENDS[name].is_there():
        pytest.skip(f"{name} cannot run here")
    try:
        check_backend(name)
    except UnsupportedError as error:  # openvino-bf16 needs a processor that has it
        pytest.skip(str(error))


@pytest.mark.parametrize("name", SETS)
def test_every_data_set_keeps_what_data_sets_promise(name):
    check_source(name)


@pytest.mark.parametrize("name", UNIT_NAMES)
def test_every_unit_keeps_what_units_promise(name):
    check_unit(name)


# Broken on purpose.


class OfTheBatch(nn.Module):
    """A head that looks at the rest of the batch."""

    def __init__(self, features, classes):
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, x):
        return self.linear((x - x.mean(dim=0)).flatten(1))


def of_the_batch(*, shape, classes):
    """A head of the batch."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return OfTheBatch(torch.Size(shape).numel(), classes).eval()


def at_random(*, shape, classes):
    """A head with other weights each time."""
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), classes)).eval()


def picky(*, shape, classes):
    """A head that nothing suits."""
    raise InputError(f"shape must be another one, got {shape}.")


@pytest.mark.parametrize(
    ("head", "broken"),
    [
        (of_the_batch, "an answer does not depend on the rest of the batch"),
        (at_random, "the same seed builds the same"),
        (picky, "it takes one of the shapes"),
        (lambda *, shape, classes: gap_linear(6, classes), "begins with a sentence"),
    ],
)
def test_a_broken_head_is_found(head, broken):
    with pytest.raises(AssertionError, match=broken):
        check_head(head)


def test_a_broken_network_is_found():
    def anything(**options):
        """A network of whatever is asked for."""

    with pytest.raises(AssertionError, match="it can have other classes"):
        check_model(anything)


def times_two(task):
    module = task.module

    class Louder(nn.Module):
        def forward(self, *given):
            found = module(*given)
            return 2 * found if isinstance(found, torch.Tensor) else found

    return Louder().eval()


def test_a_broken_backend_is_found_and_is_not_left_behind():
    before = set(BACKENDS)
    louder = Backend(build=times_two, is_there=lambda: True)
    with pytest.raises(AssertionError, match="answers are those of PyTorch to rounding"):
        check_backend(louder)
    with pytest.raises(AssertionError, match="it can be checked only where it runs"):
        check_backend(Backend(build=times_two, is_there=lambda: False))
    assert set(BACKENDS) == before


def nobody():
    """Nobody at all."""
    return digits().take(torch.arange(0))


def shuffled():
    """The digits, in another order each time."""
    return digits().take(torch.randperm(1797))


def forgiving(path: str) -> Dataset:
    """The digits, wherever they lie."""
    return digits()


@pytest.mark.parametrize(
    ("source", "broken"),
    [
        (shuffled, "they are the same each time"),
        (forgiving, "it refuses a path that is not there"),
    ],
)
def test_a_broken_data_set_is_found(source, broken):
    with pytest.raises(AssertionError, match=broken):
        check_source(source)


def test_a_broken_unit_is_found():
    with pytest.raises(AssertionError, match="it has words"):
        check_unit(Unit(words=" "))
    with pytest.raises(AssertionError, match="its prefixes fall"):
        check_unit(Unit(words="grams", prefixes=((1.0, ""), (1e3, "k"))))
    with pytest.raises(InputError, match="must be one of"):
        check_unit("grams")


# What a registry adds, whoever is in it.


@pytest.mark.parametrize("name", SETS)
def test_every_data_set_refuses_an_option_it_does_not_have(name, tmp_path):
    path = None if name == "digits" else tmp_path
    with pytest.raises(InputError, match=f"option of '{name}' .*'nonsense'"):
        load_dataset(name, path, nonsense=1)


@pytest.mark.parametrize("name", [name for name in SETS if name != "digits"])
def test_every_data_set_that_lies_somewhere_asks_where(name):
    with pytest.raises(InputError, match=f"'{name}' needs a path, got None"):
        load_dataset(name)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_refuses_an_option_it_does_not_have(name):
    with pytest.raises(InputError, match=f"{name} refuses .*nonsense"):
        build(ModelSpec(name=name, arguments={"nonsense": 1}))


@pytest.mark.parametrize(
    ("ask", "near"),
    [
        (lambda: load_dataset("digit"), "digits"),
        (lambda: load_dataset("cifar-10", "somewhere"), "cifar10"),
        (lambda: model_factory("smal_cnn"), "small_cnn"),
        (lambda: BACKENDS["onnxruntme"], "onnxruntime"),
        (lambda: UNITS["second"], "seconds"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_the_nearest(ask, near):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'"):
        ask()
