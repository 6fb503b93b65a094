"""Numbers that a transform cannot read: fractions where it reads bytes, and the reverse."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from offramp import Adaptive, Candidate, Cascade
from offramp._core.batch import RowList
from offramp._core.errors import InputError
from offramp._core.schema import from_json, to_json
from offramp.stages import Columns, Decode, Normalize, Resize, Stage, Transform
from offramp.stages.transforms import Look, domain_of

BYTES = Normalize(1 / 255, [0.5] * 3, [0.2] * 3)
FRACTIONS = Normalize(1.0, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
PICTURE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def run(transform, given):
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    stage = Stage("a", net, transform=transform)
    return stage.run(given)[0].logits


@pytest.mark.parametrize(
    ("transform", "domain"),
    [
        (BYTES, (0.0, 255.0)),
        (Normalize(1 / 128, 127 / 128), (0.0, 255.0)),
        (Normalize(1 / 127.5, 1.0), (0.0, 255.0)),
        (Normalize(1.0, [123.7, 116.3, 103.5], [58.4, 57.1, 57.4]), (0.0, 255.0)),
        (FRACTIONS, (0.0, 1.0)),
        (Normalize(1.0, 0.5, 0.5), (0.0, 1.0)),
        (Normalize(), None),
        (Normalize(1 / 16), None),
        (Normalize(1.0, 0.0, 0.5), None),
        (Normalize(1.0, 3.0, 2.0), None),
        (Normalize(1 / 16, domain=(0, 16)), (0.0, 16.0)),
        (Normalize(1 / 255, domain="any"), None),
        (nn.Identity(), None),
        (Stage("a", nn.Flatten(), transform=[Resize(8), BYTES]).transform, (0.0, 255.0)),
        (Stage("a", nn.Flatten(), transform=[Columns("x"), BYTES]).transform, (0.0, 255.0)),
        (Stage("a", nn.Flatten(), transform=[nn.Identity(), BYTES]).transform, None),
        (None, None),
    ],
)
def test_a_transform_says_the_domain_of_what_it_reads(transform, domain):
    assert domain_of(transform) == domain


def test_a_domain_is_stored_where_it_was_said():
    said = Normalize(1 / 16, domain=[0, 16])
    assert to_json(said)["domain"] == [0.0, 16.0]
    assert from_json(Transform, to_json(said)).domain == (0.0, 16.0)
    assert from_json(Transform, to_json(Normalize(domain="any"))).domain is None
    assert "domain" not in to_json(BYTES)
    assert repr(said).endswith("domain=(0.0, 16.0))")
    for bad in ((1, 0), (0, math.inf), (0,), "bytes", ("a", 1)):
        with pytest.raises(InputError, match="domain must be"):
            Normalize(domain=bad)


@pytest.mark.parametrize(
    ("transform", "given"),
    [
        (BYTES, PICTURE),
        (BYTES, PICTURE.half()),
        (BYTES, PICTURE * 2 - 1),
        (BYTES, (PICTURE - 0.45) / 0.22),  # prepared already
        (BYTES, (PICTURE > 0.5).float()),
        (BYTES, PICTURE * 65535),
        (BYTES, (PICTURE * 32767).to(torch.int16)),
        ([Resize(8), BYTES], PICTURE),
        ([Columns("x"), Resize(8), BYTES], {"x": PICTURE}),
        ([Resize(8), BYTES], RowList(PICTURE)),
        (BYTES, PICTURE > 0.5),
        (BYTES, (PICTURE > 0.5).long()),
        (BYTES, (PICTURE > 0.5).to(torch.int8)),
        (BYTES, (PICTURE > 0.5).to(torch.uint16)),
        (BYTES, (PICTURE > 2).index_fill(3, torch.tensor([0]), True)),  # one column is white
        ([Resize(8), BYTES], PICTURE > 0.5),
        ([Resize(8), BYTES], RowList(PICTURE > 0.5)),
        ([Columns("x"), BYTES], {"x": (PICTURE > 0.5).int()}),
        (Normalize(1 / 16, domain=(0, 16)), PICTURE),
        (Normalize(1 / 16, domain=(0, 16)), (PICTURE > 0.5).to(torch.uint8)),
        (FRACTIONS, PICTURE * 255),
        (FRACTIONS, (PICTURE * 255).long()),
        (FRACTIONS, (PICTURE * 255).to(torch.uint8)),
        (FRACTIONS, (PICTURE - 0.45) / 0.22),
    ],
)
def test_numbers_of_another_domain_are_refused(transform, given):
    with pytest.raises(InputError, match=r"must hold numbers in \[0, .*stage 'a' reads, got .* in"):
        run(transform, given)


def dark(mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (8, 8), 1 if mode == "L" else (1, 0, 1)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("transform", "given"),
    [
        (BYTES, (PICTURE * 255).to(torch.uint8)),
        (BYTES, (PICTURE * 2).to(torch.uint8)),  # a dark picture of bytes
        (BYTES, (PICTURE * 3).to(torch.int64)),
        (BYTES, PICTURE > 2),  # all black
        (BYTES, PICTURE * 255),
        (BYTES, PICTURE * 255 - 20),  # resampling overshoots
        (BYTES, PICTURE * 6),  # dark
        (BYTES, (PICTURE * 3.4).round()),  # darker, and in whole steps
        (BYTES, torch.zeros(2, 3, 8, 8)),
        (BYTES, torch.full((2, 3, 8, 8), math.nan)),
        ([Decode(), Resize(8), BYTES], RowList([dark(), dark()])),
        ([Resize(8), BYTES], RowList([Image.new("RGB", (9, 9), (1, 1, 1))])),
        (FRACTIONS, PICTURE),
        (FRACTIONS, PICTURE * 1.2 - 0.1),
        (FRACTIONS, (PICTURE > 0.5).to(torch.uint8)),
        (FRACTIONS, PICTURE > 0.5),
        (FRACTIONS, (PICTURE > 0.5).long()),
        (Normalize(1 / 255, domain="any"), PICTURE > 0.5),
        (Normalize(1 / 255, domain="any"), PICTURE),
    ],
)
def test_pictures_of_the_domain_are_read_however_dark_they_are(transform, given):
    assert run(transform, given).shape[1] == 2


def test_rows_of_a_table_are_no_pictures():
    Look("stage 'a'")(FRACTIONS, torch.full((4, 3), 100.0))


def test_only_the_first_numbers_of_each_type_are_looked_at():
    look = Look("stage 'a'")
    look(BYTES, torch.zeros(1, 3, 2, 2))  # says nothing
    with pytest.raises(InputError, match=r"got float32 in \[0\.\d+, 0\.\d+\]. Hand over bytes"):
        look(BYTES, PICTURE)
    look(BYTES, PICTURE * 255)
    look(BYTES, PICTURE)
    with pytest.raises(InputError, match="float64"):
        look(BYTES, PICTURE.double())
    with pytest.raises(InputError, match="float32"):
        look(BYTES, PICTURE, again=True)


def test_a_model_that_refuses_pictures_answers_the_right_ones():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    cascade = Cascade.from_models({"a": net}, transform=BYTES)
    model = Adaptive(cascade, Candidate.single(cascade.topology, "a", reference="a"))
    for given in (PICTURE[:1], PICTURE, PICTURE.numpy()):
        with pytest.raises(InputError, match="stage 'a' reads"):
            model(given)
    assert (
        model((PICTURE * 255).to(torch.uint8)).labels.tolist()
        == model(np.asarray(PICTURE * 255)).labels.tolist()
    )


@pytest.mark.parametrize("steps", [[Resize(8)], [Decode()], [Columns("x"), Decode(), Resize(8)]])
@pytest.mark.parametrize("form", ["image", "file", "array"])
def test_images_and_files_are_refused_where_fractions_are_read(steps, form):
    image = Image.new("RGB", (8, 8), "white")
    file = io.BytesIO()
    image.save(file, "PNG")
    row = {"image": image, "file": file.getvalue(), "array": np.asarray(image)}[form]
    rows = [row, row]
    given = {"x": rows} if isinstance(steps[0], Columns) else RowList(rows)
    with pytest.raises(InputError, match=r"must hold numbers in \[0, 1\], .* got uint8 in"):
        run([*steps, FRACTIONS], given)
    assert run([*steps, BYTES], given).shape == (2, 2)
    said = Normalize(1.0, [0.5] * 3, [0.2] * 3, domain="any")
    assert run([*steps, said], given).shape == (2, 2)


def test_a_black_image_says_nothing_and_the_next_is_looked_at():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    stage = Stage("a", net, transform=[Decode(), FRACTIONS])
    stage.run(RowList([Image.new("RGB", (8, 8))]))
    with pytest.raises(InputError, match="got uint8 in"):
        stage.run(RowList([Image.new("RGB", (8, 8), "white")]))


def test_counts_of_a_few_things_may_all_be_one():
    Look("stage 'a'")(Normalize(1 / 10, domain=(0, 10)), torch.ones(2, 5, dtype=torch.int64))


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_numbers_that_are_not_finite_hide_no_others(odd):
    given = torch.full((3, 3, 8, 8), 0.5)
    given[1] = odd
    with pytest.raises(InputError, match=r"must hold numbers in \[0, 255\]"):
        Look("stage 'a'")(BYTES, given)
