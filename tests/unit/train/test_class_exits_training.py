"""Training branches side by side: the packed product, the twin that trains one alone, resuming."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from offramp._core.errors import FileFormatError, InputError
from offramp.models import PooledHead
from offramp.train.cache import Cached
from offramp.train.class_exits import (
    BranchFeatures,
    BranchSpec,
    Recipe,
    every_branch,
    train_branches,
)
from offramp.train.class_exits import training as module
from offramp.train.class_exits.layout import Layout

WIDTHS = (3, 5, 4)
CLASSES = 3


def features(seed, n=200, shift=0.0):
    """Three points; the later ones tell the classes better apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    held, heads = {}, {}
    for k, width in enumerate(WIDTHS):
        centers = np.random.default_rng(99 + k).normal(0, 0.4 + 0.3 * k, (CLASSES, width))
        values = centers[labels] + rng.normal(0, 1, (n, width)) + shift
        held[f"point{k}"] = values.astype(np.float32)
        heads[f"point{k}"] = PooledHead(nn.Flatten(), nn.Identity())
    cached = Cached(heads, held, "cpu")
    return BranchFeatures(cached, list(held), WIDTHS, torch.from_numpy(labels))


@pytest.fixture(scope="module")
def train():
    return features(0)


@pytest.fixture(scope="module")
def judged():
    return features(1, n=90)


def trained(train, judged, branches, **options):
    recipe = Recipe(**{"epochs": 6, "batch_size": 32, **options})
    return train_branches(train, judged, branches, recipe, progress=False)


ODD = [
    BranchSpec(reads=(0, 2), target=1, keep_previous=True),
    BranchSpec(reads=(1,), target=0, keep_previous=False),
    BranchSpec(reads=(0, 1, 2), target=2, keep_previous=True),
    BranchSpec(reads=(2,), target=1, keep_previous=False),
]


@pytest.mark.parametrize("branches", [every_branch(3, range(CLASSES)), ODD], ids=["every", "odd"])
def test_the_packed_product_is_the_masked_product(train, branches):
    layout = Layout(branches, train.starts)
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(layout.size, generator=generator)
    bias = torch.randn(len(branches), generator=generator)
    dense = torch.zeros(sum(WIDTHS), len(branches))
    dense[layout.feature_of(), layout.owners()] = row
    mask = layout.mask(sum(WIDTHS))
    for column, branch in enumerate(branches):
        read = {f for j in branch.reads for f in range(train.starts[j], train.starts[j + 1])}
        assert set(mask[:, column].nonzero()[:, 0].tolist()) == read
        torch.testing.assert_close(layout.column(row, column), dense[mask[:, column], column])
    assert torch.equal(dense != 0, mask)
    inputs = torch.randn(7, sum(WIDTHS), generator=generator)
    torch.testing.assert_close(layout.product(inputs, row, bias), inputs @ dense + bias)
    slopes = torch.randn(7, len(branches), generator=generator)
    gradient = (inputs.T @ slopes)[layout.feature_of(), layout.owners()]
    torch.testing.assert_close(layout.gradient(inputs, slopes), gradient)


def test_there_are_420_branches_behind_21_convolutions():
    found = every_branch(21, range(10))
    assert len(found) == len(set(found)) == 420
    # behind the first convolution there is nothing before, so KP makes no difference
    assert len({(b.reads, b.target) for b in found}) == 410
    assert {len(b.reads) for b in found if not b.keep_previous} == {1}


