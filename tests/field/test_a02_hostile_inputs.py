"""Files that cost far more than they weigh, or that a decoder chokes on; see test_10 as well."""

import csv
import io
import struct
import sys
import warnings
import zipfile

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

import offramp
from offramp._core.errors import FileFormatError
from offramp.cli import main
from offramp.data import arrays, image_folder, npz, read_image
from offramp.models import ModelSpec, build
from offramp.stages import Normalize


def saved(path, kind="PNG", size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, kind)
    return path


def test_no_other_program_is_asked_to_read_an_image(tmp_path, monkeypatch):
    saved(tmp_path / "x.png", "EPS")
    assert (tmp_path / "x.png").read_bytes().startswith(b"%!PS")

    def ghostscript(*_, **__):
        raise SystemError("an image was handed to Ghostscript")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    with pytest.raises(FileFormatError, match="cannot identify"):
        read_image(tmp_path / "x.png", size=8, resize=8)


@pytest.mark.parametrize("kind", ["ICNS", "PCX", "TGA", "PDF", "SGI"])
def test_decoders_of_other_formats_are_never_reached(tmp_path, kind):
    saved(tmp_path / "x.png", kind)
    with pytest.raises(FileFormatError):
        read_image(tmp_path / "x.png", size=8, resize=8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_the_format_is_seen_in_the_file_not_in_its_name(tmp_path, kind):
    assert read_image(saved(tmp_path / "x.png", kind), size=8, resize=8).shape == (3, 8, 8)


@pytest.mark.parametrize("error", [TypeError, MemoryError, KeyError, RuntimeError, struct.error])
def test_whatever_a_decoder_raises_the_file_is_named(tmp_path, monkeypatch, error):
    def load(*_):
        raise error()

    saved(tmp_path / "a" / "x.png")
    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(
        FileFormatError, match=rf"x\.png cannot be read as an image: {error.__name__}"
    ):
        read_image(tmp_path / "a" / "x.png", size=8, resize=8)


def test_damaged_files_are_skipped_by_predict_and_by_the_check(tmp_path, monkeypatch):
    folder = tmp_path / "photos" / "cat"
    saved(folder / "good.png")
    whole = saved(folder / "whole.tif", "TIFF", (64, 1)).read_bytes()
    rng = np.random.default_rng(0)
    for k in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 4):
            damaged[at] = rng.integers(256)
        (folder / f"{k:02}.tif").write_bytes(damaged)
    spec = ModelSpec(name="small_cnn", arguments={"width": 2, "depth": 2, "in_channels": 3})
    cascade = offramp.Cascade.from_models(
        {"a": build(spec)}, specs={"a": spec}, transform=Normalize(1 / 255)
    )
    candidate = offramp.Candidate.single(cascade.topology, "a", reference="a")
    offramp.save(offramp.Adaptive(cascade, candidate), tmp_path / "bundle", input_shape=(3, 8, 8))
    given = [str(tmp_path / name) for name in ("bundle", "photos", "p.csv")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["predict", *given[:2], "--out", given[2]]) == 0
        kept = image_folder(tmp_path / "photos", size=8).ids.tolist()
    with (tmp_path / "p.csv").open() as file:
        answered = [row["id"] for row in csv.DictReader(file)]
    assert {"cat/good.png", "cat/whole.tif"} <= set(answered)
    assert answered == kept


def header(shape, dtype="<f4"):
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        held, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return held.getvalue()


def written(path, raw, *, compressed=False):
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("labels.npy", header((2,), "<i8") + bytes(16))
        with archive.open("images.npy", "w", force_zip64=True) as file:
            for part in raw:
                file.write(part)
    return path


def test_a_header_that_promises_what_is_not_there_takes_no_memory(tmp_path):
    path = written(tmp_path / "x.npz", [header((10**13,)), bytes(64)])
    with pytest.raises(FileFormatError, match=r"'images' should have 40000000000000 bytes"):
        npz(path)
    path = written(tmp_path / "x.npz", [header((2, 8)), bytes(60)])
    with pytest.raises(FileFormatError, match=r"should have 64 bytes, .* and has 60"):
        npz(path)


def test_a_small_file_that_holds_gigabytes_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[arrays.__module__], "_ALWAYS_READ", 2**20)
    zeros = [header((2, 2**20)), *[bytes(2**20)] * 8]
    path = written(tmp_path / "x.npz", zeros, compressed=True)
    assert path.stat().st_size < 2**15
    with pytest.raises(FileFormatError, match=r"grows from .* to 8388608 bytes"):
        npz(path)
    assert len(npz(written(tmp_path / "y.npz", zeros))) == 2  # as large on the disk: fine


def test_what_is_encrypted_is_said_to_be(tmp_path):
    path = written(tmp_path / "x.npz", [header((2, 1)), bytes(8)])
    raw = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = raw.find(signature)
        while start >= 0:
            raw[start + at] |= 1
            start = raw.find(signature, start + 4)
    path.write_bytes(raw)
    with pytest.raises(FileFormatError, match="'images' is encrypted"):
        npz(path)


def test_sound_files_are_read_as_before(tmp_path):
    images = np.arange(12, dtype=np.uint8).reshape(2, 6)
    for k, save in enumerate((np.savez, np.savez_compressed)):
        save(tmp_path / f"{k}.npz", images=np.asfortranarray(images), labels=[0, 1], none=[])
        assert np.array_equal(npz(tmp_path / f"{k}.npz").inputs, images)
