"""Changes of images: shifts, mirror images, JPEG."""

import pytest
import torch

from offramp._core.errors import InputError
from offramp.data import CropAndFlip, jpeg_compressed


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shifted(image, down, right, *, mirrored):
    """The slow twin: one pixel at a time."""
    _, height, width = image.shape
    made = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            column = width - 1 - x if mirrored else x
            if 0 <= y + down < height and 0 <= column + right < width:
                made[:, y, x] = image[:, y + down, column + right]
    return made


def test_each_image_is_shifted_and_perhaps_mirrored():
    images = torch.randint(1, 255, (40, 3, 5, 6), dtype=torch.uint8, generator=generator())
    changed = CropAndFlip(padding=2)(images, generator(1))
    assert changed.dtype == images.dtype
    seen = set()
    for image, found in zip(images, changed, strict=True):
        ways = [
            (down, right, mirrored)
            for down in range(-2, 3)
            for right in range(-2, 3)
            for mirrored in (False, True)
            if torch.equal(found, shifted(image, down, right, mirrored=mirrored))
        ]
        assert len(ways) == 1
        seen.add(ways[0])
    assert {mirrored for *_, mirrored in seen} == {False, True}
    assert {down for down, *_ in seen} == set(range(-2, 3))


def test_nothing_changes_without_padding_and_flip():
    images = torch.rand(4, 1, 3, 3)
    assert torch.equal(CropAndFlip(padding=0, flip=False)(images, generator()), images)


def test_parts_of_a_size_are_cut_out_of_the_padded_image():
    images = torch.randint(1, 255, (60, 2, 5, 7), dtype=torch.uint8, generator=generator())
    changed = CropAndFlip(padding=1, flip=False, size=4)(images, generator(1))
    assert changed.shape == (60, 2, 4, 4)
    assert changed.dtype == images.dtype
    padded = torch.nn.functional.pad(images, [1] * 4)  # (60, 2, 7, 9)
    seen = set()
    for image, found in zip(padded, changed, strict=True):
        places = [
            (top, left)
            for top in range(4)
            for left in range(6)
            if torch.equal(found, image[:, top : top + 4, left : left + 4])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert {top for top, _ in seen} == set(range(4))
    assert {left for _, left in seen} == set(range(6))


def test_a_size_beyond_the_padded_image_is_refused():
    with pytest.raises(InputError, match="with their padding, 10 pixels, got 11"):
        CropAndFlip(padding=1, size=11)(torch.zeros(1, 3, 8, 8), generator())
    with pytest.raises(InputError, match="size must be an integer of at least 1, got 0"):
        CropAndFlip(size=0)


def test_the_same_generator_gives_the_same_images():
    images, change = torch.rand(9, 3, 8, 8), CropAndFlip()
    assert torch.equal(change(images, generator(3)), change(images, generator(3)))
    assert not torch.equal(change(images, generator(3)), change(images, generator(4)))


def test_a_negative_padding_is_refused():
    with pytest.raises(InputError, match="padding must be at least 0 pixels, got -1"):
        CropAndFlip(padding=-1)


def test_jpeg_loses_more_at_lower_quality():
    images = torch.randint(0, 255, (5, 3, 16, 16), dtype=torch.uint8, generator=generator())
    before = images.clone()
    lossy, fine = (
        jpeg_compressed(images, qualities=(quality, quality), seed=0) for quality in (20, 95)
    )
    assert torch.equal(images, before)
    assert lossy.shape == images.shape
    assert lossy.dtype == torch.uint8
    error = [(made.float() - images.float()).square().mean() for made in (fine, lossy)]
    assert 0 < error[0] < error[1]


def test_jpeg_draws_a_quality_for_each_image():
    images = torch.randint(0, 255, (1, 3, 16, 16), dtype=torch.uint8, generator=generator())
    made = jpeg_compressed(images.repeat(12, 1, 1, 1), qualities=(30, 90), seed=1)
    assert len({image.numpy().tobytes() for image in made}) > 6
    assert torch.equal(
        made, jpeg_compressed(images.repeat(12, 1, 1, 1), qualities=(30, 90), seed=1)
    )


@pytest.mark.parametrize("qualities", [(0, 50), (60, 50), (50, 96)])
def test_qualities_out_of_range_are_refused(qualities):
    with pytest.raises(InputError, match=r"qualities must be rising and within 1 to 95, got \("):
        jpeg_compressed(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), qualities=qualities, seed=0)
