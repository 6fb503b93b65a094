import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.division import counts_of, random_order, stratified_order
from offramp._core.errors import InputError, SplitOverlapError
from offramp._core.types import SPLITS
from offramp.data import Dataset, arrays
from support.properties import examples


def make(n=12, classes=3, **changes) -> Dataset:
    values = {
        "inputs": torch.arange(n * 4, dtype=torch.float32).reshape(n, 1, 2, 2),
        "labels": torch.arange(n) % classes,
        "class_names": tuple("abcdefgh"[:classes]),
        "ids": np.arange(100, 100 + n),
    }
    return Dataset(**{**values, **changes})


class Squares:
    """Lazy inputs that count how often they are asked."""

    def __init__(self, numbers):
        self.numbers = list(numbers)
        self.asked = []

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, position):
        self.asked.append(position)
        return torch.full((2,), float(self.numbers[position] ** 2))

    def take(self, positions):
        return Squares([self.numbers[k] for k in positions])

    def identity(self):
        return repr(self.numbers).encode()


def test_no_examples_are_refused():
    with pytest.raises(InputError, match="n = 0"):
        make(n=0)


def test_a_label_outside_the_classes_is_named():
    with pytest.raises(InputError, match=r"labels must be in \[0, 3\), got 7 for example 1"):
        make(n=3, labels=torch.tensor([0, 7, 1]))
    with pytest.raises(InputError, match="got -1 for example 0"):
        make(n=2, labels=torch.tensor([-1, 0]))


def test_inputs_and_labels_of_different_length_are_refused():
    with pytest.raises(InputError, match="5 inputs and 12 labels"):
        make(inputs=torch.zeros(5, 1, 2, 2))


def test_repeated_ids_are_refused_and_one_is_named():
    with pytest.raises(InputError, match="ids must be unique, got 3 2 times"):
        make(n=3, ids=np.array([3, 4, 3]))


def test_an_unknown_split_index_is_refused():
    with pytest.raises(InputError, match="split must hold indices"):
        make(n=2, split=torch.tensor([0, 4], dtype=torch.int8))


def test_an_item_is_input_label_and_id():
    examples = make(ids=np.array([f"img/{k}" for k in range(12)]))
    image, label, name = examples[4]
    assert torch.equal(image, examples.inputs[4])
    assert (label, name) == (1, "img/4")


