"""ONNX files of others as stages."""

import numpy as np
import pytest
import torch
from torch import nn

import offramp
from offramp import Cascade
from offramp._core.errors import FileFormatError, InputError, UnknownNameError, UnsupportedError
from offramp.adapters import from_onnx
from offramp.backends import to_onnx
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Normalize

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper = onnx.helper

WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


def model(nodes, inputs, outputs, constants=(), opset=17):
    """A graph as another exporter may write it: shapes as tuples, None and texts are free."""

    def values(each):
        return [helper.make_tensor_value_info(n, k, s) for n, (k, s) in each.items()]

    made = [onnx.numpy_helper.from_array(array, name) for name, array in constants]
    graph = helper.make_graph(nodes, "g", values(inputs), values(outputs), made)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 20 else 9
    )


def linear(batch="n", softmax=False):
    nodes = [helper.make_node("MatMul", ["features", "w"], ["scores"])]
    last = "scores"
    if softmax:
        nodes.append(helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1))
        nodes.append(helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0))
        nodes.append(
            helper.make_node("ReduceMax", ["probabilities"], ["confidence"], axes=[1], keepdims=0)
        )
        last = "probabilities"
    outputs = {last: (1, (batch, 3))}
    if softmax:
        outputs |= {"label": (7, (batch,)), "confidence": (1, (batch,))}
    return model(nodes, {"features": (1, (batch, 4))}, outputs, [("w", WEIGHT)])


@pytest.fixture
def saved(tmp_path):
    def save(made, name="net.onnx", **more):
        onnx.save(made, tmp_path / name, **more)
        return tmp_path / name

    return save


ROWS = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def test_logits_are_those_of_the_file(saved):
    stage = from_onnx(saved(linear()), own_names=["a", "b", "c"])
    said = stage.run(ROWS)[0].logits
    torch.testing.assert_close(said, ROWS @ torch.from_numpy(WEIGHT))
    assert (stage.name, stage.classes, stage.class_names) == ("net", 3, ("a", "b", "c"))
    assert len(stage.run(ROWS[:0])[0].logits) == 0


def test_probabilities_become_their_logarithms_and_labels_come_with_confidences(saved):
    path = saved(linear(softmax=True))
    wanted = (ROWS @ torch.from_numpy(WEIGHT)).softmax(dim=1)
    said = from_onnx(path, gives="probabilities").run(ROWS)[0].logits
    torch.testing.assert_close(said.softmax(dim=1), wanted)
    order = {"own_names": ["a", "b", "c"], "class_names": ["c", "a", "b"]}
    found = from_onnx(path, gives="labels", classes=3).run(ROWS)[0]
    torch.testing.assert_close(found.confidence, wanted.amax(dim=1))
    assert torch.equal(found.ranked[:, 0], wanted.argmax(dim=1))
    turned = from_onnx(path, gives="labels", **order).run(ROWS)[0]
    assert torch.equal(turned.ranked[:, 0], (found.ranked[:, 0] + 1) % 3)


def test_impossible_classes_have_a_small_number_and_no_infinity(saved):
    nodes = [helper.make_node("Relu", ["x"], ["probabilities"])]
    path = saved(model(nodes, {"x": (1, ("n", 2))}, {"probabilities": (1, ("n", 2))}))
    said = from_onnx(path, gives="probabilities").run(torch.tensor([[0.0, 1.0]]))[0].logits
    assert said.isfinite().all()
    assert said[0, 1] == 0


def answers_itself(kind, width=None, names=("label", "confidence")):
    """A file that answers with its inputs: labels and confidences, or one output."""
    shapes = ("n",) if width is None else ("n", width)
    kinds = {"labels_in": kind, "sure": 1} if len(names) == 2 else {"x": kind}
    nodes = [
        helper.make_node("Identity", [each], [name])
        for each, name in zip(kinds, names, strict=True)
    ]
    kinds_out = zip(names, kinds.values(), strict=True)
    return model(
        nodes,
        {each: (k, shapes) for each, k in kinds.items()},
        {name: (k, shapes) for name, k in kinds_out},
    )


def test_labels_that_name_no_class_stay_outside(saved, tmp_path):
    path = saved(answers_itself(7))
    rows = {
        "labels_in": torch.tensor([0, 1, 2, -1, 3, -2, 700]),
        "sure": torch.full((7,), 0.5),
    }
    names = {"own_names": ["a", "b", "c"], "class_names": ["c", "a", "b"]}
    for stage, inside in (
        (from_onnx(path, gives="labels", classes=3), [0, 1, 2]),
        (from_onnx(path, gives="labels", **names), [1, 2, 0]),
    ):
        labels = stage.run(rows)[0].ranked[:, 0].tolist()
        refused = labels[3]  # a number of the stage's own
        assert labels == [*inside, refused, 3, refused, 700]
        assert refused < 0


