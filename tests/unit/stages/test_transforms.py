"""Transforms: what each makes of its rows, and what it refuses."""

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from offramp._core import picture
from offramp._core.batch import RowList, as_rows
from offramp._core.errors import FileFormatError, InputError, UnknownNameError
from offramp._core.schema import from_json, to_json
from offramp.stages import (
    Chain,
    Columns,
    Decode,
    Normalize,
    Pad,
    Resize,
    Stage,
    Transform,
    chained,
)

pd = pytest.importorskip("pandas")


def photo(width=7, height=5, mode="RGB", seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def as_bytes(image, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# ---- decode


def test_bytes_and_images_are_decoded_alike():
    image = photo()
    wanted = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    rows = [as_bytes(image), image, np.array(image), bytearray(as_bytes(image, "BMP"))]
    found = Decode()(as_rows(rows))
    assert found.dtype == torch.uint8
    assert all(torch.equal(one, wanted) for one in found)


def test_images_of_several_sizes_stay_a_list():
    found = Decode()([photo(), photo(8, 8)])
    assert isinstance(found, RowList)
    assert [tuple(one.shape) for one in found] == [(3, 5, 7), (3, 8, 8)]


def test_one_channel_is_brightness():
    assert Decode("L")([photo()]).shape == (1, 1, 5, 7)
    assert torch.equal(
        Decode("L")([photo(mode="L")])[0, 0], torch.from_numpy(np.array(photo(mode="L")))
    )


def test_images_are_turned_as_they_say_unless_that_is_not_wanted():
    image = photo()
    exif = Image.Exif()
    exif[0x0112] = 6
    content = as_bytes(image, "PNG", exif=exif)
    assert Decode()([content]).shape == (1, 3, 7, 5)
    assert Decode()([Image.open(BytesIO(content))]).shape == (1, 3, 7, 5)
    assert Decode(orient=False)([content]).shape == (1, 3, 5, 7)


def test_pixels_of_16_bits_are_scaled_not_clipped():
    wide = Image.fromarray(np.full((2, 2), 32768, dtype=np.uint16))
    assert Decode()([as_bytes(wide)]).unique().tolist() == [128]


def test_what_is_no_image_is_named_by_its_row(monkeypatch):
    with pytest.raises(FileFormatError, match="Row 1: This cannot be read as an image"):
        Decode()([photo(), b"no image"])
    with pytest.raises(InputError, match=r"Row 1 must be the bytes .* got str\. Read files with"):
        Decode()([photo(), "photo.png"])
    with pytest.raises(InputError, match="takes a list of bytes or images, got Tensor"):
        Decode()(torch.zeros(1, 3, 4, 4))
    monkeypatch.setattr(picture, "MOST_PIXELS", 30)
    with pytest.raises(FileFormatError, match="35 pixels, and at most 30"):
        Decode()([photo()])
    with pytest.raises(InputError, match="mode must be one of"):
        Decode("CMYK")


def test_a_format_that_starts_programs_is_not_decoded_even_if_somebody_opened_it():
    image = photo()
    image.format = "EPS"
    with pytest.raises(FileFormatError, match="its format must be one of JPEG"):
        Decode()([image])


# ---- resize


def pillow(image, wide, high, how):
    return torch.from_numpy(np.array(image.resize((wide, high), how))).permute(2, 0, 1).float()


@pytest.mark.parametrize("size", [(6, 9), (24, 30)])
@pytest.mark.parametrize("how", ["bilinear", "bicubic", "nearest"])
def test_resizing_is_that_of_pillow_without_its_rounding(size, how):
    image = photo(17, 12)
    wanted = pillow(image, size[1], size[0], Image.Resampling[how.upper()])
    found = Resize(size, interpolation=how)([image])
    assert found.dtype == torch.float32
    apart = (found[0] - wanted).abs()
    if how == "bicubic":  # Pillow clips what overshoots twice, in the middle as well
        assert apart.mean() < 0.6
    else:
        assert apart.max() <= (0 if how == "nearest" else 1.0)
    same = Resize(size, interpolation=how)(Decode()([image]))
    assert torch.equal(same, found)


def test_without_antialias_only_the_nearest_pixels_count():
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 0, 0] = 1.0
    assert Resize(3, antialias=False)(x).max() == 0.0
    assert Resize(3)(x).max() > 0.0


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"size": 6}, (6, 8)),  # 12 x 17: rounded down
        ({"size": 6, "crop": 4}, (4, 4)),
        ({"size": 6, "crop": (4, 5)}, (4, 5)),
        ({"size": 6, "crop_pct": 0.5}, (6, 6)),
        ({"size": (6, 5)}, (6, 5)),
        ({"size": (6, 5), "crop_pct": 0.5}, (6, 5)),
        ({"size": (8, 8), "crop": (6, 5)}, (6, 5)),
    ],
)
def test_sizes_are_those_asked_for(arguments, shape):
    assert Resize(**arguments)(torch.zeros(2, 3, 12, 17)).shape[2:] == shape
    upright = Resize(**arguments)(torch.zeros(2, 3, 17, 12)).shape[2:]
    assert upright == (
        shape[::-1] if list(arguments) == ["size"] and arguments["size"] == 6 else shape
    )


