import pytest
import torch
from torch import nn

from offramp._core.errors import FileFormatError, InputError
from offramp.data import arrays, digits
from offramp.models import small_cnn
from offramp.stages import Normalize
from offramp.train import train_classifier


@pytest.fixture(scope="module")
def part():
    return digits().split_into({"train": 300}, seed=0)


def trained(part, *, seed=0, dropout=0.0, **options):
    net = nn.Sequential(small_cnn(width=4, depth=2), nn.Dropout(dropout))
    losses = train_classifier(
        net, part, epochs=3, seed=seed, transform=Normalize(1 / 16), progress=False, **options
    )
    return net, losses


def test_training_lowers_the_loss_and_learns_the_digits(part):
    net = small_cnn(width=4, depth=2)
    losses = train_classifier(
        net, part, epochs=12, seed=0, batch_size=16, transform=Normalize(1 / 16), progress=False
    )
    assert len(losses) == 12
    assert losses[-1] < 0.5 * losses[0]
    assert not net.training
    with torch.inference_mode():
        right = net(part.inputs / 16).argmax(dim=1) == part.labels
    assert right.double().mean() > 0.8


def test_the_same_seed_gives_the_same_weights_and_another_does_not(part):
    one, losses = trained(part, dropout=0.3)
    torch.rand(7)  # what others draw changes nothing
    same, again = trained(part, dropout=0.3)
    other, _ = trained(part, dropout=0.3, seed=1)
    assert losses == again
    for a, b in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not all(
        torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


def test_the_global_random_state_is_left_alone(part):
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 10))
    before = torch.get_rng_state()
    train_classifier(net, part, epochs=1, seed=0, transform=Normalize(1 / 16), progress=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_is_no_number_stops_with_its_place(part):
    images = part.inputs.float()
    images[5] = torch.nan
    broken = arrays(images, part.labels)
    net = small_cnn(width=2, depth=2)
    with pytest.raises(InputError, match=r"loss became nan in epoch 1, with learning_rate=0\.01"):
        train_classifier(net, broken, epochs=2, seed=0, progress=False)


def test_whoever_is_told_of_an_epoch_can_end_the_training_and_it_goes_on_later(part, tmp_path):
    class Enough(Exception):
        pass

    def stop(epoch, loss):
        told.append((epoch, loss))
        if epoch == 2:
            raise Enough

    told = []
    options = {"batch_size": 50, "transform": Normalize(1 / 16), "progress": False}
    whole = small_cnn(width=2, depth=2)
    losses = train_classifier(whole, part, epochs=3, seed=0, **options)
    options["checkpoint"] = tmp_path / "c.safetensors"
    net = small_cnn(width=2, depth=2)
    with pytest.raises(Enough):
        train_classifier(net, part, epochs=3, seed=0, on_epoch=stop, **options)
    assert told == [(1, losses[0]), (2, losses[1])]
    assert not net.training
    again = small_cnn(width=2, depth=2)
    assert train_classifier(again, part, epochs=3, seed=0, **options) == losses
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_device_that_is_not_there_is_refused_before_anything_is_done(part):
    with pytest.raises(InputError, match="device must be one that torch knows"):
        train_classifier(small_cnn(width=2, depth=2), part, epochs=1, seed=0, device="nowhere")


def test_fewer_examples_than_a_batch_are_one_batch(part):
    _, losses = trained(part.take(torch.arange(10)), batch_size=64)
    assert len(losses) == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"learning_rate": 0.0}, r"learning_rate must be finite and greater than 0, got 0\.0"),
        ({"weight_decay": -1.0}, r"weight_decay must be finite and at least 0, got -1\.0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"on_epoch": 3}, "on_epoch must be a function, got int"),
    ],
)
def test_wrong_numbers_are_named(part, wrong, said):
    options = {"epochs": 1, "seed": 0, "progress": False, **wrong}
    with pytest.raises(InputError, match=said):
        train_classifier(small_cnn(width=2, depth=2), part, **options)


def shifted(batch, generator):
    return batch + torch.rand(len(batch), 1, 1, 1, generator=generator)


OPTIONS = {
    "epochs": 3,
    "seed": 4,
    "batch_size": 16,
    "transform": Normalize(1 / 16),
    "augment": shifted,
    "progress": False,
}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_training_that_goes_on_equals_one_without_interruption(part, tmp_path, optimizer):
    path = tmp_path / "training.safetensors"
    whole, broken, again = (small_cnn(width=4, depth=2) for _ in range(3))
    wanted = train_classifier(whole, part, optimizer=optimizer, **OPTIONS)
    seen = 0

    def stop(*_args):
        nonlocal seen
        seen += 1
        if seen > 2 * (len(part) // 16) + 1:
            raise KeyboardInterrupt

    broken.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(broken, part, optimizer=optimizer, checkpoint=path, **OPTIONS)
    found = train_classifier(again, part, optimizer=optimizer, checkpoint=path, **OPTIONS)
    assert found == wanted
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert train_classifier(again, part, optimizer=optimizer, checkpoint=path, **OPTIONS) == wanted


def test_a_checkpoint_of_another_training_is_refused(part, tmp_path):
    path = tmp_path / "training.safetensors"
    train_classifier(small_cnn(width=2, depth=2), part, checkpoint=path, **OPTIONS)
    with pytest.raises(InputError, match=r"belongs to a training with other learning_rate"):
        train_classifier(
            small_cnn(width=2, depth=2), part, checkpoint=path, learning_rate=0.5, **OPTIONS
        )
    with pytest.raises(FileFormatError, match="does not fit the network"):
        train_classifier(small_cnn(width=3, depth=2), part, checkpoint=path, **OPTIONS)


def test_bfloat16_trains_float32_weights(part):
    exact, rounded = small_cnn(width=4, depth=2), small_cnn(width=4, depth=2)
    wanted = train_classifier(exact, part, **OPTIONS)
    found = train_classifier(rounded, part, bfloat16=True, **OPTIONS)
    assert found != wanted
    assert found == pytest.approx(wanted, rel=0.05)
    assert all(p.dtype == torch.float32 for p in rounded.parameters())


def test_an_augmentation_must_keep_the_number_of_examples(part):
    with pytest.raises(InputError, match="augment must give as many examples as it gets, 64"):
        train_classifier(
            small_cnn(width=2, depth=2),
            part,
            epochs=1,
            seed=0,
            augment=lambda batch, _generator: batch[1:],
        )
