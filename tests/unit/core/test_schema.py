"""Records as JSON: what is written, what is read back, and how what does not fit is named."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
import torch

from offramp._core.errors import FileFormatError, InputError
from offramp._core.registry import Registry
from offramp._core.schema import As, FieldsOf, OneOf, from_json, omitted, stored, to_json
from offramp.bundle import Manifest
from offramp.evaluation import Frontier
from offramp.policy import Candidate
from offramp.trace.files import _Description

WRITTEN = json.loads(Path(__file__).with_name("records.json").read_text())


@dataclass(frozen=True)
class Part:
    sizes: tuple[int, ...]
    share: float = 1.0
    note: str = omitted("")

    def __post_init__(self):
        if self.share < 0:
            raise InputError(f"share must be at least 0, got {self.share}.")


@dataclass(frozen=True, kw_only=True)
class Whole:
    kind: Literal["whole"] = "whole"
    parts: Mapping[str, Part]
    best: Part | None = None
    row: Annotated[
        tuple[int, ...],
        As(str, lambda row: " ".join(map(str, row)), lambda text: tuple(map(int, text.split()))),
    ] = ()
    more: dict[str, float | int | str] = field(default_factory=dict)


@stored("circle", derived=("area",))
class Circle:
    def __init__(self, radius: float, name: str = "") -> None:
        self.radius, self.name = radius, name
        self.area = 3 * radius**2


@dataclass(frozen=True)
class Inner:
    outer: str
    size: int


@stored()
@dataclass(frozen=True)
class Outer:
    inner: Inner

    def __json__(self):
        return {"outer": self.inner.outer, "inner": to_json(self.inner, but="outer")}

    @classmethod
    def __from_json__(cls, *, outer: str, inner: Annotated[dict, FieldsOf(Inner, but="outer")]):
        return cls(Inner(outer, **inner))


def whole():
    part = Part((1, 2), 0.1, "x")
    return Whole(parts={"b": part, "a": Part(())}, best=part, row=(3, 4), more={"f": 2.0, "i": 2})


def test_a_record_survives_json_with_its_types_and_its_order():
    value = json.loads(json.dumps(to_json(whole())))
    assert value["row"] == "3 4"
    assert value["parts"]["a"] == {"sizes": [], "share": 1.0}
    again = from_json(Whole, value)
    assert again == whole()
    assert list(again.parts) == ["b", "a"]
    assert [type(v) for v in again.more.values()] == [float, int]


def test_tensors_and_numpy_numbers_are_written_to_the_last_digit():
    third = torch.tensor([1 / 3])
    assert torch.equal(torch.tensor(to_json({"x": third})["x"]), third)
    assert to_json([np.int64(3), np.float32(0.5)]) == [3, 0.5]
    with pytest.raises(TypeError, match="object is no record"):
        to_json({"x": object()})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v["parts"]["a"].pop("sizes"), r"parts\.a\.sizes: this field is missing"),
        (lambda v: v.update(size=3), "size: there is no such field"),
        (lambda v: v["best"].update(share="0.1"), r"best\.share: .* number, got '0.1'"),
        (lambda v: v["best"].update(share=-1), r"best: share must be at least 0, got -1\.0\.$"),
        (lambda v: v["best"].update(share=float("nan")), r"best\.share: .*finite number"),
        (lambda v: v["best"].update(sizes=[1.5]), r"best\.sizes\.0: .* integer"),
        (lambda v: v["best"].update(sizes=[True]), r"best\.sizes\.0: .* integer"),
        (lambda v: v.update(row="3 x"), "row: invalid literal"),
        (lambda v: v.update(kind="part"), "kind: Input should be 'whole', got 'part'"),
        (lambda v: v.update(parts=[]), r"parts: .*got \[\]"),
        (lambda v: v.update(parts={"x": {}}, best=3), r"parts\.x\.sizes: .*; best: "),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(change, said):
    value = to_json(whole())
    change(value)
    with pytest.raises(FileFormatError, match=rf"^a\.json has [12] problems? as a whole: .*{said}"):
        from_json(Whole, value, where="a.json")


@pytest.mark.parametrize("value", [3, None, [], "x", {}])
def test_other_values_are_no_record(value):
    with pytest.raises(FileFormatError, match=r"problems? as a whole"):
        from_json(Whole, value)


def test_deep_and_foreign_values_are_refused():
    deep: object = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(FileFormatError, match="nested too deeply"):
        from_json(Whole, {"parts": deep})
    with pytest.raises(FileFormatError, match="does not consist of JSON values"):
        from_json(Whole, {"parts": object()})


def test_a_class_is_written_as_its_arguments():
    value = to_json(Circle(2.0, "c"))
    assert value == {"kind": "circle", "radius": 2.0, "name": "c", "area": 12.0}
    assert from_json(Circle, {**value, "area": "for people"}).radius == 2.0
    with pytest.raises(FileFormatError, match="name: this field is missing"):
        from_json(Circle, {"kind": "circle", "radius": 1.0})


def test_a_registry_may_grow():
    shapes = Registry("shape", {"circle": Circle})
    shape = Annotated[object, OneOf(shapes)]

    @stored("dot")
    class Dot:
        pass

    assert isinstance(from_json(shape, to_json(Circle(1.0))), Circle)
    with pytest.raises(FileFormatError, match="kind must be one of 'circle', got 'dot'"):
        from_json(shape, {"kind": "dot"})
    shapes.add("dot", Dot)
    assert isinstance(from_json(shape, to_json(Dot())), Dot)


def test_a_field_can_stand_beside_its_record():
    value = to_json(Outer(Inner("o", 3)))
    assert value == {"outer": "o", "inner": {"size": 3}}
    assert from_json(Outer, value) == Outer(Inner("o", 3))


@pytest.mark.parametrize("k", range(len(WRITTEN["candidates"])))
def test_candidates_written_before_are_read_and_written_alike(k):
    assert to_json(from_json(Candidate, WRITTEN["candidates"][k])) == WRITTEN["candidates"][k]


@pytest.mark.parametrize(
    ("name", "kind"), [("frontier", Frontier), ("manifest", Manifest), ("trace", _Description)]
)
def test_records_written_before_are_read_and_written_alike(name, kind):
    assert to_json(from_json(kind, WRITTEN[name])) == WRITTEN[name]
