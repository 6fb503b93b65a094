"""Endings ignored without a word, only square pictures, a byte order mark, ids that wrap."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import offramp
from offramp._core.errors import FileFormatError, InputError
from offramp._core.ids import as_ids, shown_id
from offramp._core.keys import example_keys
from offramp.cli import main
from offramp.data import arrays, image_folder, read_image
from offramp.models import ModelSpec, build
from offramp.project.build import dataset_of
from offramp.project.config.config import load_config
from offramp.project.inputs import InputReader, image_options
from offramp.stages import Normalize
from offramp.trace import make_trace, save_trace


def picture(path, height=16, width=16, kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.arange(height * width * 3, dtype=np.uint32) % 251
    Image.fromarray(ramp.astype(np.uint8).reshape(height, width, 3)).save(path, kind)
    return path


def bundle(folder, shape, extra=None):
    spec = ModelSpec(
        name="small_cnn", arguments={"width": 2, "depth": 2, "in_channels": 3, "classes": 2}
    )
    cascade = offramp.Cascade.from_models(
        {"a": build(spec)}, specs={"a": spec}, transform=Normalize(1 / 255)
    )
    candidate = offramp.Candidate.single(cascade.topology, "a", reference="a")
    offramp.save(
        offramp.Adaptive(cascade, candidate),
        folder / "bundle",
        input_shape=shape,
        extra=extra or {},
    )
    return folder / "bundle"


@pytest.fixture
def mixed(tmp_path):
    root = tmp_path / "photos"
    for name in ("cat", "dog"):
        picture(root / name / "0.jfif", kind="JPEG")
        picture(root / name / "1.png")
        for other in ("2.heic", "3.AVIF", "notes.txt", "none"):
            (root / name / other).touch()
    return root


def test_jfif_is_jpeg_and_what_is_left_out_is_counted_by_ending(mixed):
    with pytest.warns(UserWarning, match="8 files were left out") as caught:
        found = image_folder(mixed, size=8)
    assert found.ids.tolist() == ["cat/0.jfif", "cat/1.png", "dog/0.jfif", "dog/1.png"]
    assert len(caught) == 1
    assert "none (2), .avif (2), .heic (2), .txt (2)" in str(caught[0].message)


def test_predict_says_so_too(mixed, tmp_path, capsys):
    given = [str(path) for path in (bundle(tmp_path, (3, 8, 8)), mixed, tmp_path / "p.csv")]
    assert main(["predict", *given[:2], "--out", given[2], "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["ignored"] == {".heic": 2, ".avif": 2, ".txt": 2, "": 2}
    assert "Note: 8 files were left out" in said.err
    (tmp_path / "x.heic").touch()
    assert main(["predict", given[0], str(tmp_path / "x.heic"), "--out", given[2] + ".csv"]) == 2
    assert "x.heic is neither an image" in capsys.readouterr().err


@pytest.mark.parametrize(("height", "width"), [(60, 40), (40, 60), (50, 50), (30, 300)])
def test_pictures_need_not_be_square(tmp_path, height, width):
    path = picture(tmp_path / "x.png", height, width)
    found = read_image(path, size=(20, 30), resize=(24, 34))
    assert found.shape == (3, 20, 30)
    scale = max(24 / height, 34 / width)
    wide, high = int(width * scale + 1e-9), int(height * scale + 1e-9)
    with Image.open(path) as image:
        whole = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - 30) / 2), round((high - 20) / 2)
    right = np.asarray(whole.crop((left, top, left + 30, top + 20))).transpose(2, 0, 1)
    assert np.array_equal(found, right)


def test_one_number_is_a_square_and_other_sizes_are_refused(tmp_path):
    path = picture(tmp_path / "x.png", 60, 40)
    square = read_image(path, size=20, resize=24)
    assert (square == read_image(path, size=(20, 20), resize=[24, 24])).all()
    for size, resize, said in (
        ((20, 30), 24, r"resize must be at least size \(\(20, 30\)\), got 24"),
        ((20, 30, 3), 40, r"size must be one number or \(height, width\)"),
        ((20, 0), 40, "size must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(InputError, match=said):
            read_image(path, size=size, resize=resize)


def test_a_network_of_other_shape_is_fed_from_a_folder_and_from_predict(tmp_path):
    picture(tmp_path / "photos" / "cat" / "0.png", 60, 40)
    (tmp_path / "run.toml").write_text(
        '[data]\nkind = "folder"\npath = "photos"\noptions = { size = [8, 14] }\n'
    )
    config = load_config(tmp_path / "run.toml")
    found = dataset_of(config)
    assert found.inputs[0].shape == (3, 8, 14)
    assert found.inputs.resize == (9, 16)
    saved = bundle(tmp_path, (3, 8, 14), image_options(config.data))
    reader = InputReader.of(saved, [tmp_path / "photos"], array="images", ids=None)
    ((_, batch),) = reader.batches(4)
    assert torch.equal(batch[0], found.inputs[0])


@pytest.mark.parametrize(
    ("extra", "asked", "turned"),
    [
        ({}, None, True),  # fitted on arrays: telephones are what comes
        ({"images.json": {"resize": 16}}, None, False),  # of version 0.1, which turned nothing
        ({"images.json": {"resize": 16, "orient": True}}, None, True),
        ({"images.json": {"resize": 16, "orient": False}}, None, False),
        ({"images.json": {"resize": 16, "orient": False}}, True, True),
        ({}, False, False),
    ],
)
def test_predict_turns_pictures_as_those_were_that_it_was_fitted_on(tmp_path, extra, asked, turned):
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(picture(tmp_path / "x.png")) as image:
        image.save(tmp_path / "y.png", exif=exif)
    saved = bundle(tmp_path, (3, 16, 16), extra)
    reader = InputReader.of(saved, [tmp_path / "y.png"], array="images", ids=None, orient=asked)
    reader.image_options = {"resize": 16, "orient": reader.image_options.get("orient", True)}
    ((_, batch),) = reader.batches(1)
    plain = read_image(tmp_path / "x.png", size=16, resize=16)
    assert torch.equal(batch[0], plain.flip(1, 2) if turned else plain)


def test_the_command_line_may_say_it_too(tmp_path):
    picture(tmp_path / "x.png")
    given = [str(path) for path in (bundle(tmp_path, (3, 16, 16)), tmp_path / "x.png")]
    out = tmp_path / "p.csv"
    for option in ("--orient", "--no-orient"):
        assert main(["predict", *given, option, "--out", str(out), "--overwrite"]) == 0
        with out.open(newline="") as file:
            assert len(list(csv.DictReader(file))) == 1


def test_a_byte_order_mark_before_the_configuration_is_skipped(tmp_path):
    (tmp_path / "run.toml").write_bytes(b'\xef\xbb\xbf[data]\r\nkind = "digits"\r\n')
    assert load_config(tmp_path / "run.toml").data.kind == "digits"
    (tmp_path / "bad.toml").write_bytes('[data]\nkind = "digits"\n'.encode("utf-16"))
    with pytest.raises(FileFormatError, match=r"bad\.toml cannot be read as TOML"):
        load_config(tmp_path / "bad.toml")


WRAPS = np.array([1, 2**63 + 5], dtype=np.uint64)


def test_ids_beyond_int64_are_refused_by_every_door_and_kept_as_text(tmp_path):
    said = r"at most 9223372036854775807 \(int64\), got 9223372036854775813.*ids\.astype\(str\)"
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
    cascade = offramp.Cascade.from_models({"a": net})
    for door in (
        lambda ids: arrays(torch.zeros(2, 4), [0, 1], ids=ids),
        lambda ids: offramp.record(
            cascade, [(torch.zeros(2, 4), torch.tensor([0, 1]), ids)], progress=False
        ),
        example_keys,
    ):
        with pytest.raises(InputError, match=said):
            door(WRAPS)
        door(WRAPS.astype(str))
        door(np.array([1, 2**63 - 1], dtype=np.uint64))
    trace = make_trace(2, accuracies=[0.5], seed=0)
    object.__setattr__(trace, "ids", WRAPS)
    with pytest.raises(InputError, match=said):
        save_trace(trace, tmp_path / "x.trace")
    assert as_ids(np.array([1, 2], dtype=np.uint64)).dtype == np.int64


def test_ids_stand_in_messages_without_the_names_of_types():
    assert [shown_id(v) for v in (np.str_("a"), np.int64(3), "a", 3)] == ["'a'", "3", "'a'", "3"]
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
    cascade = offramp.Cascade.from_models({"a": net})
    x, names = torch.zeros(2, 4), np.array(["cat/1.png", "cat/2.png"])
    for loader in (
        [(x, torch.tensor([0, 9]), names)],
        [(x, torch.tensor([0, 1]), names[[0, 0]])],
        [(x.index_fill(0, torch.tensor([1]), torch.nan), torch.tensor([0, 1]), names)],
    ):
        with pytest.raises(InputError, match=r"'cat/[12]\.png'") as caught:
            offramp.record(cascade, loader, progress=False)
        assert "np." not in str(caught.value)