@pytest.mark.parametrize("batch_size", [1, 5, 12, 50])
def test_a_loader_gives_every_example_once_and_in_order(batch_size):
    examples = make()
    loader = examples.loader(batch_size)
    batches = list(loader)
    assert len(batches) == len(loader) == -(-12 // batch_size)
    assert torch.equal(torch.cat([b.inputs for b in batches]), examples.inputs)
    assert torch.equal(torch.cat([b.labels for b in batches]), examples.labels)
    assert np.concatenate([b.ids for b in batches]).tolist() == examples.ids.tolist()
    assert batches[0].labels.dtype == torch.int64
    assert isinstance(batches[0].ids, np.ndarray)  # torch's default would make a tensor of it


def test_a_loader_stacks_lazy_inputs_and_asks_for_each_once():
    squares = Squares(range(7))
    examples = make(n=7, inputs=squares)
    loaded = torch.cat([batch.inputs for batch in examples.loader(3)])
    assert loaded[:, 0].tolist() == [0, 1, 4, 9, 16, 25, 36]
    assert squares.asked == list(range(7))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, Python 3.12 and later
def test_worker_processes_keep_the_order():
    examples = make(ids=np.array([f"n{k}" for k in range(12)]))
    batches = list(examples.loader(5, num_workers=1))
    assert np.concatenate([b.ids for b in batches]).tolist() == examples.ids.tolist()


def test_torchs_own_loader_can_shuffle_the_examples():
    generator = torch.Generator().manual_seed(0)
    loader = torch.utils.data.DataLoader(make(), batch_size=4, shuffle=True, generator=generator)
    ids = torch.cat([ids for _, _, ids in loader])
    assert sorted(ids.tolist()) == list(range(100, 112))
    assert ids.tolist() != list(range(100, 112))


def test_a_batch_size_of_zero_is_refused():
    with pytest.raises(InputError, match="batch_size must be an integer of at least 1, got 0"):
        make().loader(0)


def test_rows_take_positions_in_their_order_or_a_mask():
    examples = make(split=torch.zeros(12, dtype=torch.int8))
    some = examples.take(torch.tensor([5, 2]))
    assert some.ids.tolist() == [105, 102]
    assert torch.equal(some.inputs, examples.inputs[[5, 2]])
    mask = torch.zeros(12, dtype=torch.bool)
    mask[[2, 5]] = True
    assert examples.take(mask).ids.tolist() == [102, 105]
    lazy = make(n=4, inputs=Squares(range(4))).take(torch.tensor([3, 1]))
    assert lazy.inputs.numbers == [3, 1]


def test_a_part_without_splits_or_examples_says_so():
    with pytest.raises(InputError, match="has no splits"):
        make().subset("fit")
    with pytest.raises(InputError, match="is in the split 'test'"):
        make().with_ranges({"fit": (0, 12)}).subset("test")


@examples(50)
@given(
    n=st.integers(8, 60),
    seed=st.integers(0, 1000),
    stratified=st.booleans(),
    parts=st.integers(1, 4),
)
def test_divided_parts_are_disjoint_and_use_every_example(n, seed, stratified, parts):
    examples = make(n=n, classes=1)
    shares = dict.fromkeys(SPLITS[:parts], 1 / parts)
    whole = examples.split_into(shares, seed=seed, stratified=stratified)
    assert whole.ids.tolist() == examples.ids.tolist()  # all of them, order kept
    pieces = [whole.subset(name) for name in SPLITS[:parts]]
    assert sum(map(len, pieces)) == n
    for k, piece in enumerate(pieces):
        assert abs(len(piece) - n / parts) <= 1
        for other in pieces[k + 1 :]:
            piece.require_disjoint(other)


def test_division_depends_on_the_seed_alone():
    examples = make(n=30, classes=1)
    shares = {"fit": 10, "test": 5}
    first, again, other = (examples.split_into(shares, seed=s) for s in (1, 1, 2))
    assert first.ids.tolist() == again.ids.tolist()
    assert torch.equal(first.split, again.split)
    assert first.ids.tolist() != other.ids.tolist()
    assert len(first) == 15  # what the numbers leave over is dropped


def test_dividing_again_forgets_the_splits_before():
    examples = make(n=10, classes=1).with_ranges({"train": (0, 10)})
    assert set(examples.split_into({"fit": 1.0}, seed=0).split.tolist()) == {1}


@examples(50)
@given(
    sizes=st.lists(st.integers(1, 25), min_size=1, max_size=5),
    cut=st.floats(0.0, 1.0),
    seed=st.integers(0, 100),
)
def test_every_stretch_of_a_stratified_order_holds_each_class_in_proportion(sizes, cut, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    order = stratified_order(labels, seed=seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    stop = round(cut * len(labels))
    for label, size in enumerate(sizes):
        expected = stop / len(labels) * size
        assert (
            abs(int((labels[order[:stop]] == label).sum()) - expected)
            <= (1 + len(sizes)) / 2 + 1e-9
        )


def test_a_random_order_would_not_be_stratified():
    labels = np.repeat([0, 1], [95, 5])
    plain = [int((labels[random_order(100, seed=s)[:20]] == 1).sum()) for s in range(30)]
    even = [int((labels[stratified_order(labels, seed=s)[:20]] == 1).sum()) for s in range(30)]
    assert set(even) == {1}
    assert min(plain) == 0


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({}, "all fractions or all numbers"),
        ({"fit": 0.5, "test": 3}, "all fractions or all numbers"),
        ({"fit": 0.7, "test": 0.5}, "sum to at most 1"),
        ({"fit": float("nan")}, "sum to at most 1"),
        ({"fit": 9, "test": 2}, r"make \[9, 2\] of 10"),
        ({"fit": 0.01, "test": 0.5}, "every split needs at least one"),
        ({"fit": -0.5, "test": 0.5}, "every split needs at least one"),
    ],
)
def test_shares_that_do_not_fit_are_refused(shares, message):
    with pytest.raises(InputError, match=message):
        counts_of(shares, 10)


def test_ranges_split_by_position_and_drop_the_rest():
    examples = make().with_ranges({"test": (8, 11), "train": (0, 6)})
    assert examples.subset("train").ids.tolist() == [100, 101, 102, 103, 104, 105]
    assert examples.subset("test").ids.tolist() == [108, 109, 110]
    assert len(examples) == 9


def test_ranges_that_touch_are_fine_and_overlapping_ones_are_an_error():
    make().with_ranges({"train": (0, 6), "test": (6, 12)})
    with pytest.raises(SplitOverlapError, match=r"'train' \(0, 7\) and 'test' \(6, 12\)"):
        make().with_ranges({"train": (0, 7), "test": (6, 12)})


@pytest.mark.parametrize("limits", [(0, 13), (-1, 5), (5, 5), (6, 3)])
def test_a_range_outside_or_empty_is_refused(limits):
    with pytest.raises(InputError, match=r"The range of 'fit' must lie in \[0, 12\]"):
        make().with_ranges({"fit": limits})


def test_a_class_missing_from_a_split_is_a_warning_with_both_names():
    with pytest.warns(
        UserWarning, match="The split 'test' of examples has no example of class 'c'"
    ):
        make().with_ranges({"train": (0, 3), "test": (3, 5)})


def test_examples_in_both_parts_are_an_error():
    examples = make()
    with pytest.raises(SplitOverlapError, match=r"2 examples are in both .* e.g. 104"):
        examples.take(torch.arange(6)).require_disjoint(examples.take(torch.arange(4, 12)))
    named = make(ids=np.array([str(k) for k in range(100, 112)]))
    examples.require_disjoint(named)


def test_the_fingerprint_follows_labels_ids_and_inputs_but_no_split():
    base = make()
    same = [make(), make(name="other"), make().with_ranges({"train": (0, 12)})]
    changed = base.inputs.clone()
    changed[11, 0, 1, 1] += 1
    different = [
        make(inputs=changed),
        make(inputs=base.inputs.reshape(12, 1, 4, 1)),
        make(inputs=base.inputs.double()),
        make(labels=(base.labels + 1) % 3),
        make(ids=base.ids + 1),
        base.take(torch.arange(11)),
    ]
    assert {e.fingerprint for e in same} == {base.fingerprint}
    assert len({e.fingerprint for e in (base, *different)}) == len(different) + 1
    assert len(base.fingerprint) == hashlib.sha256().digest_size * 2


def test_the_fingerprint_of_channels_last_inputs_is_that_of_their_values():
    images = torch.arange(96.0).reshape(2, 3, 4, 4)
    strided = images.contiguous(memory_format=torch.channels_last)
    assert arrays(images, [0, 1]).fingerprint == arrays(strided, [0, 1]).fingerprint


def test_the_fingerprint_of_lazy_inputs_does_not_read_them():
    squares = Squares(range(4))
    one, two = make(n=4, inputs=squares), make(n=4, inputs=Squares([0, 1, 2, 4]))
    assert one.fingerprint != two.fingerprint
    assert squares.asked == []


def test_a_split_that_does_not_exist_is_refused_where_nobody_checks_types():
    code = """
import torch
from offramp._core.errors import InputError
from offramp.data import arrays
examples = arrays(torch.zeros(4, 2), [0, 0, 0, 0])
for attempt in (
    lambda: examples.with_ranges({"fit": (0, 4)}).subset("valid"),
    lambda: examples.with_ranges({"valid": (0, 4)}),
    lambda: examples.split_into({"valid": 0.5}, seed=0),
    lambda: arrays(torch.zeros(1, 2), [0], split=["valid"]),
):
    try:
        attempt()
    except InputError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.count("got 'valid'") == 4


def sentences(n=20):
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(1, 9, (n, 5), generator=generator),
        "attention_mask": (torch.rand(n, 5, generator=generator) < 0.7).long(),
    }


def test_inputs_may_be_a_mapping_as_text_models_take_them():
    inputs = sentences()
    examples = arrays(inputs, [k % 2 for k in range(20)])
    one, label, name = examples[3]
    assert torch.equal(one["input_ids"], inputs["input_ids"][3])
    assert (label, name) == (1, 3)
    chosen = examples.take(torch.tensor([7, 2]))
    assert torch.equal(chosen.inputs["attention_mask"], inputs["attention_mask"][[7, 2]])
    batches = list(examples.loader(8))
    assert [len(batch.labels) for batch in batches] == [8, 8, 4]
    for name, values in inputs.items():
        assert torch.equal(torch.cat([batch.inputs[name] for batch in batches]), values)
    parts = examples.split_into({"fit": 10, "test": 10}, seed=0, stratified=True)
    assert len(parts.subset("fit").inputs["input_ids"]) == 10


def test_the_fingerprint_of_a_mapping_sees_every_field():
    labels = [k % 2 for k in range(20)]
    found = {arrays(sentences(), labels).fingerprint}
    for name in ("input_ids", "attention_mask"):
        changed = sentences()
        changed[name][4, 1] += 1
        found.add(arrays(changed, labels).fingerprint)
    renamed = sentences()
    renamed["token_type_ids"] = renamed.pop("attention_mask")
    found.add(arrays(renamed, labels).fingerprint)
    assert len(found) == 4
    assert arrays(sentences(), labels).fingerprint in found


def test_the_fields_of_a_mapping_must_be_equally_long():
    inputs = sentences()
    inputs["attention_mask"] = inputs["attention_mask"][:19]
    with pytest.raises(InputError, match=r"'attention_mask': 19"):
        arrays(inputs, [k % 2 for k in range(20)])
    with pytest.raises(InputError, match="got 20 inputs and 18 labels"):
        arrays(sentences(), [k % 2 for k in range(18)])
    with pytest.raises(
        InputError, match="layout must be 'as_is' for a mapping of inputs, got 'nhwc'"
    ):
        arrays(sentences(), [k % 2 for k in range(20)], layout="nhwc")
