"""What a bundle asks for is compared with what it holds before memory or time is taken."""

import json
import os
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from offramp._core.costs import Costs
from offramp._core.errors import FileFormatError, InputError
from offramp._core.files import sha256
from offramp._core.schema import to_json
from offramp._core.seal import sealed
from offramp.backends import to_onnx
from offramp.backends.foreign import check_onnx, check_openvino
from offramp.bundle import load, save
from offramp.bundle.tensors import read_tensors
from offramp.models import HEADS, MODELS, ModelSpec, build
from offramp.models.spec import model_factory
from offramp.models.trial import check_spec
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Normalize

SPEC = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2, "classes": 3})


@pytest.fixture
def bundle(tmp_path):
    cascade = Cascade.from_models(
        {"a": build(SPEC)}, specs={"a": SPEC}, transform=Normalize(), class_names=["x", "y", "z"]
    )
    candidate = Candidate.single(cascade.topology, "a", reference="a")
    costs = Costs.simple("flops", [1.0])
    save(Adaptive(cascade, candidate, costs=costs), tmp_path / "b", input_shape=[1, 8, 8])
    return tmp_path / "b"


def edit(folder, change, *, old=False):
    """What somebody would do who also corrects the digest, or writes an older format."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    if old:
        del value["sha256"]
        path.write_text(json.dumps({**value, "version": 1}))
    else:
        path.write_text(json.dumps(sealed(value)))


def refused(folder, match, **options):
    with pytest.raises(FileFormatError, match=match):
        load(folder, **options)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("small_cnn", {"depth": 10**6}),
        ("small_cnn", {"width": 10**6}),
        ("resnet20", {"width": 1e4}),
        ("resnet60002", {}),
        ("preresnet600000002", {}),
        ("vector_linear", {"features": 10**9, "classes": 1000}),
        ("pool_mlp", {"channels": 64, "classes": 10, "grid": 10**4, "hidden": 10**5}),
        ("conv_head", {"channels": 64, "classes": 10, "filters": [64] * 10**4}),
        ("densenet121", {}),
    ],
)
def test_networks_larger_than_their_weights_are_refused_before_they_are_built(
    bundle, name, arguments
):
    edit(bundle, lambda m: m["stages"][0].update(model={"name": name, "arguments": arguments}))
    said = r"cannot be built: .*(more layers than|do not fit|too large|overflow|must be)"
    refused(bundle, said)  # imports take memory as well, once
    tracemalloc.start()
    try:
        refused(bundle, said)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["resnet20", "preresnet20", "alexnet", "googlenet", "densenet121"])
def test_every_network_of_ours_has_on_the_meta_device_the_shapes_that_it_has(name):
    assert name in MODELS
    with torch.device("meta"):
        held = model_factory(name)().state_dict()
    check_spec(ModelSpec(name=name), held, "its own weights")
    assert all(tensor.is_meta for tensor in held.values())


def test_heads_of_ours_pass_as_well():
    assert {"vector_linear", "conv_head"} <= set(HEADS)
    spec = ModelSpec(name="conv_head", arguments={"channels": 4, "classes": 3, "filters": [2, 5]})
    check_spec(spec, build(spec).state_dict(), "its own weights")


def test_a_network_within_a_network_is_measured_too(bundle):
    inner = to_json(ModelSpec(name="small_cnn", arguments={"width": 4000, "depth": 2}))
    arguments = {"model": inner, "points": ["features.0"], "taps": [], "shape": [1, 8, 8]}
    edit(bundle, lambda m: m["stages"][0].update(model={"name": "tapped", "arguments": arguments}))
    refused(bundle, "small_cnn takes .* bytes, but .* holds")


@pytest.mark.parametrize("change", [{"shape": [1, 10**4, 10**4]}, {"grid": 10**5}, {"shape": [-1]}])
def test_a_tapped_network_runs_on_no_input_out_of_proportion(change):
    taps = [{"name": "x", "reads": ["features.0"]}]
    arguments = {
        "model": to_json(SPEC),
        "points": ["features.0"],
        "taps": taps,
        "shape": [1, 8, 8],
    }
    with pytest.raises(InputError, match="shape must"):
        build(ModelSpec(name="tapped", arguments={**arguments, **change}))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_another_kind_of_number_are_not_cast(bundle, dtype):
    tensors = load_file(bundle / "a.safetensors")
    tensors["linear.bias"] = tensors["linear.bias"].to(dtype)
    path = bundle / "a.safetensors"
    try:
        save_file(tensors, path)
    except KeyError:
        pytest.skip(f"this safetensors writes no {dtype}")
    entry = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    edit(bundle, lambda m: m["files"].update({"a.safetensors": entry}))
    refused(bundle, "1 of another kind of number")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m["stages"][0]["transform"].update(scale=1e400), "finite|changed"),
        (lambda m: m["choice"]["numbers"].update(risk=1e400), "finite|changed"),
        (lambda m: m["costs"].update(segment=[1e400]), "finite|changed"),
        (lambda m: m.update(input_shape=[-1, 8, 8]), "input_shape.0"),
        (lambda m: m.update(input_shape=[0, 8, 8]), "input_shape.0"),
        (lambda m: m.update(input_shape=[10**5, 10**5]), "input_shape: .*at most"),
        (lambda m: m.update(input_shape=[10**400]), "input_shape.0"),
    ],
)
def test_numbers_that_cannot_be_are_refused_in_every_format(bundle, change, match, old):
    path = bundle / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    text = json.dumps(value).replace("Infinity", "1e400")
    if old:
        del value["sha256"]
        text = json.dumps({**value, "version": 1}).replace("Infinity", "1e400")
    path.write_text(text)
    refused(bundle, match, backend="onnxruntime")
    path.write_text(text.replace("1e400", "NaN"))
    refused(bundle, "finite|input_shape")


def test_class_names_of_another_number_are_refused_by_the_first_answer(bundle):
    edit(bundle, lambda m: m.update(class_names=["x", "y"]))
    loaded = load(bundle)
    with pytest.raises(InputError, match=r"class_names must have 3 entries, .* got 2"):
        loaded(torch.zeros(1, 1, 8, 8))


def test_a_manifest_that_is_a_pipe_a_device_or_too_large_is_refused_at_once(bundle):
    path = bundle / "manifest.json"
    text = path.read_text()
    path.unlink()
    os.mkfifo(path)
    refused(bundle, r"manifest\.json must be a plain file")
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(bundle, r"manifest\.json must be a plain file")
    path.unlink()
    path.write_text(text + " " * 9 * 2**20)
    refused(bundle, "must have at most 8388608 bytes")


def test_a_file_of_a_million_tensors_is_refused_by_the_length_of_its_header(tmp_path):
    header = b"{" + b" " * 9 * 2**20 + b"}"
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FileFormatError, match=r"header has \d+ bytes, more than"):
        read_tensors(tmp_path / "a.safetensors")


def model():
    return to_onnx(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(1, 4), name="x")


def with_function(held):
    import onnx

    node = onnx.helper.make_node("Relu", ["a"], ["b"])
    opset = onnx.helper.make_opsetid("", 18)
    held.functions.append(onnx.helper.make_function("mine", "f", ["a"], ["b"], [node], [opset]))


def with_loop(held):
    import onnx

    held.graph.node.append(onnx.helper.make_node("Loop", ["", ""], ["y"], body=held.graph))


def with_external(held):
    from onnx.external_data_helper import set_external_data

    tensor = held.graph.initializer[0]
    set_external_data(tensor, location="secret.bin")
    tensor.data_location = 1


def with_sparse(held):
    import onnx

    values = onnx.helper.make_tensor("v", 1, [1], [1.0])
    indices = onnx.helper.make_tensor("i", 7, [1], [0])
    held.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [5]))


def with_eight_gib(held):
    import onnx

    shape = onnx.helper.make_tensor("s", 7, [2], [2, 2**30])
    held.graph.initializer.append(shape)
    held.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["s"], ["huge"]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (with_function, "branches, loops or functions"),
        (with_loop, "branches, loops or functions"),
        (with_external, "refers to other files"),
        (with_sparse, "sparse tensors"),
        (with_eight_gib, "numbers for one example"),
    ],
)
def test_an_onnx_model_with_more_than_one_flat_graph_is_refused_by_us(change, match):
    held = model()
    check_onnx(held.SerializeToString(), "x")
    change(held)
    with pytest.raises(FileFormatError, match=match):
        check_onnx(held.SerializeToString(), "x")


def test_loops_of_openvino_are_refused_in_any_spelling():
    for text in (
        b"<net><layer type='&#76;oop'>< body ></body></layer></net>",
        b"<net><layer><port_map\n></port_map></layer></net>",
        "<net><body/></net>".encode("utf-16"),
    ):
        with pytest.raises(FileFormatError, match=r"loops|UTF-8"):
            check_openvino(text, "x")
    check_openvino(b"<net><layer name='body' type='Relu'/></net>", "x")
