"""Which folder is which class was the order of whatever folders there were, without a word."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import offramp
from offramp._core.errors import FileFormatError, InputError
from offramp.data import image_folder
from offramp.project.build import dataset_of
from offramp.project.config.config import load_config
from offramp.stages import Normalize

REAL = next(
    (
        found
        for parent in Path(__file__).resolve().parents
        for found in [parent / "shared" / "data" / "imagenet_val500"]
        if found.is_dir()
    ),
    None,
)


def filled(root, *names, count=1):
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            Image.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(root / name / f"{k}.png")
    return root


def test_ten_of_a_thousand_classes_have_the_numbers_of_the_network(tmp_path):
    filled(tmp_path / "photos", "n02", "n01", "n03")
    (tmp_path / "classes.csv").write_text(
        "\ufefffolder,index,name\nn01,0,tench\nn02,217,springer\nn03,482,\nn04,999,parachute\n",
        encoding="utf-8",
    )
    found = image_folder(
        tmp_path / "photos", size=8, classes=tmp_path / "classes.csv", class_count=1000
    )
    assert found.ids.tolist() == ["n01/0.png", "n02/0.png", "n03/0.png"]
    assert found.labels.tolist() == [0, 217, 482]
    assert found.classes == 1000
    names = [found.class_names[k] for k in (0, 217, 482, 999, 1)]
    assert names == ["tench", "springer", "n03", "parachute", "1"]


def test_they_can_be_recorded_with_the_network(tmp_path):
    filled(tmp_path / "photos", "dog", "cat")
    torch_net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 20)).eval()
    cascade = offramp.Cascade.from_models({"a": torch_net}, transform=Normalize(1 / 255))
    data = image_folder(tmp_path / "photos", size=8, classes={"cat": 7, "dog": 3}, class_count=20)
    trace = offramp.record(cascade, data, progress=False)
    assert trace.labels.tolist() == [7, 3]
    assert trace.class_names[7] == "cat"


def test_a_list_of_names_is_in_the_order_of_the_classes(tmp_path):
    found = image_folder(filled(tmp_path, "ant", "bee"), size=8, classes=["bee", "cow", "ant"])
    assert dict(zip(found.ids.tolist(), found.labels.tolist(), strict=True)) == {
        "ant/0.png": 2,
        "bee/0.png": 0,
    }
    assert found.class_names == ("bee", "cow", "ant")


def test_several_folders_may_be_one_class(tmp_path):
    found = image_folder(
        filled(tmp_path, "ant", "bee", "cow"), size=8, classes={"ant": 0, "bee": 0, "cow": 1}
    )
    assert found.labels.tolist() == [0, 0, 1]
    assert found.class_names == ("ant, bee", "cow")


def test_letters_with_accents_are_the_same_however_a_mac_writes_them(tmp_path):
    filled(tmp_path, "cafe\u0301")
    assert image_folder(tmp_path, size=8, classes=["tea", "caf\u00e9"]).labels.tolist() == [1]


def test_a_folder_that_the_list_lacks_is_refused_by_name(tmp_path):
    filled(tmp_path, "cat", "dog", "horse")
    with pytest.raises(InputError, match=r"lacks 'horse'\. Did you mean 'horses'\?"):
        image_folder(tmp_path, size=8, classes=["cat", "dog", "horses"])
    (tmp_path / "notes").mkdir()  # no image in it: named, and left out
    with pytest.warns(UserWarning, match="1 class folder holds no image: 'notes'"):
        assert len(image_folder(tmp_path, size=8, classes=["cat", "dog", "horse"])) == 3


@pytest.mark.parametrize(
    ("classes", "count", "said"),
    [
        (["cat", "cat"], None, "each folder once, got 'cat' twice"),
        ({"cat": -1}, None, "count from 0, got -1 for 'cat'"),
        ({"cat": 7}, 7, r"class_count must be above every class of the list \(7\), got 7"),
        ([], None, "at least one folder"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(tmp_path, classes, count, said):
    with pytest.raises(InputError, match=said):
        image_folder(filled(tmp_path, "cat"), size=8, classes=classes, class_count=count)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,index\ncat,0\n", "must have the columns folder and index"),
        ("folder,index\ncat,x\n", r"line 2: index must be the number of a class, .* got 'x'"),
        ("folder,index\ncat\n", "line 2: index must be"),
        (None, "cannot be read as a list of classes"),
    ],
)
def test_files_that_are_no_list_are_refused(tmp_path, text, said):
    if text is not None:
        (tmp_path / "c.csv").write_text(text)
    with pytest.raises(FileFormatError, match=said):
        image_folder(filled(tmp_path / "x", "cat"), size=8, classes=tmp_path / "c.csv")


def test_numbered_folders_may_be_counted_and_else_there_is_a_warning(tmp_path):
    filled(tmp_path, *map(str, range(12)))
    natural = image_folder(tmp_path, size=8, order="natural")
    assert natural.class_names == tuple(map(str, range(12)))
    assert natural.labels.tolist() == list(range(12))
    plain = image_folder(tmp_path, size=8, order="sorted")
    assert plain.class_names[:3] == ("0", "1", "10")
    with pytest.warns(UserWarning, match=r"sorted as text .*order='natural'"):
        assert image_folder(tmp_path, size=8).class_names == plain.class_names
    with pytest.raises(InputError, match="order must be left out"):
        image_folder(tmp_path, size=8, classes=["0"], order="natural")


def test_empty_folders_count_as_classes_but_not_without_a_word(tmp_path):
    filled(tmp_path, "cat", "dog")
    (tmp_path / "bird").mkdir()
    with pytest.warns(UserWarning, match="no image: 'bird', and counts all the same"):
        found = image_folder(tmp_path, size=8)
    assert found.class_names == ("bird", "cat", "dog")


def test_images_beside_the_class_folders_are_told(tmp_path):
    filled(tmp_path, "cat", "dog", ".")
    with pytest.warns(UserWarning, match="1 images lie beside the class folders"):
        assert len(image_folder(tmp_path, size=8)) == 2


@pytest.mark.parametrize(
    "names",
    [
        ("train/cat", "train/dog", "val/cat", "val/dog"),
        ("Train/cat",),
        ("train", "test"),
        ("training/a/b", "validation/a/b", "__MACOSX/a"),
    ],
)
def test_a_folder_of_splits_is_one_level_too_high(tmp_path, names):
    filled(tmp_path, *names)
    with pytest.raises(InputError, match=r"whose subfolders are splits.*Take one of them"):
        image_folder(tmp_path, size=8)


def test_classes_that_are_named_like_splits_can_be_had(tmp_path):
    filled(tmp_path, "train", "bus")
    assert image_folder(tmp_path, size=8).class_names == ("bus", "train")
    filled(tmp_path / "two", "train", "test")
    assert image_folder(tmp_path / "two", size=8, classes=["test", "train"]).classes == 2


def test_one_class_whose_images_all_lie_deeper_is_pointed_out(tmp_path):
    filled(tmp_path, "archive/cat", "archive/dog")
    with pytest.warns(UserWarning, match="'archive' is the only class; is path one level too high"):
        image_folder(tmp_path, size=8)


def configured(tmp_path, lines):
    filled(tmp_path / "photos", "cat", "dog")
    text = f'[data]\nkind = "folder"\npath = "photos"\noptions = {{ size = 8 }}\n{lines}\n'
    (tmp_path / "run.toml").write_text(text)
    return load_config(tmp_path / "run.toml")


@pytest.mark.parametrize(
    "lines",
    [
        'classes = "classes.csv"\nclass_count = 9',
        "classes = { cat = 4, dog = 2 }\nclass_count = 9",
        'classes = ["a", "b", "dog", "c", "cat"]',
    ],
)
def test_a_configuration_says_it_too(tmp_path, lines, monkeypatch):
    (tmp_path / "classes.csv").write_text("folder,index\ncat,4\ndog,2\n")
    config = configured(tmp_path, lines)
    monkeypatch.chdir("/")  # the list lies beside the configuration
    found = dataset_of(config)
    assert found.labels.tolist() == [4, 2]
    assert found.classes in (5, 9)


def test_what_is_no_list_is_named_with_its_place(tmp_path):
    with pytest.raises(InputError, match=r"data\.classes: must be a CSV file such as"):
        configured(tmp_path, "classes = { cat = 1.5 }")
    with pytest.raises(InputError, match=r"data\.classes: there is no such file"):
        configured(tmp_path, 'classes = "none.csv"')
    with pytest.raises(InputError, match=r"data\.class_count"):
        configured(tmp_path, "class_count = 0")
    (tmp_path / "run.toml").write_text(
        '[data]\nkind = "folder"\npath = "photos"\noptions = { classes = "x.csv" }\n'
    )
    with pytest.raises(InputError, match=r"data\.options\.classes: stands in \[data\] itself"):
        load_config(tmp_path / "run.toml")


@pytest.mark.shared
@pytest.mark.skipif(
    REAL is None, reason="the real data imagenet_val500 is not beside the repository"
)
def test_real_images_of_ten_classes_have_the_indices_of_imagenet():
    found = image_folder(
        REAL / "images", size=64, check=False, classes=REAL / "classes.csv", class_count=1000
    )
    assert len(found) == 500
    assert sorted(set(found.labels.tolist())) == [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    assert found.class_names[701] == "parachute"
    assert found.inputs[0].shape == (3, 64, 64)
