import pickle

import numpy as np
import pytest
import torch

from offramp._core.errors import FileFormatError, InputError
from offramp.models import cifar_resnet, load_weights, resnet21, save_weights, small_cnn


def net(seed=0, width=0.25):
    return cifar_resnet(8, width=width, seed=seed)


def same(one, other) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def trained(seed=1):
    """A network whose normalization has seen data, so that every entry is its own."""
    module = net(seed)
    module(torch.rand((4, 3, 8, 8), generator=torch.Generator().manual_seed(seed)))
    return module


def write_npz(path, state):
    np.savez(path, **{k: v.numpy() for k, v in state.items() if "num_batches" not in k})


@pytest.mark.parametrize("make", [trained, resnet21, lambda: small_cnn(width=2, depth=3)])
def test_weights_come_back_exactly(tmp_path, make):
    first = make()
    save_weights(first, tmp_path / "w.safetensors")
    second = make()
    for parameter in second.parameters():
        torch.nn.init.zeros_(parameter)
    load_weights(second, tmp_path / "w.safetensors")
    assert same(first, second)


def test_arrays_without_batch_counters_are_enough(tmp_path):
    write_npz(tmp_path / "w.npz", trained().state_dict())
    target = net()
    load_weights(target, tmp_path / "w.npz")
    x = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(target.eval()(x), trained().eval()(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "lr": 0.1},
    ],
)
@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".ckpt"])
def test_torch_files_are_read_plain_nested_or_prefixed(tmp_path, wrap, ending):
    torch.save(wrap(dict(trained().state_dict())), tmp_path / f"w{ending}")
    target = net()
    load_weights(target, tmp_path / f"w{ending}")
    assert same(target, trained())


def test_missing_unexpected_and_different_names_are_told_in_one_error(tmp_path):
    state = dict(net().state_dict())
    del state["conv1.weight"], state["linear.bias"]
    state["extra"] = torch.zeros(1)
    state["linear.weight"] = torch.zeros(3, 16)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(FileFormatError) as caught:
        load_weights(net(), tmp_path / "w.pt")
    for part in (
        "w.pt do not fit ResNet",
        "2 missing (conv1.weight, linear.bias)",
        "1 unexpected (extra)",
        "1 of another shape (linear.weight (3, 16) instead of (10, 16))",
    ):
        assert part in str(caught.value)


def test_only_the_first_few_names_are_listed(tmp_path):
    torch.save({"conv1.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "w.pt")
    with pytest.raises(
        FileFormatError, match=r"missing \(bn1\.weight, .*bn1\.running_mean and \d+ more"
    ):
        load_weights(net(), tmp_path / "w.pt")


def test_a_network_stays_as_it_was_when_the_weights_do_not_fit(tmp_path):
    save_weights(net(seed=1, width=0.5), tmp_path / "w.safetensors")
    target = net(seed=2)
    with pytest.raises(FileFormatError, match="of another shape"):
        load_weights(target, tmp_path / "w.safetensors")
    assert same(target, net(seed=2))


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".pt"])
def test_truncated_missing_and_foreign_files_are_refused_by_name(tmp_path, ending):
    whole = tmp_path / f"whole{ending}"
    if ending == ".npz":
        write_npz(whole, net().state_dict())
    elif ending == ".pt":
        torch.save(net().state_dict(), whole)
    else:
        save_weights(net(), whole)
    content = whole.read_bytes()
    (tmp_path / f"half{ending}").write_bytes(content[: len(content) // 2])
    (tmp_path / f"text{ending}").write_text("these are not weights")
    (tmp_path / f"empty{ending}").write_bytes(b"")
    for name in ("half", "text", "empty", "none"):
        with pytest.raises(FileFormatError, match=rf"{name}\{ending}"):
            load_weights(net(), tmp_path / f"{name}{ending}")


class Hostile:
    ran = False

    def __reduce__(self):
        return (setattr, (Hostile, "ran", True))


def test_pickled_objects_are_refused_and_never_run(tmp_path):
    torch.save({"conv1.weight": Hostile()}, tmp_path / "a.pt")
    (tmp_path / "b.bin").write_bytes(pickle.dumps(Hostile(), protocol=2))
    np.savez(tmp_path / "c.npz", weight=np.array([Hostile()], dtype=object))
    for name in ("a.pt", "b.bin", "c.npz"):
        with pytest.raises(FileFormatError, match=name):
            load_weights(net(), tmp_path / name)
    assert not Hostile.ran


def test_a_torch_file_of_something_else_says_what_it_holds(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(FileFormatError, match="holds a list instead of named tensors"):
        load_weights(net(), tmp_path / "list.pt")
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "other.pt")
    with pytest.raises(FileFormatError, match=r"2 not tensors \(epoch, optimizer\)"):
        load_weights(net(), tmp_path / "other.pt")


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"must end with one of \.safetensors, .* got 'w\.pkl'"):
        load_weights(net(), tmp_path / "w.pkl")
    with pytest.raises(InputError, match=r"must end with \.safetensors, got 'w\.pt'"):
        save_weights(net(), tmp_path / "w.pt")


def test_shared_weights_are_written_for_both_names(tmp_path):
    def tied():
        module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        module[1].weight = module[0].weight
        return module

    first, second = tied(), tied()
    save_weights(first, tmp_path / "w.safetensors")
    load_weights(second, tmp_path / "w.safetensors")
    assert same(first, second)
    assert second[0].weight is second[1].weight


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    save_weights(net(seed=1), tmp_path / "w.safetensors")

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("offramp.models.weights.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_weights(net(seed=2), tmp_path / "w.safetensors", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
    target = net()
    load_weights(target, tmp_path / "w.safetensors")
    assert same(target, net(seed=1))


def test_no_damage_to_a_file_is_more_than_a_format_error(tmp_path):
    rng = np.random.default_rng(0)
    module = small_cnn(width=2, depth=2)
    sources = [tmp_path / f"w{ending}" for ending in (".safetensors", ".npz", ".pt", ".bin")]
    save_weights(module, sources[0])
    write_npz(sources[1], module.state_dict())
    torch.save(module.state_dict(), sources[2])
    torch.save(module.state_dict(), sources[3], _use_new_zipfile_serialization=False)
    refused = 0
    for source in sources:
        content = source.read_bytes()
        for round_ in range(60):
            damaged = bytearray(content)
            if round_ % 2:
                del damaged[rng.integers(len(damaged)) :]
            else:
                damaged[rng.integers(min(len(damaged), 2000))] = rng.integers(256)
            source.write_bytes(damaged)
            try:
                load_weights(module, source)
            except FileFormatError:
                refused += 1
    assert refused >= 120  # every truncated one
