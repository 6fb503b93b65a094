"""Recording: one pass, checked, resumable, whole or not at all."""

import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp.data import arrays
from offramp.recording import record
from offramp.stages import Cascade, Stage
from offramp.trace import load_trace

N, C = 23, 3
COSTS = Costs.simple("usd", [1.0, 4.0])
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, 4, generator=GENERATOR)
Y = torch.arange(N) % C


def network(seed):
    layer = nn.Linear(4, C)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(C, 4, generator=generator))
        layer.bias.zero_()
    return layer


def cascade(large=2):
    return Cascade.from_models({"small": network(1), "large": network(large)})


def batches(size=5, *, ids=None, x=X, y=Y):
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        yield (x[part], y[part]) if ids is None else (x[part], y[part], ids[part])


def go(loader, model=None, **options):
    return record(model or cascade(), loader, **{"costs": COSTS, "progress": False, **options})


def equal(one, two):
    assert torch.equal(one.logits, two.logits)
    assert torch.equal(one.labels, two.labels)
    assert one.ids.tolist() == two.ids.tolist()
    assert (one.split is None) == (two.split is None)
    assert one.split is None or torch.equal(one.split.long(), two.split.long())
    assert (one.topology, one.costs, one.classes) == (two.topology, two.costs, two.classes)


def test_every_stage_is_recorded_on_every_example_in_order():
    model = cascade()
    trace = go(batches(), model)
    for k, stage in enumerate(model):
        torch.testing.assert_close(trace.logits[:, k], stage.module(X).detach())
    assert torch.equal(trace.labels, Y)
    assert trace.ids.tolist() == list(range(N))
    assert trace.costs is COSTS
    assert trace.stages == ("small", "large")


@pytest.mark.parametrize("size", [1, 7, N, 100])
def test_neither_batch_size_nor_path_change_the_trace(tmp_path, size):
    reference = go(batches(5))
    other = go(batches(size), path=tmp_path / "t.trace")
    torch.testing.assert_close(reference.logits, other.logits)
    assert torch.equal(reference.labels, other.labels)
    equal(other, load_trace(tmp_path / "t.trace", verify=True))
    assert [p.name for p in tmp_path.iterdir()] == ["t.trace"]


def test_recorded_logits_can_be_trained_on():
    trace = go(batches())
    scale = torch.ones(1, requires_grad=True)
    (trace.logits * scale).sum().backward()  # fails for tensors made in inference mode
    assert torch.isfinite(scale.grad).all()


def test_modes_are_restored_and_dropout_is_off_meanwhile():
    network_ = nn.Sequential(nn.Linear(4, C), nn.Dropout(0.5)).eval()
    model = Cascade.from_models({"a": network_})
    network_.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace = go(batches(), model, costs=Costs.simple("usd", [1.0]))
    assert network_[1].training
    torch.testing.assert_close(trace.logits[:, 0], network_[0](X).detach())


def test_carries_are_shared_within_a_batch():
    class Body(nn.Linear):
        calls = 0

        def forward(self, x):
            Body.calls += 1
            return super().forward(x)

    model = Cascade(
        [
            Stage("a", Body(4, 6), head=nn.Linear(6, C)),
            Stage("b", nn.Linear(6, 6), head=nn.Linear(6, C), source="a"),
        ]
    )
    for stage in model:
        stage.keeps_company = True  # so that nothing runs to find it out
    go(batches(5), model)
    assert Body.calls == 5


def test_mappings_and_given_ids_are_recorded():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = network(1)

        def forward(self, x, shift):
            return self.layer(x + shift)

    model = Cascade.from_models({"a": Named()})
    names = [f"file {k}" for k in range(N)]
    loader = [({"x": x, "shift": torch.ones(len(x), 1)}, y, i) for x, y, i in batches(5, ids=names)]
    trace = go(loader, model, costs=Costs.simple("usd", [1.0]))
    assert trace.ids.tolist() == names
    torch.testing.assert_close(trace.logits[:, 0], network(1)(X + 1).detach())


def test_costs_are_counted_by_default():
    model = Cascade.from_models({"small": nn.Linear(4, C)})
    trace = record(model, batches(), progress=False)
    assert trace.costs.unit == "flops"
    assert trace.costs.segment == (2.0 * 4 * C,)


