"""Pictures of telephones were read lying on their side: they say in EXIF how to turn them."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from offramp._core.errors import FileFormatError
from offramp.data import image_folder, load_dataset, read_image

UPRIGHT = np.zeros((32, 32, 3), np.uint8)
UPRIGHT[:16, :16] = 250  # top left
UPRIGHT[:16, 16:] = 150  # top right
# what a camera stores for each tag, so that turning it gives the picture above
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, 3),
}


def save(path, pixels, tag):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    exif = image.getexif()
    exif[0x0112] = tag
    image.save(path, exif=exif)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
@pytest.mark.parametrize("tag", list(STORED))
def test_each_of_the_eight_ways_comes_out_upright(tmp_path, ending, tag):
    path = tmp_path / f"x.{ending}"
    save(path, STORED[tag], tag)
    found = read_image(path, size=32, resize=32)[0].int()
    assert [int(found[8, 8]), int(found[8, 24]), int(found[24, 16])] == pytest.approx(
        [250, 150, 0], abs=6
    )
    with Image.open(path) as image:
        assert np.array_equal(
            read_image(path, size=32, resize=32),
            np.asarray(ImageOps.exif_transpose(image).convert("RGB")).transpose(2, 0, 1),
        )


def test_the_shorter_side_is_that_of_the_upright_picture(tmp_path):
    tall = np.zeros((90, 40, 3), np.uint8)
    tall[:30] = 200
    save(tmp_path / "x.png", np.rot90(tall), 6)  # 40 high in the file
    found = read_image(tmp_path / "x.png", size=(40, 20), resize=(40, 20))
    assert found.shape == (3, 40, 20)
    assert found[0, 5, 10] == 200
    assert found[0, -5, 10] == 0


def test_pixels_as_they_lie_are_had_on_request(tmp_path):
    save(tmp_path / "a" / "x.png", STORED[6], 6)
    assert np.array_equal(
        read_image(tmp_path / "a" / "x.png", size=32, resize=32, orient=False),
        STORED[6].transpose(2, 0, 1),
    )
    turned = image_folder(tmp_path, size=32, resize=32)
    plain = load_dataset("folder", tmp_path, size=32, resize=32, orient=False)
    assert turned.inputs[0][0, 8, 8] == 250
    assert np.array_equal(plain.inputs[0], STORED[6].transpose(2, 0, 1))
    assert turned.fingerprint != plain.fingerprint


def test_tags_that_mean_nothing_and_damaged_ones_turn_nothing(tmp_path):
    save(tmp_path / "x.png", UPRIGHT, 77)
    assert read_image(tmp_path / "x.png", size=32, resize=32)[0, 8, 8] == 250
    Image.fromarray(UPRIGHT).save(tmp_path / "y.png", exif=b"Exif\x00\x00II*\x00damaged")
    assert read_image(tmp_path / "y.png", size=32, resize=32)[0, 8, 8] == 250


def test_a_file_that_is_no_image_is_still_an_error(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no")
    with pytest.raises(FileFormatError):
        read_image(tmp_path / "x.png", size=32, resize=32)
