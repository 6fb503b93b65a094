"""The cache of pooled features: the same training, with the backbone run once."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from offramp._core.errors import FileFormatError, InputError
from offramp.data import digits
from offramp.models import PooledHead, cifar_resnet, make_head, small_cnn
from offramp.stages import Cascade, Normalize, cut_points
from offramp.train import train_heads

AT = ("features.0", "features.1")
KINDS = ("gap_linear", "pool_mlp")
SCALE = Normalize(1 / 16)


@pytest.fixture(scope="module")
def part():
    return digits().split_into({"train": 200}, seed=0, stratified=True)


def build(seed=0, kinds=KINDS):
    net = small_cnn(width=4, depth=3, seed=seed).eval()
    example = torch.zeros(1, 1, 8, 8)
    shapes = {p.name: p.shape for p in cut_points(net, example)}
    heads = {at: {k: make_head(k, shapes[at], 10) for k in kinds} for at in AT}
    return Cascade.from_network(net, AT, head=heads, example=example, transform=SCALE)


@pytest.fixture(scope="module")
def prototype():
    return build()


@pytest.fixture
def fresh(prototype):
    return lambda: copy.deepcopy(prototype)


def trained(cascade, part, **options):
    options = {"epochs": 2, "seed": 0, "batch_size": 45, "progress": False, **options}
    return train_heads(cascade, part, **options)


def heads(cascade):
    return {f"{s.name} {k}": v for s in cascade if s.head for k, v in s.head.state_dict().items()}


def runs(cascade):
    """A list that grows with each batch that the backbone's first layer sees."""
    seen = []
    first = next(m for m in cascade.stage(0).module.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda _m, given, _o: seen.append(len(given[0])))
    return seen


def test_float32_changes_nothing_at_all(fresh, part, tmp_path):
    plain, cached = fresh(), fresh()
    wanted = trained(plain, part)
    found = trained(cached, part, cache=tmp_path / "c", cache_dtype="float32")
    assert found == wanted
    for name, value in heads(plain).items():
        assert torch.equal(value, heads(cached)[name]), name


def test_float16_changes_as_much_as_its_rounding(fresh, part, tmp_path):
    plain, cached = fresh(), fresh()
    wanted = trained(plain, part)
    found = trained(cached, part, cache=tmp_path / "c")
    for name, history in wanted.items():
        np.testing.assert_allclose(found[name].losses, history.losses, rtol=2e-3)
    largest = max((v - heads(cached)[k]).abs().max().item() for k, v in heads(plain).items())
    assert 0 < largest < 0.1


def test_the_backbone_runs_once_and_never_again(fresh, part, tmp_path):
    cascade = fresh()
    seen = runs(cascade)
    trained(cascade, part, epochs=3, cache=tmp_path)
    assert sorted(seen) == [1, 20, 45, 45, 45, 45]  # one example to see what the heads give
    seen.clear()
    trained(cascade, part, seed=1, cache=tmp_path)
    assert seen == [1]


def test_equal_poolings_share_a_file_and_files_have_the_size_of_the_features(part, tmp_path):
    cascade = build(kinds=("gap_linear",))
    extra = copy.deepcopy(cascade.stage(0).head)
    own = PooledHead(extra.pool, nn.Linear(4, 10)).eval()
    net = small_cnn(width=4, depth=3).eval()
    both = {"features.0": {"one": extra, "two": own}}
    cascade = Cascade.from_network(
        net, ["features.0"], head=both, example=torch.zeros(1, 1, 8, 8), transform=SCALE
    )
    trained(cascade, part, cache=tmp_path, epochs=1)
    files = list((tmp_path / "train").glob("*.bin"))
    assert [file.stat().st_size for file in files] == [200 * 4 * 2]  # float16


def test_validation_examples_of_their_own_are_kept_apart(fresh, part, tmp_path):
    judged = digits().take(torch.arange(50))
    plain, cached = fresh(), fresh()
    wanted = trained(plain, part, validation=judged)
    found = trained(cached, part, validation=judged, cache=tmp_path, cache_dtype="float32")
    assert found == wanted
    assert {p.name for p in tmp_path.iterdir()} == {"train", "validation"}