def test_costs_in_other_units_go_along(tmp_path):
    seconds = Costs.simple("seconds", [0.5] * len(cascade()), note="measured")
    for path in (None, tmp_path / "t.trace"):
        assert go(batches(), path=path, other_costs=[seconds]).other_costs == (seconds,)
    with pytest.raises(InputError, match=r"costs must have one entry per stage \(\d\), got 9"):
        go(batches(), other_costs=[Costs.simple("seconds", [0.5] * 9)])


def test_float16_is_marked_lossy(tmp_path):
    for path in (None, tmp_path / "t.trace"):
        trace = go(batches(), path=path, dtype="float16")
        assert trace.lossy
        assert trace.logits.dtype == torch.float16
        torch.testing.assert_close(trace.logits.float(), go(batches()).logits, rtol=1e-3, atol=1e-3)


def test_a_data_set_gives_loader_ids_splits_and_class_names(tmp_path):
    examples = arrays(X, Y, class_names=("a", "b", "c"), ids=np.array([f"e{k}" for k in range(N)]))
    examples = examples.split_into({"fit": 12, "test": 11}, seed=0)
    direct = go(examples, batch_size=4)
    by_loader = go(examples.loader(6), path=tmp_path / "t.trace")
    assert direct.ids.tolist() == by_loader.ids.tolist() == examples.ids.tolist()
    for trace in (direct, by_loader):
        assert torch.equal(trace.split, examples.split)
        assert trace.class_names == ("a", "b", "c")
    with pytest.raises(InputError, match=r"split must be left out.* got 'fit'"):
        go(examples, split="fit")


def test_one_split_for_all():
    assert go(batches(), split="calibrate").split.tolist() == [2] * N
    assert go(batches()).split is None


class WithSplit(TensorDataset):
    split = np.arange(N) % 4


def test_splits_of_a_torch_data_set_follow_its_order():
    data = WithSplit(X, Y)
    assert go(DataLoader(data, batch_size=4)).split.tolist() == (np.arange(N) % 4).tolist()
    with pytest.raises(InputError, match="do not shuffle"):
        go(DataLoader(data, batch_size=4, shuffle=True))
    with pytest.raises(InputError, match=rf"\({N} examples\) do not belong to the 20 recorded"):
        go(DataLoader(data, batch_size=4, drop_last=True))


@pytest.mark.parametrize("where", ["memory", "path"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_is_named_by_example_and_stage(tmp_path, where, bad):
    class Broken(nn.Module):
        def forward(self, x):
            return torch.where(x[:, :1] == X[13, 0], bad, x[:, :C])

    model = Cascade.from_models({"small": network(1), "large": Broken()})
    path = None if where == "memory" else tmp_path / "t.trace"
    names = [f"img{k}" for k in range(N)]
    with pytest.raises(InputError, match=r"NaN or infinity for example .*img13.*, stage 'large'"):
        go(batches(5, ids=names), model, path=path)
    assert not (tmp_path / "t.trace").exists()


@pytest.mark.parametrize("label", [C, -1])
def test_a_label_outside_the_classes_is_named(label):
    y = Y.clone()
    y[17] = label
    with pytest.raises(InputError, match=rf"labels must be in \[0, 3\), got {label} for .*17"):
        go(batches(y=y))


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "at least one example, got none"),
        ([(X[:0], Y[:0])], "at least one example, got none"),
        ([X], r"must give \(inputs, labels\).* got Tensor"),
        ([(X,)], "got tuple of length 1"),
        ([(X, Y[:5])], rf"got {N} inputs, labels of shape \(5,\)"),
        ([(X, Y, [0])], r"ids of shape \(1,\)"),
        ([(X, Y, np.zeros(N))], "ids must be integers or text, got an array of float64"),
        ([(X, Y.float() + 0.5)], "labels must be whole numbers"),
        ([(X, Y, [7] * N)], r"ids must be unique, got .*7.* 23 times"),
    ],
)
@pytest.mark.parametrize("where", ["memory", "path"])
def test_a_loader_of_another_form_is_refused(tmp_path, loader, message, where):
    with pytest.raises(InputError, match=message):
        go(loader, path=None if where == "memory" else tmp_path / "t.trace")
    assert not (tmp_path / "t.trace").exists()


