"""Single batches of a file of many examples: what reading in order gives, read once."""

import numpy as np
import pytest
import torch

from offramp._core.errors import InputError
from offramp.cli.predict_ray import planned
from offramp.project import inputs
from offramp.project.inputs import InputReader
from support.served import make_bundle

SIZE = 7


def reader_of(path, **changes):
    given = {"files": [("x", path)], "shape": None, "image_options": {}, "array": "images"}
    return InputReader(**{**given, "ids": None, **changes})


@pytest.fixture(params=["npz", "compressed", "float64", "nhwc", "txt"])
def case(request, tmp_path):
    """A file, and how it is read."""
    if request.param == "txt":
        path = tmp_path / "a.txt"
        path.write_text("\n".join(f"text {k}" for k in range(30)))
        return path, {}
    drawn = np.random.default_rng(0)
    images = drawn.integers(0, 256, (30, 4, 5, 3)).astype(np.uint8)
    path, ids = tmp_path / "a.npz", np.array([f"id {k}" for k in range(30)])
    save = np.savez_compressed if request.param == "compressed" else np.savez
    given = images.astype(np.float64) if request.param == "float64" else images
    save(path, images=given, ids=ids)
    changes = {"shape": (3, 4, 5)} if request.param == "nhwc" else {}
    return path, changes | ({} if request.param == "npz" else {"ids": "ids"})


def counted(monkeypatch):
    """What is read from now on."""
    reads = []

    def watch(name):
        real = getattr(inputs, name)

        def watched(*given, **named):
            reads.append(given)
            return real(*given, **named)

        monkeypatch.setattr(inputs, name, watched)

    watch("read_arrays")
    watch("read_texts")
    return reads


def test_parts_are_the_batches_in_any_order_and_the_file_is_read_once(case, monkeypatch):
    path, changes = case
    expected = list(reader_of(path, **changes).batches(SIZE))  # the slow twin
    reads = counted(monkeypatch)
    reader = reader_of(path, **changes, kept={})
    for turn in (4, 0, 2, 1, 3):
        names, rows = reader.part(turn, SIZE)
        assert names == expected[turn][0]
        same = torch.equal if isinstance(rows, torch.Tensor) else np.array_equal
        assert same(rows, expected[turn][1])
    assert len(reads) == 1
    assert reader_of(path, **changes).part(0, SIZE)[0] == expected[0][0]
    assert len(reads) == 2


class Taken:
    """Stands for what answers: it keeps what it is asked."""

    def __init__(self):
        self.names, self.rows = [], []

    def of_raw(self, names, rows):
        self.names += names
        self.rows.append(rows)
        return {}


def test_a_process_of_a_cluster_reads_an_npz_file_once(tmp_path, monkeypatch):
    drawn = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    np.savez(tmp_path / "a.npz", images=drawn)
    bundle = make_bundle(tmp_path / "net")
    reading = {"array": "images", "ids": None, "column": "text", "orient": None}
    shards, read = planned(bundle, [tmp_path / "a.npz"], reading, SIZE)
    reads, taken = counted(monkeypatch), Taken()
    for shard in shards:
        list(read(shard, taken))
    assert len(shards) == 5
    assert len(reads) == 1
    assert taken.names == list(range(30))
    assert np.array_equal(torch.cat(taken.rows).numpy(), drawn)


@pytest.mark.parametrize("kept", [None, {}])
@pytest.mark.parametrize("kind", [">f4", ">i4", "longdouble"])
def test_numbers_in_any_order_of_bytes_are_read(tmp_path, kept, kind):
    values = np.arange(12).reshape(4, 3)
    np.savez(tmp_path / "a.npz", images=values.astype(kind))
    ((_, rows),) = reader_of(tmp_path / "a.npz", shape=(3,), kept=kept).batches(SIZE)
    assert rows.tolist() == values.tolist()


@pytest.mark.parametrize("kept", [None, {}])
@pytest.mark.parametrize(
    ("values", "said"),
    [(np.array(5.0), "along the first axis"), (np.array(["a", "b"]), "images must be numbers")],
)
def test_what_is_no_batch_of_numbers_is_refused(tmp_path, kept, values, said):
    np.savez(tmp_path / "a.npz", images=values)
    with pytest.raises(InputError, match=said):
        list(reader_of(tmp_path / "a.npz", shape=(3,), kept=kept).batches(SIZE))
