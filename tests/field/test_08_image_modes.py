"""Images of more than 8 bits became all white or black: Pillow clips where it should scale."""

import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from offramp._core.errors import FileFormatError
from offramp.data import image_folder, read_image

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))  # (64, 64)


def grey(path):
    """One row of the image, all channels being equal."""
    image = read_image(path, size=64, resize=64)
    assert (image[0] == image[1]).all()
    assert (image[0] == image[2]).all()
    return image[0, 32].numpy()


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_by_their_range(tmp_path, ending):
    path, values = tmp_path / f"x.{ending}", RAMP.astype(np.uint16) * 257
    if ending == "pgm":  # Pillow 10.0 reads it and cannot write it
        path.write_bytes(b"P5 64 64 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    assert np.array_equal(grey(path), RAMP[0])


def test_sixteen_bits_of_the_other_byte_order_are_scaled_too(tmp_path):
    big = Image.frombytes("I;16B", (64, 64), (RAMP.astype(">u2") * 257).tobytes())
    big.save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as image:
        assert image.mode == "I;16B"
    assert np.array_equal(grey(tmp_path / "x.tif"), RAMP[0])


def test_twelve_bits_are_scaled_by_4095(tmp_path):
    path = tmp_path / "x.tif"
    values = (np.arange(64, dtype=np.uint32) * 65).repeat(64).reshape(64, 64).T  # 0 to 4095
    pairs = values.reshape(-1, 2)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1
    )
    data = packed.astype(np.uint8).tobytes()
    entries = [(256, 3, 64), (257, 3, 64), (258, 3, 12), (259, 3, 1), (262, 3, 1)]
    entries += [(273, 4, 0), (277, 3, 1), (278, 3, 64), (279, 4, len(data))]
    start = 8 + 2 + 12 * len(entries) + 4
    file = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    for tag, kind, value in entries:
        file += struct.pack("<HHII", tag, kind, 1, start if tag == 273 else value)
    path.write_bytes(file + struct.pack("<I", 0) + data)
    right = np.round(np.arange(64) * 65 * (255 / 4095)).astype(np.uint8)
    assert np.array_equal(grey(path), right)


def test_white_may_be_zero(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "x.tif", tiffinfo=tags)
    raw = bytearray((tmp_path / "x.tif").read_bytes())
    at = raw.index(struct.pack("<HHIHH", 262, 3, 1, 1, 0))  # photometric: black is zero
    raw[at + 8] = 0
    (tmp_path / "x.tif").write_bytes(raw)
    assert np.array_equal(grey(tmp_path / "x.tif"), 255 - RAMP[0])


def test_fractions_are_scaled_by_255(tmp_path):
    Image.fromarray(RAMP.astype(np.float32) / 255).save(tmp_path / "x.tif")
    assert np.array_equal(grey(tmp_path / "x.tif"), RAMP[0])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (RAMP.astype(np.float32), r"must be in \[0, 1\], got 0 to 252"),
        (RAMP.astype(np.float32) / 255 - 0.5, r"must be in \[0, 1\], got -0\.5"),
        (np.full((64, 64), np.nan, np.float32), r"must be in \[0, 1\], got nan"),
        (RAMP.astype(np.int32), r"of 32 bits \(mode I\)"),
    ],
    ids=["up to 255", "negative", "nan", "whole numbers"],
)
def test_numbers_whose_white_nobody_knows_are_refused_with_their_range(tmp_path, values, said):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(FileFormatError, match=rf"x\.tif cannot be read as an image: .*{said}"):
        read_image(tmp_path / "x.tif", size=64, resize=64)


def test_the_check_of_a_folder_names_them_and_says_why(tmp_path):
    (tmp_path / "scan").mkdir()
    Image.fromarray(RAMP).save(tmp_path / "scan" / "a.png")
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "scan" / "b.tif")
    with pytest.warns(UserWarning, match=r"1 of 2 images .*b\.tif.*must be in \[0, 1\]"):
        assert image_folder(tmp_path, size=64, resize=64).ids.tolist() == ["scan/a.png"]


def test_images_of_eight_bits_are_what_pillow_makes_of_them(tmp_path):
    colors = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    rgba = Image.fromarray(colors)
    palette = rgba.convert("RGB").quantize(16)
    for k, image in enumerate(
        [
            *(rgba, rgba.convert("RGB"), rgba.convert("LA"), rgba.convert("L")),
            *(rgba.convert("1"), palette),
        ]
    ):
        path = tmp_path / f"{k}.png"
        image.save(path)
        right = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(read_image(path, size=64, resize=64), right), image.mode
    cmyk = rgba.convert("RGB").convert("CMYK")
    cmyk.save(tmp_path / "x.tif")
    right = np.asarray(cmyk.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "x.tif", size=64, resize=64), right)


def test_a_palette_with_transparent_entries_keeps_its_colors_without_a_warning(tmp_path):
    palette = Image.fromarray(np.stack([RAMP] * 3, axis=2)).quantize(16)
    palette.save(tmp_path / "plain.png")
    palette.save(tmp_path / "clear.png", transparency=bytes([0, 128] * 8))
    plain, clear = (
        read_image(tmp_path / f"{name}.png", size=64, resize=64) for name in ("plain", "clear")
    )
    assert (plain == clear).all()