def test_what_is_cut_is_the_middle():
    x = torch.arange(8.0).expand(1, 1, 8, 8)
    assert Resize(8, crop=2)(x)[0, 0, 0].tolist() == [3.0, 4.0]


def test_images_of_several_sizes_become_one_batch_or_are_refused():
    rows = [photo(), photo(9, 9), torch.zeros(3, 4, 6, dtype=torch.uint8)]
    assert Resize(4, crop_pct=0.9)(RowList(rows[:2])).shape == (2, 3, 4, 4)
    assert Resize((4, 4))(RowList(rows[2:])).shape == (1, 3, 4, 4)
    with pytest.raises(InputError, match=r"must have one size in the end.*Give crop"):
        Resize(4)(RowList(rows[:2]))
    with pytest.raises(InputError, match=r"images \(m, channels, height, width\), got \(3, 4\)"):
        Resize(4)(torch.zeros(3, 4))
    with pytest.raises(InputError, match="Resize takes images, got dict"):
        Resize(4)({"image": torch.zeros(1, 3, 4, 4)})
    assert Resize(4, crop_pct=0.9)(RowList()).shape == (0, 3, 4, 4)


def test_a_thin_image_is_not_scaled_whole():
    thin = torch.zeros(1, 1, 1, 60_000, dtype=torch.uint8)  # whole it would take 7 GB
    assert Resize(180, crop_pct=0.9)(thin).shape == (1, 1, 180, 180)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be an integer of at least 1"),
        ({"size": (1, 2, 3)}, r"size must be one number or \(height, width\)"),
        ({"size": 4, "crop": 5}, r"crop must be at most size \(4\), got 5"),
        ({"size": 4, "crop_pct": 1.5}, r"crop_pct must be in \(0, 1\]"),
        ({"size": 4, "crop": 4, "crop_pct": 0.5}, "crop left out where it is given"),
        ({"size": 4, "interpolation": "cubic"}, "Did you mean 'bicubic'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Resize(**arguments)


# ---- columns


ROWS = [{"age": 30, "size": 1.5, "name": "a"}, {"age": 40, "size": 1.8, "name": "b"}]
TABLES = {
    "table": pd.DataFrame(ROWS, index=[5, 3]),
    "mapping": as_rows({name: [row[name] for row in ROWS] for name in ROWS[0]}),
    "dicts": as_rows(ROWS),
}


@pytest.mark.parametrize("kind", TABLES)
def test_columns_are_taken_by_name_in_the_order_asked(kind):
    given = TABLES[kind]
    found = Columns(["size", "age"])(given)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.tensor([[1.5, 30.0], [1.8, 40.0]]))
    assert Columns("name")(given) == ["a", "b"]
    some = Columns(("age", "name"), stack=False)(given)
    assert list(some) == ["age", "name"]
    assert some["age"].tolist() == [30, 40]
    with pytest.raises(UnknownNameError, match=r"no column 'aeg'. Did you mean 'age'"):
        Columns(["aeg"])(given)
    with pytest.raises(InputError, match=r"Column 'name' must hold one number .* got 'a'"):
        Columns(["age", "name"])(given)


def test_what_has_no_columns_is_refused():
    for bad, what in ((torch.zeros(2, 2), "Tensor"), (as_rows(["a"]), "a list of other rows")):
        with pytest.raises(InputError, match=f"Columns takes a pandas table.* got {what}"):
            Columns("a")(bad)
    with pytest.raises(InputError, match="names must hold at least one column"):
        Columns([])
    gap = as_rows([{"a": 1.0}, {"a": None}])
    with pytest.raises(InputError, match=r"Column 'a' must hold one number .* got None"):
        Columns(["a"])(gap)
    square = {"a": torch.zeros(2, 3)}
    with pytest.raises(InputError, match=r"got shape \(2, 3\)"):
        Columns(["a"])(square)


# ---- pad


