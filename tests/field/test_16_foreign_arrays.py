"""Wrong inputs ended in raw errors; arrays, tables and lists are taken, the rest is named."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from offramp import Adaptive, Candidate, Cascade, record, save
from offramp._core.arrays import tensor_of
from offramp._core.batch import as_batch
from offramp._core.errors import InputError
from offramp.data import arrays
from offramp.policy import Feature, Linear, Node, Policy
from offramp.runtime.chosen import candidate_of
from offramp.stages import Normalize, measure_flops

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
Y = [0, 1, 2, 0, 1, 2]


def linear(dtype=torch.float32, **arguments):
    nets = {name: nn.Linear(4, 3).eval().to(dtype) for name in "ab"}
    for k, net in enumerate(nets.values()):
        net.weight.data = torch.linspace(-1, 1 + k, 12).reshape(3, 4).to(dtype)
    return Cascade.from_models(nets, **arguments)


def model_of(cascade):
    return Adaptive(cascade, policy_of(cascade))


def policy_of(cascade):
    rule = Node(Linear.threshold(Feature("max_prob", 0), 0.6))
    return Policy(cascade.topology, {(0,): rule})


def conv(dtype):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return net.eval().to(dtype)


def forms_of(x):
    wide = np.asfortranarray(x.astype(np.float64))
    frozen = x.copy()
    frozen.flags.writeable = False
    return {
        "numpy": x,
        "float64 in Fortran order": wide,
        "big-endian": x.astype(">f4"),
        "reversed twice": np.ascontiguousarray(x[::-1])[::-1],
        "read-only": frozen,
        "lists": x.tolist(),
        "tuples of lists": tuple(x.tolist()),
        "list of float32": [list(row) for row in x],
        "long double": x.astype(np.longdouble),
    }


@pytest.mark.parametrize("form", forms_of(X))
def test_arrays_and_lists_are_answered_as_the_tensor_is(form):
    cascade, batch = linear(), forms_of(X)[form]
    model, alone = model_of(cascade), Adaptive.single(cascade, "b")
    right = model(torch.from_numpy(X))
    for found in (model(batch), model.watched(batch, mark=lambda *_: None)):
        assert torch.equal(found.log_probs, right.log_probs)
        assert found.stage.tolist() == right.stage.tolist()
    assert torch.equal(alone(batch).log_probs, alone(torch.from_numpy(X)).log_probs)
    assert torch.equal(cascade(batch), cascade(torch.from_numpy(X)))
    (streamed,) = [answer for _, answer in model.stream([batch], batch_size=1)][:1]
    assert torch.isfinite(streamed.log_probs).all()


def test_a_pandas_table_is_taken_by_position():
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame(X, index=range(10, 16))
    series = pd.Series(Y, index=range(20, 26))
    model = model_of(linear())
    assert torch.equal(model(table).log_probs, model(torch.from_numpy(X)).log_probs)
    found = arrays(table, series, ids=pd.Series(list("uvwxyz"), index=range(6)[::-1]))
    assert found.labels.tolist() == Y
    assert np.array_equal(found.inputs.numpy(), X)
    assert found.ids.tolist() == list("uvwxyz")
    assert arrays(X, pd.Series(Y, dtype="Int64")).labels.tolist() == Y
    with pytest.raises(InputError, match="labels must be whole numbers"):
        arrays(X, pd.Series([None, *Y[1:]], dtype="Int64"))
    with pytest.raises(InputError, match=r"inputs must be numbers, got an array of objects.*'p'"):
        arrays(pd.DataFrame({"x": [1.0] * 6, "y": list("pqpqpq")}), Y)


def test_categories_are_taken_by_the_names_of_the_classes():
    pd = pytest.importorskip("pandas")
    pets = pd.Categorical(["cat", "dog", "cat", "dog", "cat", "cat"], categories=["dog", "cat"])
    for labels in (pets, pd.Series(pets), list(pets)):
        with pytest.raises(InputError, match="labels are text, so class_names must name"):
            arrays(X, labels)
        found = arrays(X, labels, class_names=["cat", "dog"])  # not the categories' own order
        assert found.labels.tolist() == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("form", ["numpy", "big-endian", "reversed twice", "read-only", "lists"])
def test_a_data_set_and_a_recording_take_them_too(form):
    batch = forms_of(X)[form]
    examples = arrays(batch, Y)
    assert np.array_equal(examples.inputs.numpy(), X)
    cascade = linear()
    with pytest.warns(UserWarning, match="a step saves little"):
        trace = record(cascade, [(batch, Y)], progress=False)
    assert torch.equal(trace.logits, cascade(torch.from_numpy(X)).detach())


def test_mappings_and_tuples_of_arrays_become_those_of_tensors():
    class Sum(nn.Module):
        def forward(self, x, more):
            return x[:, :3] + more.float()

    cascade = Cascade.from_models({"a": Sum()})
    model = Adaptive(cascade, Candidate.single(cascade.topology, "a", reference="a"))
    more = np.arange(18).reshape(6, 3)
    right = model({"x": torch.from_numpy(X), "more": torch.from_numpy(more)}).log_probs
    for batch in (
        {"x": X, "more": more},
        {"x": X.tolist(), "more": torch.from_numpy(more)},
        (X, more),
        [torch.from_numpy(X), more],
    ):
        assert torch.equal(model(batch).log_probs, right)
    kept = {"x": torch.from_numpy(X)}
    assert as_batch(kept) is kept


def test_a_tensor_is_not_copied_and_keeps_its_type():
    x = torch.zeros(2, 4, dtype=torch.float64)
    assert as_batch(x) is x
    assert tensor_of("x", X).data_ptr() == X.ctypes.data


BAD = {
    "None": (None, "batch must be an array, a tensor or nested lists, got None"),
    "a text": ("abc", "batch must be numbers, got an array of <U3"),
    "a set": ({1.0, 2.0}, "batch must be an array, a tensor or nested lists, got set"),
    "rows of two lengths": ([[1.0], [1.0, 2.0]], "batch must be one array, got list of float"),
    "objects": (X.astype(object), "batch must be numbers, got an array of objects, such as"),
    "texts": ([["a", "b"]], "batch must be numbers, got an array of <U1"),
    "dates": (np.array(["2024-01-01"], dtype="M8[D]"), "batch must be numbers, got an array of da"),
    "complex": (X.astype(complex), "batch must be numbers, got an array of complex128"),
    "masked": (np.ma.masked_greater(X, 0), "batch must be whole, got an array with masked"),
    "a mapping of texts": ({"x": ["a"]}, r"batch\['x'\] must be numbers, got an array of <U1"),
    "one number": (3.0, "must have the examples along its first axis"),
    "no inputs": ((), "must have the examples along its first axis"),
}


@pytest.mark.parametrize("bad", BAD)
def test_anything_else_is_named_at_every_door_of_raw_input(bad):
    batch, message = BAD[bad]
    cascade = linear()
    for door in (
        model_of(cascade),
        Adaptive.single(cascade, "a"),
        lambda b: list(model_of(cascade).stream([b] if b is not None else [[None]])),
        lambda b: record(cascade, [(b, Y)], progress=False),
    ):
        with pytest.raises(InputError) as caught:
            door(batch)
        if batch is not None:
            assert caught.match(message)


def test_pictures_are_named():
    image = pytest.importorskip("PIL.Image")
    pictures = [image.new("RGB", (8, 8))] * 2
    for batch in (pictures, pictures[0], {"x": pictures}):
        with pytest.raises(InputError, match=r"pictures\. Turn each into a tensor of one size"):
            model_of(linear())(batch)
    with pytest.raises(InputError, match="inputs must be numbers, got list of Image: pictures"):
        arrays(pictures, [0, 1])


def test_types_of_numbers_that_do_not_fit_are_named_with_the_repair():
    half = Cascade.from_models({"a": conv(torch.bfloat16)}, transform=Normalize(1 / 255))
    pictures = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    said = r"Stage 'a' cannot run: its transform gives float32, and its weights are bfloat16"
    for door in (
        lambda: record(half, [(pictures, [0, 1])], progress=False),
        lambda: measure_flops(half, pictures),
        lambda: half(pictures),
        lambda: Adaptive(half, Candidate.single(half.topology, "a", reference="a"))(pictures),
    ):
        with pytest.raises(InputError, match=said):
            door()
    wide = torch.from_numpy(X).double()
    said = r"cannot run on float64: its weights are float32. Convert the inputs with \.to\(torch"
    for door in (
        lambda: record(linear(), [(wide, Y)], progress=False),
        lambda: model_of(linear())(wide),
    ):
        with pytest.raises(InputError, match=said):
            door()
    bytes_in = Cascade.from_models({"a": conv(torch.float32)})
    with pytest.raises(InputError, match=r"cannot run on uint8: .* Give transform=.*Normalize"):
        record(bytes_in, [(pictures, [0, 1])], progress=False)


def test_an_error_of_another_kind_stays_what_it_is():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes") as caught:
        linear()(torch.zeros(2, 5))
    assert not isinstance(caught.value, InputError)


def test_a_mapping_before_normalize_is_named():
    cascade = Cascade.from_models({"a": conv(torch.float32)}, transform=Normalize(1 / 255))
    batch = {"pixel_values": torch.zeros(2, 3, 8, 8)}
    with pytest.raises(InputError, match=r"Normalize takes one tensor, got a mapping of \['pixel"):
        record(cascade, [(batch, [0, 1])], progress=False)


def test_what_is_no_setting_is_named(tmp_path):
    cascade = linear()
    with pytest.raises(InputError, match=r"got Policy\. A policy alone does not say what"):
        save(Adaptive(cascade, policy_of(cascade)), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"choice must be a candidate, .* got str"):
        candidate_of("b")


@given(st.data())
def test_what_numpy_reads_comes_through_unchanged(data):
    kinds = [">f4", "<f8", "f2", "i1", ">i8", "u1", "u4", "?"]
    kind = np.dtype(data.draw(st.sampled_from(kinds)))
    rows, columns = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 3))
    whole = np.arange(rows * columns * 4).reshape(2 * rows, 2 * columns).astype(kind)
    steps = data.draw(st.tuples(st.sampled_from([1, -1, 2, -2]), st.sampled_from([1, -1, 2, -2])))
    view = whole[:: steps[0], :: steps[1]]
    if data.draw(st.booleans()):
        view = view.T
    view.flags.writeable = data.draw(st.booleans())
    assert np.array_equal(tensor_of("x", view).numpy(), view)