def test_labels_that_are_no_whole_numbers_are_refused(saved):
    path = saved(answers_itself(1))
    with pytest.raises(InputError, match=r"must be whole numbers, got 'label' of FLOAT"):
        from_onnx(path, gives="labels", classes=3)


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ([0.5, -0.1, 0.6], r"must be in \[0, 1\], got -0.1"),
        ([5.0, -2.0, 0.3], r"must be in \[0, 1\], got 5"),
        ([0.5, 0.9, 0.3], r"must sum to 1 over the classes, got 1.7"),
        ([0.5, 0.5, float("nan")], r"must be in \[0, 1\], got nan"),
    ],
)
def test_what_are_no_probabilities_is_refused(saved, tmp_path, row, error):
    stage = from_onnx(saved(answers_itself(1, 3, ["y"])), gives="probabilities")
    assert stage.run(torch.tensor([[0.2, 0.3, 0.5]]))[0].logits.argmax() == 2
    with pytest.raises(InputError, match=error):
        stage.run(torch.tensor([[0.2, 0.3, 0.5], row]))


def test_a_bundle_knows_that_they_are_probabilities(saved, tmp_path):
    names = {"own_names": ["a", "b", "c"], "class_names": ["c", "a", "b"]}
    stage = from_onnx(saved(linear(softmax=True)), gives="probabilities", **names)
    cascade = Cascade.from_models({"first": stage})
    said = stage.run(ROWS)[0].logits
    wanted = (ROWS @ torch.from_numpy(WEIGHT)).log_softmax(dim=1)[:, [2, 0, 1]]
    torch.testing.assert_close(said, wanted)
    candidate = Candidate.single(cascade.topology, "first", reference="first")
    offramp.save(Adaptive(cascade, candidate), tmp_path / "bundle")
    again = offramp.load(tmp_path / "bundle").cascade.stage("first")
    assert torch.equal(again.run(ROWS)[0].logits, said)
    assert again.outputs == "probabilities"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"classes": 7}, "classes must be 3"),
        ({"classes": "3"}, "classes must be an integer"),
        ({"output": 5}, "output must name logits, got 5"),
        ({"output": [5]}, "output must name logits"),
        ({"class_names": 5}, "class_names must be a list"),
        ({"class_names": ["a", "b"]}, "class_names must have 3 entries"),
        ({"own_names": 5}, "own_names must be a list"),
        ({"own_names": "abc"}, "own_names must be a list"),
        ({"own_names": [*"abcd"], "class_names": [*"dcba"]}, "own_names must have 3 entries"),
        ({"own_names": [*"ab"], "class_names": [*"ba"]}, "own_names must have 3 entries"),
    ],
)
def test_arguments_that_do_not_fit_the_file_are_refused(saved, arguments, error):
    with pytest.raises(InputError, match=error):
        from_onnx(saved(linear()), **arguments)


def test_names_may_be_left_out_and_a_path_may_not(saved):
    assert from_onnx(saved(linear()), own_names=[*"abc"], class_names=[]).class_names == ()
    with pytest.raises(InputError, match="path must be the path of an ONNX file, got 5"):
        from_onnx(5)
    with pytest.raises(InputError, match="classes must be 3"):
        from_onnx(saved(linear(softmax=True)), gives="labels", classes=4, own_names=[*"abc"])


def test_a_bundle_holds_it_and_its_order(saved, tmp_path):
    path = saved(linear())
    names = ["a", "b", "c"]
    stage = from_onnx(
        path, own_names=names, class_names=["c", "a", "b"], transform=Normalize(0.5, 1.0, 2.0)
    )
    cascade = Cascade.from_models({"first": stage})
    said = cascade(ROWS)[:, 0]
    plain = from_onnx(path, transform=Normalize(0.5, 1.0, 2.0)).run(ROWS)[0].logits
    assert torch.equal(said, plain[:, [2, 0, 1]])
    candidate = Candidate.single(cascade.topology, "first", reference="first")
    offramp.save(Adaptive(cascade, candidate), tmp_path / "bundle")
    path.unlink()
    again = offramp.load(tmp_path / "bundle")
    assert torch.equal(again.cascade.stage("first").run(ROWS)[0].logits, said)
    content = (tmp_path / "bundle" / "first.onnx").read_bytes()
    (tmp_path / "bundle" / "first.onnx").write_bytes(content[:-9] + b"\0" + content[-8:])
    with pytest.raises(FileFormatError, match=r"first\.onnx"):
        offramp.load(tmp_path / "bundle")


def test_weights_beside_the_file_are_read_along(saved):
    path = saved(linear(), save_as_external_data=True, size_threshold=0, location="w.bin")
    assert path.with_name("w.bin").exists()
    said = from_onnx(path).run(ROWS)[0].logits
    torch.testing.assert_close(said, ROWS @ torch.from_numpy(WEIGHT))
    path.with_name("w.bin").unlink()
    with pytest.raises(FileFormatError, match="cannot be read"):
        from_onnx(path)


