"""A table of numbers with labels: by name, nothing made up, and told what is wrong with it."""

import csv
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer

from offramp._core.errors import FileFormatError, InputError, UnknownNameError
from offramp.data import load_dataset, table, texts


def write(path, text, **how):
    path.write_text(text, encoding=how.get("encoding", "utf-8"))
    return path


GOOD = "age,size,label\n30,1.5,cat\n40,1.75,dog\n50,2,cat\n"


def table_slow(path, label):
    """The same, one row after the other, with the plainest reader there is."""
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    names = sorted({row[label] for row in found})
    return (
        [[float(value) for name, value in row.items() if name != label] for row in found],
        [names.index(row[label]) for row in found],
    )


def test_numbers_and_labels_are_those_of_the_file(tmp_path):
    values, labels = load_breast_cancer(return_X_y=True)
    path = tmp_path / "cancer.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"m{k}" for k in range(30)), "label"])
        named = np.array(["bad", "good"])[labels]
        writer.writerows([*row, name] for row, name in zip(values.tolist(), named, strict=True))
    found, (rows, numbers) = load_dataset("table", path), table_slow(path, "label")
    assert found.class_names == ("bad", "good")
    assert found.labels.tolist() == numbers
    stacked = torch.stack([found.inputs[f"m{k}"] for k in range(30)], dim=1)
    assert torch.equal(stacked, torch.tensor(rows, dtype=torch.float32))


def test_columns_have_roles_by_name_and_the_rest_are_features(tmp_path):
    path = write(tmp_path / "a.csv", "who,kind,part,x,y\na,1,fit,1,2\nb,2,fit,3,4\n")
    found = table(path, label="kind", id="who", split="part")
    assert list(found.inputs) == ["x", "y"]
    assert found.ids.tolist() == ["a", "b"]
    assert found.class_names == ("1", "2")  # the labels themselves, not 0, 1 and a class in between
    assert found.split.tolist() == [1, 1]
    assert list(table(path, label="kind", columns=["y"]).inputs) == ["y"]


def test_labels_that_are_numbers_are_in_their_order(tmp_path):
    path = write(tmp_path / "a.csv", "x,label\n1,10\n2,9\n3,-1\n")
    assert table(path).class_names == ("-1", "9", "10")
    assert table(path, class_names=["9", "10", "-1"]).labels.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bom.csv", "\ufeff" + GOOD),
        ("semicolons.csv", GOOD.replace(",", ";")),
        ("tabs.csv", GOOD.replace(",", "\t")),
        ("tabs.tsv", GOOD.replace(",", "\t")),
        ("windows.csv", GOOD.replace("\n", "\r\n")),
        ("blank.csv", GOOD.replace("\n", "\n\n")),
        ("spaces.csv", GOOD.replace("30,1.5,cat", " 30, 1.5 , cat")),
        ("quoted.csv", GOOD.replace("30,1.5,cat", '"30","1.5","cat"')),
    ],
)
def test_the_same_table_in_other_spellings(tmp_path, name, text):
    found = table(write(tmp_path / name, text))
    assert {name: column.tolist() for name, column in found.inputs.items()} == {
        "age": [30.0, 40.0, 50.0],
        "size": [1.5, 1.75, 2.0],
    }
    assert found.labels.tolist() == [0, 1, 0]