def test_stages_with_different_classes_are_named():
    model = Cascade.from_models({"small": nn.Linear(4, 3), "large": nn.Linear(4, 5)})
    with pytest.raises(InputError, match="'small' gives 3, 'large' gives 5"):
        go(batches(), model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"costs": "joules"}, "costs must be 'flops' or a table, got 'joules'"),
        ({"costs": Costs.simple("usd", [1.0])}, r"one entry per stage \(2\), got 1"),
        ({"class_names": ["a"]}, "class_names must have 3 entries, got 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused_with_their_value(options, message):
    with pytest.raises(InputError, match=message):
        go(batches(), **options)


def test_memory_does_not_grow_with_the_number_of_examples(tmp_path):
    classes, size, count = 500, 100, 60
    rows = torch.zeros(size, 4)
    model = Cascade.from_models({"small": nn.Linear(4, classes), "large": nn.Linear(4, classes)})

    def loader():
        return ((rows, torch.zeros(size, dtype=torch.int64)) for _ in range(count))

    def peak(path):
        tracemalloc.start()
        try:
            trace = go(loader(), model, path=path)
            assert len(trace) == size * count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    whole = 4 * size * count * 2 * classes
    assert peak(None) > whole  # the measurement sees what is kept
    assert peak(tmp_path / "t.trace") < whole / 2


def test_a_bar_is_shown_without_disturbing_the_output(capsys):
    go(batches(), progress=True)
    assert capsys.readouterr().out == ""


NAMED = Cascade.from_models({"a": Stage("a", network(1), class_names=("cat", "dog", "eel"))})


@pytest.mark.parametrize("names", [("dog", "cat", "eel"), ("dog", "eel", "cat"), ("eel", "dog")])
def test_a_data_set_with_the_classes_in_another_order_is_refused(names):
    data = arrays(X, Y.clamp(max=len(names) - 1), class_names=names)
    with pytest.raises(InputError, match=r"'cat', 'dog', 'eel'.* of the cascade and") as caught:
        go(data, NAMED, costs=Costs.simple("usd", [1.0]))
    assert str(list(names)) in str(caught.value)


def test_given_class_names_in_another_order_are_refused():
    costs = Costs.simple("usd", [1.0])
    with pytest.raises(InputError, match=r"'eel', 'dog', 'cat'.* of class_names and"):
        go(batches(), NAMED, costs=costs, class_names=["eel", "dog", "cat"])
    with pytest.raises(InputError, match=r"of class_names and .* of the data set"):
        go(arrays(X, Y, class_names=["a", "b", "c"]), class_names=["b", "a", "c"])


def test_names_that_do_not_contradict_each_other_are_taken():
    costs, data = Costs.simple("usd", [1.0]), arrays(X, Y, class_names=["cat", "dog", "eel"])
    assert go(data, NAMED, costs=costs).class_names == ("cat", "dog", "eel")
    other = arrays(X, Y, class_names=["Katze", "Hund", "Aal"])
    assert go(other, NAMED, costs=costs).class_names == ("cat", "dog", "eel")
    turned = arrays(X, Y, class_names=["dog", "cat", "eel"])
    assert go(turned, NAMED, costs=costs, class_names=[]).class_names == ()


@pytest.mark.parametrize("given", [None, ["a", "b", "c"]])
def test_labels_may_be_the_names_of_the_classes(given, tmp_path):
    names = ["a", "b", "c"]
    of_names = Cascade.from_models(
        {"small": network(1), "large": network(2)}, class_names=() if given else names
    )
    told = {"class_names": given, "costs": COSTS, "progress": False}
    for path in (None, tmp_path / "it.trace"):
        trace = record(of_names, [(X, [names[k] for k in Y])], path=path, **told)
        assert trace.labels.tolist() == Y.tolist()
        assert list(trace.class_names) == names
    with pytest.raises(InputError, match="'d'"):
        record(of_names, [(X[:2], ["a", "d"])], **told)
