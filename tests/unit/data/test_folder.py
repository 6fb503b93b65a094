import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from offramp import Cascade, record
from offramp._core.errors import FileFormatError, InputError
from offramp.data import image_folder, read_image
from offramp.stages import Decode, Resize

SIZES = {"small": 2, "large": 4}


def picture(path, width=20, height=16, seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    picture(root / "zebra" / "1.png", seed=1)
    picture(root / "ant" / "b.jpg", seed=2)
    picture(root / "ant" / "a.png", seed=3, mode="L")
    picture(root / "ant" / "deep" / "c.PNG", seed=4)
    picture(root / ".hidden" / "x.png")
    (root / "ant" / ".thumb.png").write_text("hidden")
    return root


def test_classes_are_the_subfolders_in_order_and_ids_the_paths(folder):
    found = image_folder(folder, size=8)
    assert found.class_names == ("ant", "zebra")
    assert found.ids.tolist() == ["ant/a.png", "ant/b.jpg", "ant/deep/c.PNG", "zebra/1.png"]
    assert found.labels.tolist() == [0, 0, 0, 1]


def test_images_are_decoded_to_one_size(folder):
    batches = list(image_folder(folder, size=8, resize=12).loader(3))
    assert [tuple(b.inputs.shape) for b in batches] == [(3, 3, 8, 8), (1, 3, 8, 8)]
    grey = batches[0].inputs[0]
    assert batches[0].inputs.dtype == torch.uint8
    assert torch.equal(grey[0], grey[1])


def test_corrupt_images_are_skipped_counted_and_named_in_one_warning(folder):
    (folder / "ant" / "broken.jpg").write_bytes(b"\xff\xd8 not really")
    whole = (folder / "ant" / "b.jpg").read_bytes()
    (folder / "zebra" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    png = (folder / "zebra" / "1.png").read_bytes()
    (folder / "zebra" / "short.png").write_bytes(png[: len(png) // 2])
    (folder / "zebra" / "empty.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="4 of 8 images") as caught:
        found = image_folder(folder, size=8)
    assert len(caught) == 1
    for name in ("ant/broken.jpg", "zebra/half.jpg", "zebra/short.png", "zebra/empty.png"):
        assert name in str(caught[0].message)
    assert len(found) == 4


def test_without_the_check_a_corrupt_image_is_an_error_on_access(folder):
    (folder / "ant" / "broken.jpg").write_bytes(b"\xff\xd8 not really")
    found = image_folder(folder, size=8, check=False)
    with pytest.raises(FileFormatError, match=r"broken\.jpg cannot be read as an image"):
        list(found.loader(2))


def test_a_folder_without_classes_or_images_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"one subfolder per class, got .*none"):
        image_folder(tmp_path / "none")
    (tmp_path / "ant").mkdir()
    with pytest.raises(InputError, match="no readable image in 1 subfolders"):
        image_folder(tmp_path)


def test_only_corrupt_images_are_refused_after_the_warning(tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "x.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 1"), pytest.raises(InputError, match="no readable"):
        image_folder(tmp_path)


def test_an_image_of_the_right_size_keeps_its_pixels(tmp_path):
    pixels = picture(tmp_path / "x.png", width=8, height=8)
    assert np.array_equal(
        read_image(tmp_path / "x.png", size=8, resize=8), pixels.transpose(2, 0, 1)
    )


def test_without_scaling_the_middle_is_cut(tmp_path):
    pixels = picture(tmp_path / "x.png", width=12, height=8)
    middle = pixels[2:6, 4:8].transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "x.png", size=4, resize=8), middle)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (31, 17), (9, 9)])
def test_the_shorter_side_is_scaled_and_the_shape_kept(tmp_path, width, height):
    # A ramp along the longer side stays a ramp of the same slope per scaled pixel.
    ramp = np.arange(max(width, height), dtype=np.uint8) * 4
    flat = np.broadcast_to(ramp if width >= height else ramp[:, None], (height, width))
    Image.fromarray(np.stack([flat] * 3, axis=2)).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png", size=10, resize=10)[0].float()
    line = image[5] if width >= height else image[:, 5]
    slope = (line[8] - line[1]) / 7
    assert slope == pytest.approx(4 * min(width, height) / 10, abs=0.5)


def test_sizes_that_do_not_fit_are_refused(folder):
    with pytest.raises(InputError, match=r"resize must be at least size \(9\), got 8"):
        image_folder(folder, size=9, resize=8)
    with pytest.raises(InputError, match="size must be an integer of at least 1, got 0"):
        image_folder(folder, size=0, resize=8)


def test_the_fingerprint_follows_file_names_sizes_and_the_cut(folder):
    base = image_folder(folder, size=8).fingerprint
    assert image_folder(folder, size=8).fingerprint == base
    assert image_folder(folder, size=8, resize=16).fingerprint != base
    picture(folder / "zebra" / "1.png", width=30)
    assert image_folder(folder, size=8).fingerprint != base


def test_parts_of_a_folder_read_their_own_images(folder):
    found = image_folder(folder, size=8)
    some = found.take(torch.tensor([3, 0]))
    assert torch.equal(some.inputs[0], found.inputs[3])
    assert some.ids.tolist() == ["zebra/1.png", "ant/a.png"]


def test_files_as_they_are_are_decoded_by_the_stages(folder):
    examples = image_folder(folder, decode=False)
    assert examples[0][0] == (folder / "ant" / "a.png").read_bytes()
    assert [len(batch.inputs) for batch in examples.loader(3)] == [3, 1]
    assert examples.fingerprint != image_folder(folder).fingerprint
    assert examples.take(torch.tensor([1])).inputs_at(torch.tensor([0])) == [
        (folder / "ant" / "b.jpg").read_bytes()
    ]
    nets = {name: nn.Sequential(nn.Flatten(), nn.Linear(3 * n * n, 2)) for name, n in SIZES.items()}
    cascade = Cascade.from_models(
        nets, transform={name: [Decode(), Resize((n, n))] for name, n in SIZES.items()}
    )
    trace = record(cascade, examples, batch_size=3, progress=False)
    assert trace.logits.shape == (4, 2, 2)
    with pytest.raises(InputError, match="resize and orient must be left out"):
        image_folder(folder, decode=False, orient=False)