def test_several_inputs_come_by_name_and_with_free_lengths(saved):
    nodes = [
        helper.make_node("Mul", ["ids", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["sums"], keepdims=1),
        helper.make_node("MatMul", ["sums", "w"], ["logits"]),
    ]
    inputs = {"ids": (1, ("n", "t")), "mask": (1, ("n", "t"))}
    constants = [("axis", np.array([1])), ("w", WEIGHT[:1])]
    path = saved(model(nodes, inputs, {"logits": (1, ("n", 3))}, constants))
    with pytest.raises(InputError, match=r"example must be given: sizes of the input 'ids'.*\[1\]"):
        from_onnx(path)
    example = {"mask": torch.ones(1, 4), "ids": torch.ones(1, 4)}
    stage = from_onnx(path, example=example)
    rows = {"mask": torch.tensor([[1.0, 0.0, 1.0]]), "ids": torch.tensor([[5.0, 7.0, 1.0]])}
    said = stage.run(rows)[0].logits
    torch.testing.assert_close(said, 6 * torch.from_numpy(WEIGHT[:1]))


@pytest.mark.filterwarnings("ignore")  # the exporter warns of its own future
def test_another_exporter_wrote_it(tmp_path):
    pytest.importorskip("onnxscript")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).eval()
    example = torch.randn(2, 3, 8, 8)
    net(example)
    batch = {"input": {0: torch.export.Dim("batch")}}
    program = torch.onnx.export(
        net, (example,), dynamo=True, verbose=False, dynamic_shapes=tuple(batch.values())
    )
    program.save(str(tmp_path / "conv.onnx"))
    stage = from_onnx(tmp_path / "conv.onnx", threads=1)
    torch.testing.assert_close(stage.run(example)[0].logits, net(example), rtol=0, atol=1e-5)


def test_functions_are_written_out(saved):
    inner = helper.make_function(
        "own",
        "Twice",
        ["x"],
        ["y"],
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [helper.make_opsetid("", 17)],
    )
    node = helper.make_node("Twice", ["x"], ["y"], domain="own")
    made = model([node], {"x": (1, ("n", 3))}, {"y": (1, ("n", 3))})
    made.functions.append(inner)
    made.opset_import.append(helper.make_opsetid("own", 1))
    said = from_onnx(saved(made)).run(ROWS[:, :3])[0].logits
    assert torch.equal(said, 2 * ROWS[:, :3])


def test_what_is_no_classifier_of_any_batch_is_refused(saved, tmp_path):
    with pytest.raises(UnsupportedError, match=r"fixed batch of 1\. Export it again with a free"):
        from_onnx(saved(linear(batch=1)))
    (tmp_path / "text.onnx").write_text("no model")
    for name in ("text.onnx", "nothing.onnx"):
        with pytest.raises(FileFormatError, match=f"{name} cannot be read"):
            from_onnx(tmp_path / name)
    with pytest.raises(UnknownNameError, match="There is no output of the model 'logits'"):
        from_onnx(saved(linear(softmax=True)))
    with pytest.raises(InputError, match="needs outputs"):
        from_onnx(saved(linear(softmax=True)), output="label")
    with pytest.raises(InputError, match="output must name label and confidence"):
        from_onnx(saved(linear(softmax=True)), gives="labels", output="label")
    with pytest.raises(InputError, match="own_names must have 3 entries"):
        from_onnx(saved(linear()), own_names=["a", "b"])
    texts = model(
        [helper.make_node("Identity", ["x"], ["y"])], {"x": (8, ("n", 2))}, {"y": (8, ("n", 2))}
    )
    with pytest.raises(UnsupportedError, match="must be a tensor of numbers"):
        from_onnx(saved(texts))


def test_a_reshape_that_fixes_the_batch_is_found_out(saved):
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    made = model(nodes, {"x": (1, ("n", 4))}, {"y": (1, ("n", 4))}, [("shape", np.array([2, 4]))])
    with pytest.raises(UnsupportedError, match="does not run on 3 examples"):
        from_onnx(saved(made))


def test_with_others_it_goes_into_one_file(saved, tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"], axis=1),
    ]
    net = nn.Linear(4, 3).eval()
    (same,) = [
        each.version for each in to_onnx(net, ROWS, name="net").opset_import if not each.domain
    ]
    made = model(nodes, {"x": (1, ("n", 4))}, {"p": (1, ("n", 3))}, [("w", WEIGHT)], opset=same)
    first = from_onnx(saved(made, "first.onnx"), gives="probabilities")
    cascade = Cascade.from_models({"first": first, "second": net})
    candidate = Candidate.single(cascade.topology, "first", reference="second")
    adaptive = Adaptive(cascade, candidate)
    offramp.export_onnx(adaptive, tmp_path / "one.onnx", example=ROWS)
    run = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "one.onnx")
    found = run.run(["label"], {run.get_inputs()[0].name: ROWS.numpy()})
    assert found[0].tolist() == adaptive(ROWS).labels.tolist()
