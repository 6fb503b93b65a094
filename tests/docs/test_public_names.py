"""Every public name is listed and says what it does; every public function shows it."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import offramp
from offramp._core import errors

ROOT = Path(__file__).parents[2]
LAYERS = sorted(m.name for m in pkgutil.iter_modules(offramp.__path__) if m.ispkg)
PUBLIC = [layer for layer in LAYERS if not layer.startswith("_") and layer != "cli"]

#: Functions that no example can show where tests run, and why.
NOT_SHOWN = {
    "cifar10": "its files are downloaded",
    "cifar100": "its files are downloaded",
    "imagenet32": "its files are downloaded by hand",
    "fetch": "needs a network",
    "measure_joules": "needs hardware that reports energy",
    "predict_shards": "starts a cluster of Ray",
}
#: Functions for those who build on a layer from inside; their docstrings say enough.
INTERNAL = {
    "check_company",
    "tell_classes",
    "backends_of",
    "build_all",
    "evaluating",
    "model_factory",
    "names_in",
    "overlap_figure",
    "policy_of",
    "read_extra",
    "read_image",
    "read_manifest",
    "require_onnx",
    "resnet21",
    "restored",
    "stage_figure",
    "sweep",
    "thread_count",
    "to_device",
    "write_class_exits_report",
    "write_joint_report",
    "write_report",
}


def functions():
    for layer in PUBLIC:
        module = importlib.import_module(f"offramp.{layer}")
        for name in module.__all__:
            if inspect.isfunction(getattr(module, name)):
                yield name, getattr(module, name)


def shown_in_documents():
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    text = " ".join(page.read_text(encoding="utf-8") for page in pages)
    return re.sub(r"```javascript\n.*?```", "", text, flags=re.DOTALL)  # `fetch` is a browser's


@pytest.mark.parametrize("layer", PUBLIC)
def test_a_layer_lists_what_is_public_and_names_itself(layer):
    module = importlib.import_module(f"offramp.{layer}")
    assert f"Layer: {layer}" in module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), name
        assert not name.startswith("_")


@pytest.mark.parametrize("layer", LAYERS)
def test_every_module_says_what_it_is_and_where_it_stands(layer):
    package = importlib.import_module(f"offramp.{layer}")
    for found in pkgutil.walk_packages(package.__path__, f"offramp.{layer}."):
        if not found.name.endswith("__main__"):
            documentation = importlib.import_module(found.name).__doc__ or ""
            assert re.search(rf"^Layer: {layer}\b", documentation, re.MULTILINE), found.name


@pytest.mark.parametrize("layer", PUBLIC)
def test_every_public_name_says_what_it_does(layer):
    module = importlib.import_module(f"offramp.{layer}")
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            own = value.__doc__ or ""
            # A dataclass without a docstring gets its signature as one.
            assert own.strip(), name
            assert not own.startswith(f"{name}("), name


def test_every_public_function_is_shown_by_an_example_that_runs():
    documents = shown_in_documents()
    missing = {
        name
        for name, function in functions()
        if ">>> " not in function.__doc__ and not re.search(rf"\b{name}\(", documents)
    }
    assert missing - INTERNAL - set(NOT_SHOWN) == set()


def test_no_exception_above_is_stale():
    documents = shown_in_documents()
    every = dict(functions())
    for name in {*NOT_SHOWN, *INTERNAL} & set(every):
        shown = ">>> " in every[name].__doc__ or re.search(rf"\b{name}\(", documents)
        assert not shown, f"{name} has an example by now"
    assert {*NOT_SHOWN, *INTERNAL} <= set(every)


def test_what_offramp_exports_is_there_and_read_on_first_use():
    for name in offramp.__all__:
        assert getattr(offramp, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        offramp.fitt  # noqa: B018


def test_no_public_name_is_that_of_a_layer():
    assert set(offramp.__all__) & set(LAYERS) == set()


def test_the_error_tree_is_as_drawn():
    """Depth in the drawing is inheritance in the code."""
    drawn = re.findall(r"^ {4}([│ ├└─]*)(\w+Error)", errors.__doc__, re.MULTILINE)
    above = {}
    parents = {}
    for lines, name in drawn:
        depth = len(lines) // 4
        above[depth] = name
        parents[name] = above.get(depth - 1)
    coded = {name: v for name, v in vars(errors).items() if isinstance(v, type)}
    assert set(parents) == set(coded)
    for name, parent in parents.items():
        first = coded[name].__bases__[0].__name__
        assert first == (parent or "Exception"), name


def test_a_public_name_stands_for_one_thing():
    """The same name from two packages is the same object."""
    homes: dict[str, dict[int, str]] = {}
    for package in ("offramp", *(f"offramp.{layer}" for layer in PUBLIC)):
        module = importlib.import_module(package)
        for name in module.__all__:
            homes.setdefault(name, {})[id(getattr(module, name))] = package
    twice = {name: sorted(found.values()) for name, found in homes.items() if len(found) > 1}
    assert twice == {}