def test_parquet(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    held = {"age": [30, 40], "fast": [True, False], "size": [1.5, 2.0], "label": ["cat", "dog"]}
    parquet.write_table(pa.table(held), tmp_path / "a.parquet")
    found = table(tmp_path / "a.parquet")
    assert {name: column.tolist() for name, column in found.inputs.items()} == {
        "age": [30.0, 40.0],
        "fast": [1.0, 0.0],
        "size": [1.5, 2.0],
    }
    parquet.write_table(pa.table({**held, "age": [30, None]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"row 2: 'age' is missing; it has 1 gaps in 2 rows"):
        table(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match=r"c\.parquet cannot be read as parquet"):
        table(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", FileFormatError, r"is empty\. Its first line must name the columns"),
        ("\n\n", FileFormatError, "is empty"),
        ("age,label\n", FileFormatError, "a header and no rows"),
        ("age,age,label\n1,2,a\n", FileFormatError, "names 'age' twice"),
        (GOOD + "60,3\n", FileFormatError, "line 5: the row has 2 fields, and the header 3"),
        (GOOD + "60,3,cat,9\n", FileFormatError, "line 5: the row has 4 fields"),
        (GOOD.replace("40,", '"40,'), FileFormatError, "cannot be read as a table"),
        (GOOD.replace("label", "Label"), UnknownNameError, "no column .*'label'. Did you mean 'La"),
        (GOOD.replace("40", ""), InputError, r"row 2: 'age' is missing; it has 1 gaps in 3 rows"),
        (GOOD.replace("40", "NaN"), InputError, r"row 2: 'age' is missing.*columns = \[\.\.\.\]"),
        (GOOD.replace("40", "N/A"), InputError, "row 2: 'age' is missing"),
        (
            GOOD.replace("40", "red"),
            InputError,
            "row 2: 'age' must be a finite .* got 'red'.*dummi",
        ),
        (GOOD.replace("40", "inf"), InputError, "row 2: 'age' must be a finite number, got 'inf'"),
        (GOOD.replace("40", "1e39"), InputError, "'age' must be a finite number, got '1e39'"),
        (GOOD.replace("40", "4_0"), InputError, "'age' must be a finite number, got '4_0'"),
        (GOOD.replace("dog", ""), InputError, "row 2: 'label' is missing"),
        (GOOD.replace("dog", "cat"), InputError, "at least two labels, got 'cat'"),
        (",age,label\n0,30,a\n1,40,b\n", InputError, r"no name; pandas .* to_csv\(index=False\)"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path, text, error, said):
    with pytest.raises(error, match=said):
        table(write(tmp_path / "a.csv", text))


def test_a_decimal_comma_is_told_as_such(tmp_path):
    path = write(tmp_path / "a.csv", "age;label\n1,5;a\n2,5;b\n")
    with pytest.raises(InputError, match=r"got '1,5'. Numbers are written with a point: 1\.5"):
        table(path)


def test_a_column_of_names_may_be_one_of_ids(tmp_path):
    path = write(tmp_path / "a.csv", "who,age,label\np1,1,a\np2,2,b\n")
    with pytest.raises(InputError, match=r"got 'p1'\. If it names the rows, say so: id = 'who'"):
        table(path)
    assert table(path, id="who").ids.tolist() == ["p1", "p2"]


def test_the_label_is_no_feature_and_others_have_to_be_there(tmp_path):
    path = write(tmp_path / "a.csv", GOOD)
    with pytest.raises(InputError, match="columns must not hold 'label', which is the label"):
        table(path, columns=["age", "label"])
    with pytest.raises(UnknownNameError, match=r"'sise'\. Did you mean 'size'"):
        table(path, columns=["age", "sise"])
    with pytest.raises(InputError, match="each once, got \\['age', 'age'\\]"):
        table(path, columns=["age", "age"])


def test_a_label_that_is_no_class_is_named(tmp_path):
    path = write(tmp_path / "a.csv", GOOD)
    with pytest.raises(InputError, match="row 2: 'label' must be one of the classes 'cat', 'eel'"):
        table(path, class_names=["cat", "eel"])


def test_measurements_are_no_labels(tmp_path):
    lines = [f"{k},{math.sin(k)}" for k in range(60)]
    path = write(tmp_path / "a.csv", "\n".join(["x,label", *lines]))
    with pytest.raises(InputError, match=r"60 different labels in 60 rows.*these are no classes"):
        table(path)


def test_digits_that_get_lost_are_told(tmp_path):
    lines = [f"{1_700_000_000 + k},{'ab'[k % 2]}" for k in range(60)]
    path = write(tmp_path / "a.csv", "\n".join(["time,label", *lines]))
    with pytest.warns(UserWarning, match="'time' of .* loses digits in float32"):
        table(path)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(FileFormatError, match="is missing"):
        table(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"age,label\n\xff,a\n")
    with pytest.raises(FileFormatError, match="cannot be read as a table in UTF-8"):
        table(tmp_path / "a.csv")


def test_a_text_with_a_comma_and_no_quotes_is_not_cut(tmp_path):
    path = write(tmp_path / "a.csv", "label,text\ngood,fine, and cheap\nbad,poor\n")
    with pytest.raises(FileFormatError, match="line 2: the row has 3 fields, and the header 2"):
        texts(path)
