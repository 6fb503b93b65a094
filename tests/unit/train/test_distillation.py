"""A larger network teaches a smaller one by its probabilities, beside the labels."""

import math

import pytest
import torch
from torch import nn

from offramp._core.errors import InputError
from offramp.data import Dataset, arrays, digits
from offramp.models import small_cnn
from offramp.stages import Normalize
from offramp.train import train_classifier
from offramp.train.distillation import soft_label_loss

SCALE = Normalize(1 / 16)
OPTIONS = {"seed": 0, "batch_size": 25, "transform": SCALE, "progress": False}


def soft_label_loss_slow(logits, soft, labels):
    """One example and one class at a time, in double precision."""
    found = []
    for own, other, label in zip(logits.tolist(), soft.tolist(), labels.tolist(), strict=True):
        wanted = [math.exp(v / 4) / sum(math.exp(u / 4) for u in other) for v in other]
        given = [math.exp(v / 4) / sum(math.exp(u / 4) for u in own) for v in own]
        distance = sum(p * math.log(p / q) for p, q in zip(wanted, given, strict=True))
        hard = -math.log(math.exp(own[label]) / sum(math.exp(v) for v in own))
        found.append(0.9 * 16 * distance + 0.1 * hard)
    return torch.tensor(found)


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_on_soft_labels_is_that_of_one_class_at_a_time(seed):
    numbers = torch.Generator().manual_seed(seed)
    logits, soft = (5 * torch.randn(7, 4, generator=numbers) for _ in range(2))
    labels = torch.randint(4, (7,), generator=numbers)
    wanted = soft_label_loss_slow(logits, soft, labels)
    torch.testing.assert_close(soft_label_loss(logits, soft, labels), wanted)
    logits.requires_grad_()
    soft.requires_grad_()
    soft_label_loss(logits, soft, labels).sum().backward()
    assert soft.grad is None  # the teacher learns nothing


def test_huge_logits_of_a_teacher_give_a_finite_loss():
    sure = torch.tensor([[1e4, -1e4]])
    assert soft_label_loss(-sure, sure, torch.tensor([0])).isfinite().all()


@pytest.fixture(scope="module")
def part() -> Dataset:
    return digits().split_into({"train": 300}, seed=0)


@pytest.fixture(scope="module")
def teacher(part):
    net = small_cnn(width=8, depth=2)
    train_classifier(net, part, epochs=8, **OPTIONS)
    return net


def share_right(net, part):
    with torch.inference_mode():
        right = net(SCALE(part.inputs)).argmax(dim=1) == part.labels
    return float(right.double().mean())


def test_a_network_learns_from_its_teacher_what_the_labels_do_not_say(part, teacher):
    mixed = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
    wrong = arrays(part.inputs, part.labels[mixed])
    found = {}
    for name, source in (("labels", None), ("teacher", teacher)):
        net = small_cnn(width=4, depth=2)
        train_classifier(net, wrong, epochs=8, distill_from=source, **OPTIONS)
        found[name] = share_right(net, part)
    assert found["labels"] < 0.3
    assert found["teacher"] > 0.6


def test_the_teacher_stays_as_it_is(part):
    teacher = nn.Sequential(small_cnn(width=4, depth=2), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    train_classifier(small_cnn(width=2, depth=2), part, epochs=1, distill_from=teacher, **OPTIONS)
    assert teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_it_goes_on_from_a_checkpoint_with_the_same_teacher_alone(part, teacher, tmp_path):
    class Enough(Exception):
        pass

    def stop(epoch, _loss):
        if epoch == 2:
            raise Enough

    given = {**OPTIONS, "epochs": 3, "distill_from": teacher}
    whole, broken, again = (small_cnn(width=2, depth=2) for _ in range(3))
    wanted = train_classifier(whole, part, **given)
    given["checkpoint"] = tmp_path / "student.safetensors"
    with pytest.raises(Enough):
        train_classifier(broken, part, on_epoch=stop, **given)
    for other in (small_cnn(width=8, depth=2, seed=5), None):
        with pytest.raises(InputError, match="a training with other distill_from"):
            train_classifier(again, part, **{**given, "distill_from": other})
    assert train_classifier(again, part, **given) == wanted
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ("resnet56", "distill_from must be a torch.nn.Module that is trained, got str"),
        (
            small_cnn(width=2, depth=2, classes=12),
            r"as many logits as the network that learns, \(25, 10\) for a batch, got \(25, 12\)",
        ),
    ],
)
def test_what_cannot_teach_is_refused(part, teacher, said):
    with pytest.raises(InputError, match=said):
        train_classifier(
            small_cnn(width=2, depth=2), part, epochs=1, distill_from=teacher, **OPTIONS
        )


class Says(nn.Module):
    """A teacher that does something to its input, or says something of no use."""

    def __init__(self, does):
        super().__init__()
        self.does = does

    def forward(self, x):
        return self.does(x)


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lambda x: torch.full((len(x), 10), torch.nan), "distill_from must give finite logits"),
        (lambda x: torch.full((len(x), 10), -torch.inf), "distill_from must give finite logits"),
        (nn.Conv2d(7, 10, 1), "distill_from must be .* cannot run on a batch of it"),
    ],
)
def test_a_teacher_that_cannot_answer_is_named(part, does, said):
    with pytest.raises(InputError, match=said):
        train_classifier(
            small_cnn(width=2, depth=2), part, epochs=1, distill_from=Says(does), **OPTIONS
        )


def test_a_teacher_that_writes_into_its_input_spoils_nothing(part):
    answers = torch.linspace(0, 1, 10)
    losses = []
    for does in (lambda x: answers.repeat(len(x), 1), lambda x: answers.repeat(len(x.zero_()), 1)):
        network = small_cnn(width=2, depth=2, seed=1)
        losses.append(train_classifier(network, part, epochs=1, distill_from=Says(does), **OPTIONS))
    assert losses[0] == losses[1]


def test_a_teacher_of_another_kind_is_another_though_neither_has_weights(part, tmp_path):
    class Other(Says):
        pass

    given = {**OPTIONS, "checkpoint": tmp_path / "c.safetensors"}
    flat = lambda x: torch.zeros(len(x), 10)  # noqa: E731
    train_classifier(small_cnn(width=2, depth=2), part, epochs=1, distill_from=Says(flat), **given)
    with pytest.raises(InputError, match="a training with other teacher"):
        train_classifier(
            small_cnn(width=2, depth=2), part, epochs=1, distill_from=Other(flat), **given
        )
