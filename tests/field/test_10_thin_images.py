"""A picture of 1 x 20,000 pixels, 157 bytes, took 5 GB: all of it was scaled before the cut."""

import resource
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from offramp._core import picture
from offramp._core.errors import FileFormatError
from offramp.data import image_folder, read_image
from support.properties import examples


def scaled_whole(image, size, resize):
    """The slow and obvious way: scale everything, then cut."""
    width, height = image.size
    wide, high = resize * width // min(image.size), resize * height // min(image.size)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    whole = image.resize((wide, high), Image.Resampling.BILINEAR)
    cut = whole.crop((left, top, left + size, top + size))
    return np.asarray(cut).transpose(2, 0, 1).astype(int)


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@examples(40)
@given(width=st.integers(1, 90), height=st.integers(1, 90), seed=st.integers(0, 99))
def test_ordinary_pictures_are_what_they_were(tmp_path_factory, width, height, seed):
    image = noise(width, height, seed)
    path = tmp_path_factory.mktemp("one") / "x.png"
    image.save(path)
    found = read_image(path, size=28, resize=32).numpy().astype(int)
    slack = 0 if max(width, height) * 32 // min(width, height) <= 16 * 32 else 1
    assert np.abs(found - scaled_whole(image, 28, 32)).max() <= slack


@pytest.mark.parametrize(("width", "height"), [(3, 200), (700, 20), (1, 1500), (2000, 2)])
def test_of_thin_pictures_the_middle_is_scaled_only_and_equal(tmp_path, width, height):
    image = noise(width, height)
    image.save(tmp_path / "x.png")
    found = read_image(tmp_path / "x.png", size=28, resize=32).numpy().astype(int)
    assert np.abs(found - scaled_whole(image, 28, 32)).max() <= 1


@pytest.mark.parametrize("shape", [(1, 65_535), (50_000, 1), (1, 1_000_000)])
def test_the_thinnest_pictures_take_neither_memory_nor_time(tmp_path, shape):
    Image.new("RGB", shape, (9, 99, 199)).save(tmp_path / "thin.png")
    started = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read_image(tmp_path / "thin.png", size=224, resize=256)
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert found.shape == (3, 224, 224)
    assert found[:, 100, 100].tolist() == [9, 99, 199]
    assert grown_kb < 300_000
    assert time.monotonic() - started < 5  # the old way took a minute, or all memory


def test_more_pixels_than_the_limit_are_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    Image.new("1", (40, 30)).save(tmp_path / "a" / "large.png")
    Image.new("1", (40, 25)).save(tmp_path / "a" / "small.png")
    monkeypatch.setattr(picture, "MOST_PIXELS", 1000)
    with pytest.raises(FileFormatError, match=r"large\.png .* 1200 pixels, and at most 1000"):
        read_image(tmp_path / "a" / "large.png", size=8, resize=8)
    with pytest.warns(UserWarning, match=r"1 of 2 images.*large\.png"):
        assert len(image_folder(tmp_path, size=8)) == 1


def test_the_limit_holds_whatever_pillow_is_told(tmp_path, monkeypatch):
    # a PNG that says it has 20,000 x 20,000 pixels, and has none
    Image.new("1", (8, 8)).save(tmp_path / "x.png")
    raw = bytearray((tmp_path / "x.png").read_bytes())
    raw[16:24] = (20_000).to_bytes(4, "big") * 2
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    (tmp_path / "x.png").write_bytes(raw)
    with pytest.raises(FileFormatError, match="400000000 pixels"):
        read_image(tmp_path / "x.png", size=8, resize=8)
