"""Tensors of the Open Inference Protocol: exact both ways, and refused where they are not."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from offramp._core.errors import InputError
from offramp._core.open_inference import (
    DATATYPES,
    WireTensor,
    datatype_of,
    read_message,
    write_message,
)
from support.properties import examples

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)


def numbers(kind):
    dtype = DATATYPES[kind]
    finite = {"allow_nan": False, "allow_infinity": False} if kind.startswith("FP") else {}
    return hnp.arrays(dtype, SHAPES, elements=hnp.from_dtype(dtype, **finite))


def objects(values):
    held = np.empty(len(values), dtype=object)
    held[:] = values
    return held


texts = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4)
tensors = st.one_of(
    *(
        st.builds(lambda v, k=kind: WireTensor(name="x", datatype=k, values=v), numbers(kind))
        for kind in DATATYPES
        if kind != "BYTES"
    ),
    st.builds(
        lambda v: WireTensor(name="x", datatype="BYTES", values=objects([t.encode() for t in v])),
        texts,
    ),
)


@examples(200)
@given(tensor=tensors, binary=st.booleans(), side=st.sampled_from(["inputs", "outputs"]))
def test_what_is_written_is_read_again(tensor, binary, side):
    body, length = write_message({"id": "a"}, side, [tensor], binary=[binary])
    told, (found,) = read_message(body, None if length is None else str(length), side)
    assert told["id"] == "a"
    assert (found.name, found.datatype) == ("x", tensor.datatype)
    assert found.values.dtype == tensor.values.dtype
    np.testing.assert_array_equal(found.values, tensor.values)


def test_several_tensors_follow_each_other_json_and_binary():
    each = [
        WireTensor(name="a", datatype="INT64", values=np.array([1, -2])),
        WireTensor(name="b", datatype="BYTES", values=objects([b"\xff\x00", b""])),
        WireTensor(name="c", datatype="FP32", values=np.ones((2, 2), dtype="float32")),
    ]
    body, length = write_message({}, "inputs", each, binary=[False, True, True])
    _, found = read_message(body, str(length), "inputs")
    assert [one.values.tolist() for one in found] == [one.values.tolist() for one in each]


def test_what_is_not_finite_is_null_in_answers_and_refused_in_requests():
    x = WireTensor(name="x", datatype="FP32", values=np.array([1, np.nan], dtype="float32"))
    body, _ = write_message({}, "outputs", [x], binary=[False])
    assert json.loads(body)["outputs"][0]["data"] == [1.0, None]
    assert np.isnan(read_message(body, None, "outputs")[1][0].values[1])
    with pytest.raises(InputError, match="finite"):
        write_message({}, "inputs", [x], binary=[False])


def test_nested_data_is_the_same_as_flat():
    entry = {"name": "x", "datatype": "INT8", "shape": [2, 1, 2]}
    for data in ([1, 2, 3, 4], [[[1, 2]], [[3, 4]]]):
        body = json.dumps({"inputs": [{**entry, "data": data}]}).encode()
        assert read_message(body, None, "inputs")[1][0].values.tolist() == [[[1, 2]], [[3, 4]]]


def test_base64_stands_for_bytes_where_it_is_said():
    entry = {"name": "x", "datatype": "BYTES", "shape": [1], "data": ["/wA="]}
    entry["parameters"] = {"content_type": "base64"}
    body = json.dumps({"inputs": [entry]}).encode()
    assert read_message(body, None, "inputs")[1][0].values.tolist() == [b"\xff\x00"]


def entry(**changes):
    known = {"name": "x", "datatype": "UINT8", "shape": [2], "data": [1, 2]}
    return {key: value for key, value in {**known, **changes}.items() if value != "gone"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": [1, 2.0]}, r"must be whole numbers, as UINT8 says, got 2.0"),
        ({"data": [1, True]}, r"must be whole numbers, as UINT8 says, got True"),
        ({"data": [1, 256]}, r"must fit into UINT8, got 256"),
        ({"data": [1, -1]}, r"must fit into UINT8, got -1"),
        ({"data": [1, None]}, r"must be whole numbers"),
        ({"data": [1]}, r"must have 2 elements"),
        ({"data": [[1, 2]]}, r"nested as its shape"),
        ({"data": [[1], [2, 3]], "shape": [2, 2]}, r"nested as its shape"),
        ({"data": [1, [2]]}, r"must be whole numbers"),
        ({"data": "12"}, r"inputs\[0\].data must be a list, got a text"),
        ({"data": "gone"}, r"either 'data' or the parameter 'binary_data_size', got neither"),
        ({"parameters": {"binary_data_size": 2}}, r"got both"),
        ({"data": "gone", "parameters": {"binary_data_size": 2}}, r"must be in \[0, 0\]"),
        ({"parameters": {"shared_memory_region": "a"}}, r"shared memory"),
        ({"parameters": []}, r"parameters must be an object"),
        ({"datatype": "FP64", "data": ["1", 2]}, r"must be numbers"),
        ({"datatype": "FP32", "data": [1e39, 2]}, r"must fit into FP32, got 1e\+39"),
        ({"datatype": "FP16", "data": [70000, 2]}, r"must fit into FP16, got 70000"),
        ({"datatype": "FP32", "data": [10**400, 2]}, r"must fit into FP32"),
        ({"datatype": "INT64", "data": [2**63, 2]}, r"must fit into INT64"),
        ({"datatype": "BOOL"}, r"must be true or false"),
        ({"datatype": "BYTES"}, r"must be texts"),
        ({"datatype": "BYTES", "data": ["\ud800", ""]}, r"whole Unicode"),
        ({"datatype": "FLOAT"}, r"datatype must be one of BOOL"),
        ({"datatype": ["FP32"]}, r"datatype must be one of BOOL"),
        ({"shape": [2.0]}, r"shape must be a list of whole numbers"),
        ({"shape": [-2]}, r"shape must be a list of whole numbers"),
        ({"shape": [True, 2]}, r"shape must be a list of whole numbers"),
        ({"shape": 2}, r"shape must be a list of whole numbers"),
        ({"shape": [10**30, 10**30]}, r"must have 1"),
        ({"name": ""}, r"inputs\[0\].name must be a text"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, said):
    body = json.dumps({"inputs": [entry(**changes)]}).encode()
    with pytest.raises(InputError, match=said):
        read_message(body, None, "inputs")


@pytest.mark.parametrize(
    ("body", "length", "said"),
    [
        (b"", None, "must be JSON"),
        (b"\xff", None, "must be JSON"),
        (b"[]", None, "must be a JSON object, got a list"),
        (b"{}", None, "inputs must be a list"),
        (b'{"inputs": []}', None, "inputs must be a list"),
        (b'{"inputs": [1]}', None, r"inputs\[0\] must be an object, got a number"),
        (b'{"inputs": [NaN]}', None, "JSON has no NaN"),
        (b"[" * 100_000, None, "JSON"),
        (b"9" * 5000, None, "must be JSON"),
        (b"{}", "3", "a whole number of at most 2"),
        (b"{}", "-1", "a whole number"),
        (b"{}", "1e1", "a whole number"),
    ],
)
def test_what_is_no_message_is_refused(body, length, said):
    with pytest.raises(InputError, match=said):
        read_message(body, length, "inputs")


def binary_of(kind, shape, content):
    told = entry(datatype=kind, shape=shape, data="gone")
    told["parameters"] = {"binary_data_size": len(content)}
    head = json.dumps({"inputs": [told]}).encode()
    return head + content, str(len(head))


@pytest.mark.parametrize(
    ("kind", "shape", "content", "said"),
    [
        ("FP32", [2], b"1234", "must have 8 bytes"),
        ("BOOL", [1], b"\x02", "must hold 0 or 1"),
        ("BYTES", [1], b"\x05\x00\x00\x00abc", "each with its length"),
        ("BYTES", [2], b"\x01\x00\x00\x00a", "2 elements"),
        ("BYTES", [1], b"\x01\x00\x00\x00ab", "each with its length"),
        ("BYTES", [1], b"\x01\x00", "each with its length"),
        ("BYTES", [1], b"\xff\xff\xff\xff", "each with its length"),
    ],
)
def test_binary_tensors_of_another_size_are_refused(kind, shape, content, said):
    body, length = binary_of(kind, shape, content)
    with pytest.raises(InputError, match=said):
        read_message(body, length, "inputs")


def test_bytes_that_nobody_speaks_of_are_refused():
    body, length = binary_of("UINT8", [2], b"ab")
    with pytest.raises(InputError, match="1 bytes follow them"):
        read_message(body + b"x", length, "inputs")


def test_tensors_of_one_name_are_refused():
    body = json.dumps({"inputs": [entry(), entry()]}).encode()
    with pytest.raises(InputError, match=re.escape("different names, got ['x', 'x']")):
        read_message(body, None, "inputs")


def test_tensors_are_memory_of_their_own():
    body, length = binary_of("UINT8", [2], b"ab")
    values = read_message(body, length, "inputs")[1][0].values
    values[0] = 7
    assert body.endswith(b"ab")


def test_what_the_protocol_has_no_type_for_is_refused():
    assert datatype_of(np.zeros(1, dtype=">i4")) == "INT32"
    with pytest.raises(InputError, match="complex64"):
        datatype_of(np.zeros(1, dtype="complex64"))