IDS = [[5, 6, 7], [8], [9, 10]]


@pytest.mark.parametrize(
    "rows",
    [
        IDS,
        [{"input_ids": row} for row in IDS],
        [{"input_ids": torch.tensor(row)} for row in IDS],
        {"input_ids": IDS},
        [np.array(row) for row in IDS],
    ],
)
def test_every_form_of_token_ids_is_padded_alike(rows):
    found = Pad(1)(as_rows(rows))
    assert found["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1], [9, 10, 1]]
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert {part.dtype for part in found.values()} == {torch.int64}


def test_length_multiple_and_side_are_kept():
    left = Pad(0, side="left", length=2)(IDS)
    assert left["input_ids"].tolist() == [[5, 6], [0, 8], [9, 10]]
    assert left["attention_mask"].tolist() == [[1, 1], [0, 1], [1, 1]]
    assert Pad(0, multiple=8)(IDS)["input_ids"].shape == (3, 8)
    assert Pad(0, multiple=8, length=5)(IDS)["input_ids"].shape == (3, 5)
    alone = Pad(0, mask=None)
    assert alone(IDS).shape == (3, 3)
    assert list(alone([{"input_ids": row} for row in IDS])) == ["input_ids"]


def test_other_fields_go_along():
    rows = [
        {"ids": row, "kinds": [1] * len(row), "mask": [0] + [1] * (len(row) - 1)} for row in IDS
    ]
    found = Pad(3, field="ids", mask="mask", length=2)(rows)
    assert found["ids"].tolist() == [[5, 6], [8, 3], [9, 10]]
    assert found["kinds"].tolist() == [[1, 1], [1, 0], [1, 1]]
    assert found["mask"].tolist() == [[0, 1], [0, 0], [0, 1]]
    column = as_rows({"input_ids": IDS, "kind": [1, 2, 3]})
    assert Pad()(column)["kind"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1], []], "'input_ids' of example 1 must be at least one token id.* got \\[\\]"),
        ([[1], [1.5]], "of example 1 must be .* whole numbers"),
        ([[1], "text"], "of example 1 must be .* whole numbers"),
        ([{"ids": [1]}], r"needs the field 'input_ids', got \['ids'\]"),
        ([{"input_ids": [1]}, {"ids": [1]}], r"must have the fields of the first"),
        ([{"input_ids": [1, 2], "kinds": [1]}], "'kinds' of example 0 .* 2 tokens, got 1"),
    ],
)
def test_what_cannot_be_padded_is_named(rows, message):
    with pytest.raises(InputError, match=message):
        Pad()(as_rows(rows))


# ---- chains


def test_a_list_is_a_chain_and_chains_in_it_are_laid_flat():
    steps = [Resize((4, 4)), Normalize(1 / 255)]
    whole = chained([Chain(steps[:1]), *steps[1:]])
    assert [type(step) for step in whole.steps] == [Resize, Normalize]
    assert whole.reads_rows
    assert not Chain(steps[::-1]).reads_rows
    assert chained(steps[:1]) is steps[0]
    x = torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8)
    assert torch.equal(whole(x), steps[1](steps[0](x)))
    assert torch.equal(Stage("a", nn.Flatten(), transform=steps).prepare(x), whole(x))
    with pytest.raises(InputError, match="at least one step"):
        chained([])
    with pytest.raises(InputError, match="a module or a list of modules, got float"):
        chained([0.5])


def test_a_chain_is_a_list_in_a_file():
    whole = chained([Decode(), Resize(224, crop_pct=0.875), Normalize(1 / 255)])
    value = json.loads(json.dumps(to_json(whole)))
    assert [step["kind"] for step in value] == ["decode", "resize", "normalize"]
    assert to_json(from_json(Transform, value)) == value
    with pytest.raises(FileFormatError, match="1: kind must be one of"):
        from_json(Transform, [{"kind": "decode"}, {"kind": "pickle"}])
    with pytest.raises(FileFormatError, match="at least one step"):
        from_json(Transform, [])


@pytest.mark.parametrize(
    "array", [np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros(8, np.uint8)]
)
def test_an_array_that_is_no_image_is_refused_with_its_shape(array):
    with pytest.raises(InputError, match=r"Row 1 must be a uint8 array \(h, w\).*got "):
        Decode()([np.zeros((8, 8, 3), np.uint8), array])


def test_columns_of_two_lengths_are_refused():
    with pytest.raises(InputError, match=r"one length, got \{'a': 2, 'b': 1\}"):
        Columns(["a", "b"])({"a": [1, 2], "b": [1]})