@pytest.mark.parametrize("weights", ["plain", "balanced"])
def test_training_all_side_by_side_is_training_each_alone(train, judged, weights):
    branches = every_branch(3, range(CLASSES))
    together = trained(train, judged, branches, class_weights=weights)
    for column in range(0, len(branches), 4):
        alone = trained(train, judged, [branches[column]], class_weights=weights)
        for one, other in zip(together.dense(column), alone.dense(0), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert together.epochs[column] == alone.epochs[0]
        assert together.accuracies[column] == pytest.approx(alone.accuracies[0])


def by_torch(train, judged, branch, recipe):
    """One branch with autograd, torch's own loss and torch's AdamW."""
    width = sum(WIDTHS[j] for j in branch.reads)
    columns = [f for j in branch.reads for f in range(train.starts[j], train.starts[j + 1])]
    raw = train.take(torch.arange(len(train)))[:, columns]
    mean, std = raw.mean(dim=0), raw.std(dim=0, correction=0)
    own = (train.labels == branch.target).float()
    layer = nn.Linear(width, 1)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, float(own.mean().logit()))
    optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=recipe.weight_decay)
    loss = nn.BCEWithLogitsLoss()
    best, kept = (-1.0, 0.0), None
    for epoch in range(recipe.epochs):
        seed = module.zlib.crc32(repr((recipe.seed, epoch)).encode())
        order = torch.randperm(len(raw), generator=torch.Generator().manual_seed(seed))
        rate = recipe.learning_rate * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * math.sqrt(64 / width)
        size = recipe.batch_size
        for start in range(0, len(raw) - size + 1, size):
            rows = order[start : start + size]
            optimizer.zero_grad()
            loss(layer((raw[rows] - mean) / std)[:, 0], own[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            values = judged.take(torch.arange(len(judged)))[:, columns]
            z = layer((values - mean) / std)[:, 0]
            truth = judged.labels == branch.target
            found = (float(((z >= 0) == truth).float().mean()), -float(loss(z, truth.float())))
        if found > best:
            best, kept = found, layer.weight[0].detach() / std
    return kept, best[0]


@pytest.mark.parametrize("branch", ODD[:3])
def test_a_branch_is_what_torch_trains(train, judged, branch):
    recipe = Recipe(epochs=5, batch_size=32)
    found = train_branches(train, judged, [branch], recipe, progress=False)
    weight, accuracy = by_torch(train, judged, branch, recipe)
    torch.testing.assert_close(found.dense(0)[0][:, 0], weight, rtol=1e-3, atol=1e-4)
    assert found.accuracies[0] == pytest.approx(accuracy)


def test_outputs_are_the_dense_layers_on_the_raw_features(train, judged):
    shifted = features(0, shift=7.0)
    found = trained(shifted, judged, ODD)
    raw = judged.take(torch.arange(len(judged)))
    for column, branch in enumerate(ODD):
        read = [f for j in branch.reads for f in range(train.starts[j], train.starts[j + 1])]
        weight, bias = found.dense(column)
        expected = raw[:, read] @ weight + bias
        torch.testing.assert_close(found.outputs(judged)[:, column], expected[:, 0])


def test_the_weights_are_those_of_the_best_epoch(train, judged):
    found = trained(train, judged, ODD, epochs=12, learning_rate=0.3)
    own = judged.labels[:, None] == torch.tensor([b.target for b in ODD])
    right = ((found.outputs(judged) >= 0) == own).float().mean(dim=0)
    torch.testing.assert_close(right, torch.tensor(found.accuracies))
    assert min(found.epochs) < 12


def test_a_branch_that_waits_too_long_keeps_what_it_had(train, judged):
    """With a patience of 1 nothing after the first epoch without progress counts."""
    patient, hasty = (
        trained(train, judged, ODD, epochs=10, patience=p, learning_rate=0.3) for p in (10, 1)
    )
    assert all(a >= b for a, b in zip(patient.accuracies, hasty.accuracies, strict=True))
    assert sum(hasty.epochs) < sum(patient.epochs)


def test_balanced_weights_raise_the_probability_of_the_class(train, judged):
    plain, balanced = (
        trained(train, judged, ODD, epochs=20, class_weights=w).outputs(judged)
        for w in ("plain", "balanced")
    )
    share = (train.labels == 1).double().mean()
    shift = float((balanced - plain)[:, 0].mean())
    assert shift == pytest.approx(float(-share.logit()), abs=0.35)
    assert plain[:, 0].sigmoid().mean() == pytest.approx(float(share), abs=0.08)


def test_superclasses_are_trained_by_their_own_labels(train, judged):
    merged = torch.tensor([0, 0, 1])
    found = train_branches(
        train,
        judged,
        [BranchSpec(reads=(2,), target=0, keep_previous=False)],
        Recipe(epochs=8, batch_size=32),
        labels=merged[train.labels],
        judged_labels=merged[judged.labels],
        progress=False,
    )
    right = (found.outputs(judged)[:, 0] >= 0) == (merged[judged.labels] == 0)
    assert float(right.float().mean()) == pytest.approx(found.accuracies[0])
    assert found.accuracies[0] > 0.75


class Interrupted(Exception):
    pass


def test_an_interrupted_training_goes_on_to_the_same_weights(train, judged, tmp_path, monkeypatch):
    path, recipe = tmp_path / "branches.safetensors", Recipe(epochs=6, batch_size=32)
    whole = train_branches(train, judged, ODD, recipe, progress=False)
    judge = module._Trainer.judge

    def stop(self, judged, labels, epoch):
        if epoch == 3:
            raise Interrupted
        judge(self, judged, labels, epoch)

    monkeypatch.setattr(module._Trainer, "judge", stop)
    with pytest.raises(Interrupted):
        train_branches(train, judged, ODD, recipe, checkpoint=path, progress=False)
    monkeypatch.undo()
    resumed = train_branches(train, judged, ODD, recipe, checkpoint=path, progress=False)
    assert torch.equal(resumed.weights, whole.weights)
    assert torch.equal(resumed.bias, whole.bias)
    assert (resumed.epochs, resumed.accuracies) == (whole.epochs, whole.accuracies)
    again = train_branches(train, judged, ODD, recipe, checkpoint=path, progress=False)
    assert torch.equal(again.weights, whole.weights)


def test_a_checkpoint_of_another_training_is_refused(train, judged, tmp_path):
    path, recipe = tmp_path / "branches.safetensors", Recipe(epochs=1, batch_size=32)
    train_branches(train, judged, ODD, recipe, checkpoint=path, progress=False)
    other = Recipe(epochs=1, batch_size=32, seed=5)
    with pytest.raises(InputError, match=r"training with other recipe\. Repeat the call"):
        train_branches(train, judged, ODD, other, checkpoint=path, progress=False)
    with pytest.raises(InputError, match="training with other branches"):
        train_branches(train, judged, ODD[:2], recipe, checkpoint=path, progress=False)
    with pytest.raises(InputError, match="training with other network"):
        train_branches(
            train, judged, ODD, recipe, checkpoint=path, identity={"network": "a"}, progress=False
        )


def test_a_damaged_checkpoint_is_named(train, judged, tmp_path):
    path = tmp_path / "branches.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="cannot be read as a checkpoint"):
        train_branches(train, judged, ODD, Recipe(epochs=1), checkpoint=path, progress=False)


def test_a_loss_that_is_not_finite_stops_the_training(train, judged):
    with pytest.raises(InputError, match=r"became .* in epoch 1, with learning_rate=1e\+38"):
        trained(train, judged, ODD, learning_rate=1e38)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("patience", 0),
        ("batch_size", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1.0),
        ("class_weights", "heavy"),
    ],
)
def test_a_recipe_outside_its_domain_is_refused(field, value):
    with pytest.raises(InputError, match=f"{field} must be .*got {value!r}"):
        Recipe(**{field: value})
