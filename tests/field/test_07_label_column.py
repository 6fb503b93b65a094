"""Labels as a column (n, 1) or one-hot (n, c) made every accuracy 1.0; every door refuses them."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from offramp import Cascade, record
from offramp._core.checks import check_labels
from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp.data import Dataset, arrays, npz
from offramp.trace import Trace, from_logits, from_npz, from_parquet, from_predictions
from offramp.trace import from_probabilities as from_proba

N, C = 30, 3
RNG = np.random.default_rng(0)
Y = RNG.integers(0, C, N)
Z = RNG.standard_normal((N, C)).astype(np.float32)
P = np.full((N, C), 1 / C)
PRICED = {"costs": {"a": 1.0, "b": 3.0}, "unit": "x"}
WRONG = {
    "a column": (Y[:, None], r"got shape \(30, 1\); of a column take labels\[:, 0\]"),
    "one-hot": (np.eye(C)[Y], r"got shape \(30, 3\); of one-hot labels take labels\.argmax\(1\)"),
    "one number": (np.int64(1), r"got shape \(\)"),
    "not whole": (Y + 0.5, r"labels must be whole numbers, got \d\.5"),
    "NaN": (np.where(Y == 0, np.nan, Y), "labels must be whole numbers, got nan"),
    "truth values": (Y > 0, "labels must be integers, got truth values"),
    "negative": (Y - 1, r"labels must be in \[0, 3\), got -1 for example"),
    "beyond the classes": (Y + 1, r"labels must be in \[0, 3\), got 3 for example"),
    "objects": (np.array([None, *Y[1:]], dtype=object), "whole numbers, or text.*such as None"),
    "names without classes": (np.array(["cat"] * N), "labels are text, so class_names must name"),
    "nothing": (None, "labels must be an array, a tensor or nested lists, got None"),
}


def trace_class(labels):
    return inspect.unwrap(Trace.__init__)(  # the type checker of the tests would be first
        object.__new__(Trace),
        topology=Topology.of(["a", "b"]),
        labels=labels,
        classes=C,
        costs=Costs.simple("x", [1.0, 3.0]),
        logits=torch.zeros(N, 2, C),
        ids=np.arange(N),
    )


def from_file(labels, tmp_path):
    np.savez(tmp_path / "a.npz", labels=labels, a=Z, b=Z)
    return from_npz(tmp_path / "a.npz", logits={"a": "a", "b": "b"}, **PRICED)


def recorded(labels):
    cascade = Cascade.from_models({"a": nn.Linear(2, C)})
    return record(cascade, [(torch.zeros(N, 2), labels)], progress=False)


def npz_of(labels, tmp_path):
    np.savez(tmp_path / "b.npz", x=np.zeros((N, 2)), y=labels)
    return npz(tmp_path / "b.npz", inputs="x", labels="y", class_names=["p", "q", "r"])


DOORS = {
    "from_logits": lambda y, _: from_logits({"a": Z, "b": Z}, y, **PRICED),
    "from_probabilities": lambda y, _: from_proba(dict.fromkeys("ab", P), y, **PRICED),
    "from_predictions": lambda y, _: from_predictions({"a": Y, "b": Y}, y, classes=C, **PRICED),
    "from_npz": from_file,
    "Trace": lambda y, _: trace_class(y),
    "record": lambda y, _: recorded(y),
    "arrays": lambda y, _: arrays(np.zeros((N, 2)), y, class_names=["p", "q", "r"]),
    "npz": npz_of,
    "Dataset": lambda y, _: inspect.unwrap(Dataset.__init__)(
        object.__new__(Dataset),
        inputs=torch.zeros(N, 2),
        labels=y,
        class_names=("p", "q", "r"),
        ids=np.arange(N),
    ),
}
NAMED = ("arrays", "npz")  # these know the classes by name, so a text may be one of them
STORED = ("from_npz", "npz")  # a file holds no objects and no None
SIZED = ("Trace", "Dataset")  # these ask for the length first


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_such_labels_and_says_what_they_are(door, wrong, tmp_path):
    labels, message = WRONG[wrong]
    if wrong in ("objects", "nothing") and door in STORED:
        pytest.skip("a file cannot hold it")
    if wrong in ("one number", "nothing") and door in SIZED:
        pytest.skip("it has no length")
    if wrong == "names without classes" and door in NAMED:
        message = "labels must be names out of class_names, got 'cat' for example 0"
    with pytest.raises(InputError, match=message):
        DOORS[door](labels, tmp_path)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64", ">i8"])
def test_whole_numbers_of_any_type_are_taken(door, dtype, tmp_path):
    DOORS[door](Y.astype(dtype), tmp_path)


def test_a_column_of_parquet_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = {"label": [[int(k)] for k in Y], "a": list(Z), "b": list(Z)}
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"shape \(30, 1\); of a column"):
        from_parquet(tmp_path / "a.parquet", logits={"a": "a", "b": "b"}, **PRICED)


def test_labels_in_a_trace_are_those_given_and_not_shared():
    labels = Y.copy()
    trace = from_logits({"a": Z, "b": Z}, labels, **PRICED)
    labels[:] = 0
    assert trace.labels.tolist() == Y.tolist()
    assert trace.accuracy(0) == pytest.approx((Z.argmax(1) == Y).mean())


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=20),
    st.sampled_from(["int8", "uint16", "float32", ">i2", "list", "tensor", "names", "reversed"]),
)
def test_labels_come_through_as_they_were_given(values, form):
    names = ["p", "q", "r", "s", "t"]
    given_as = {
        "list": lambda: values,
        "tensor": lambda: torch.tensor(values),
        "names": lambda: [names[k] for k in values],
        "reversed": lambda: np.array(values[::-1])[::-1],
    }.get(form, lambda: np.array(values, dtype=form))
    assert check_labels(given_as(), 5, class_names=names).tolist() == values