def test_a_cut_that_carries_several_tensors(part, tmp_path):
    images = part.inputs.float().expand(-1, 3, -1, -1)
    small = type(part)(
        inputs=images, labels=part.labels, class_names=part.class_names, ids=part.ids
    )
    net = cifar_resnet(8, width=0.25).eval()
    point = next(p for p in cut_points(net, images[:1]) if len(p.live) > 1)
    head = make_head("gap_linear", point.shape, 10)
    plain = Cascade.from_network(net, [point.name], head={point.name: head}, example=images[:1])
    cached = copy.deepcopy(plain)
    wanted = trained(plain, small, epochs=1)
    assert trained(cached, small, epochs=1, cache=tmp_path, cache_dtype="float32") == wanted


def test_interrupted_caching_goes_on(fresh, part, tmp_path):
    whole, broken, again = fresh(), fresh(), fresh()
    wanted = trained(whole, part)
    first = next(m for m in broken.stage(0).module.modules() if isinstance(m, nn.Conv2d))
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 5:  # one example, then batches of 45 rows
            raise KeyboardInterrupt

    first.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        trained(broken, part, cache=tmp_path, cache_dtype="float32")
    kept = json.loads((tmp_path / "train" / "cache.json").read_text())
    assert kept["facts"]["rows"] == 135  # an interrupt keeps all that was computed
    seen = runs(again)
    assert trained(again, part, cache=tmp_path, cache_dtype="float32") == wanted
    assert sorted(seen) == [1, 20, 45]


def test_a_head_without_a_pooling_of_its_own_cannot_be_cached(part, tmp_path):
    cascade = build()
    own = cascade.stage(1)
    own.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(10)).eval()
    own.head(own.segment(torch.zeros(1, 1, 8, 8)))
    with pytest.raises(InputError, match=rf"head of '{own.name}' does not begin with"):
        trained(cascade, part, cache=tmp_path)
    names = [stage.name for stage in cascade if stage.head and stage is not own]
    assert list(trained(cascade, part, epochs=1, cache=tmp_path, heads=names)) == names


def test_a_head_that_pools_nothing_keeps_whole_maps(fresh, part, tmp_path):
    plain, cached = build(kinds=("conv_head",)), build(kinds=("conv_head",))
    wanted = trained(plain, part)
    assert trained(cached, part, cache=tmp_path, cache_dtype="float32") == wanted


def test_a_cache_of_something_else_is_refused(fresh, part, tmp_path):
    trained(fresh(), part, epochs=1, cache=tmp_path)
    with pytest.raises(InputError, match=r"was begun with other backbone"):
        trained(build(seed=9), part, cache=tmp_path)
    with pytest.raises(InputError, match=r"was begun with other examples"):
        trained(fresh(), part.take(torch.arange(100)), cache=tmp_path)
    with pytest.raises(InputError, match=r"was begun with other dtype"):
        trained(fresh(), part, cache=tmp_path, cache_dtype="float32")
    with pytest.raises(InputError, match=r"was begun with other poolings"):
        trained(fresh(), part, cache=tmp_path, heads=["features.0/gap_linear"])


def test_features_that_float16_cannot_hold_are_refused(fresh, part, tmp_path):
    large = type(part)(
        inputs=part.inputs.float() * 1e7,
        labels=part.labels,
        class_names=part.class_names,
        ids=part.ids,
    )
    with pytest.raises(InputError, match="which float16 cannot hold; pass cache_dtype='float32'"):
        trained(fresh(), large, cache=tmp_path)


@pytest.mark.parametrize("name", ["cache.json", "features-1.bin"])
@pytest.mark.parametrize("keep", [0, 60])
def test_a_damaged_cache_is_named(fresh, part, tmp_path, name, keep):
    trained(fresh(), part, epochs=1, cache=tmp_path)
    file = tmp_path / "train" / name
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        FileFormatError,
        match=rf"(?s){name} (cannot be read|is missing or truncated).*Delete the folder",
    ):
        trained(fresh(), part, cache=tmp_path)


def test_a_file_that_was_exchanged_is_named(fresh, part, tmp_path):
    trained(fresh(), part, epochs=1, cache=tmp_path)
    file = tmp_path / "train" / "features-0.bin"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(FileFormatError, match="was damaged: what it holds has not the checksums"):
        trained(fresh(), part, cache=tmp_path)


def test_a_training_that_is_complete_computes_no_features_again(fresh, part, tmp_path):
    first, again = fresh(), fresh()
    options = {"cache": tmp_path / "c", "checkpoint": tmp_path / "heads.safetensors"}
    wanted = trained(first, part, **options)
    shutil.rmtree(tmp_path / "c")
    seen = runs(again)
    assert trained(again, part, **options) == wanted
    assert seen == []
    assert not (tmp_path / "c").exists()
    for name, value in heads(first).items():
        assert torch.equal(value, heads(again)[name]), name
