"""Two writers of one state that is written bit by bit: the second is told, and harms nothing."""

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from offramp import Cascade, Costs, record
from offramp._core import temporaries
from offramp._core.errors import BusyError
from offramp._core.temporaries import locked
from offramp.cli import main
from offramp.data import arrays
from offramp.models import cifar_resnet, make_head, small_cnn
from offramp.recording.partial import parts_of
from offramp.train import train_classifier, train_heads, train_joint
from offramp.train.class_exits import Recipe, sweep_branches

IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
PART = arrays(IMAGES, [k % 2 for k in range(40)])
BUSY = "is being written by another process. Wait until that has ended"


def loader():
    return [(torch.ones(2, 4) * k, torch.tensor([0, 1])) for k in range(3)]


def recorded(path):
    cascade = Cascade.from_models({"a": nn.Linear(4, 3)})
    costs = Costs.simple("usd", [1.0])
    return record(cascade, loader(), path=path, costs=costs, progress=False)


def heads(**options):
    net = small_cnn(width=2, depth=2, classes=2).eval()
    head = make_head("gap_linear", (2, 8, 8), classes=2)
    cascade = Cascade.from_network(
        net, ["features.0"], head={"features.0": head}, example=IMAGES[:1]
    )
    return train_heads(cascade, PART, epochs=1, seed=0, progress=False, **options)


def classifier(path):
    part = arrays(torch.rand(8, 4), [0, 1] * 4)
    return train_classifier(
        nn.Linear(4, 2), part, epochs=1, seed=0, checkpoint=path, progress=False
    )


def joint(path):
    part = arrays(torch.eye(4).repeat(20, 1), [0, 1] * 40)
    cascade = Cascade.from_models({"small": nn.Linear(4, 2), "large": nn.Linear(4, 2)})
    costs = Costs.simple("usd", [1.0, 3.0])
    return train_joint(
        cascade, part, cost_weight=0.1, epochs=1, seed=0, costs=costs, checkpoint=path
    )


def branches(path):
    part = arrays(IMAGES.expand(-1, 3, -1, -1), [k % 2 for k in range(40)])
    parts = part.split_into({"train": 20, "fit": 20}, seed=0, stratified=True)
    net = cifar_resnet(8, width=0.25, classes=2).eval()
    return sweep_branches(
        net, parts, path.parent, sampled=1, recipe=Recipe(epochs=1), progress=False
    )


STATES = {
    "record": (recorded, "t.trace", parts_of),
    "heads": (lambda path: heads(checkpoint=path), "h.safetensors", Path),
    "cache": (lambda path: heads(cache=path), "cache", lambda path: path / "train"),
    "classifier": (classifier, "c.safetensors", Path),
    "joint": (joint, "j.safetensors", Path),
}
SLOW = pytest.param(branches, "branches.safetensors", Path, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("write", "name", "state"), [*STATES.values(), SLOW], ids=[*STATES, "branches"]
)
def test_a_state_that_somebody_writes_is_refused_and_then_free(tmp_path, write, name, state):
    path = tmp_path / name
    with locked(state(path)), pytest.raises(BusyError, match=BUSY):
        write(path)
    write(path)
    assert not list(tmp_path.rglob(".offramp-*"))


def test_the_second_of_two_recordings_does_not_touch_the_first(tmp_path):
    path, second = tmp_path / "t.trace", []
    cascade = Cascade.from_models({"a": nn.Linear(4, 3)})
    costs = Costs.simple("usd", [1.0])

    def batches():
        for k, batch in enumerate(loader()):
            if k == 1:  # in the middle of the first
                with pytest.raises(BusyError, match=r"t\.trace\.partial is being written"):
                    record(cascade, loader(), path=path, costs=costs, progress=False)
                second.append(True)
            yield batch

    found = record(cascade, batches(), path=path, costs=costs, progress=False)
    assert second
    assert torch.equal(found.logits, record(cascade, loader(), costs=costs, progress=False).logits)


def test_a_lock_goes_with_its_holder_and_a_moment_s_lock_is_waited_for(tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a"):
        raise ZeroDivisionError
    state = temporaries._flock
    busy = iter(["busy", "busy"])
    monkeypatch.setattr(temporaries, "_flock", lambda *a, **k: next(busy, None) or state(*a, **k))
    with locked(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_of_many_threads_one_at_a_time_has_the_lock(tmp_path):
    inside, most, refused = [], [], []

    def work():
        for _ in range(20):
            try:
                with locked(tmp_path / "a"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except BusyError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(refused) == 80


def test_the_shell_says_it_with_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(
        '[data]\nkind = "digits"\nsplits = { fit = 20, calibrate = 20, test = 20 }\n'
        '[[stage]]\nname = "a"\nmodel = "small_cnn"\narguments = { width = 2, depth = 2 }\n'
        'transform = { kind = "normalize", scale = 0.0625 }\n'
    )
    with locked(Path("t.trace.partial")):
        assert main(["record", "--config", "c.toml", "--out", "t.trace"]) == 2
    assert "t.trace.partial is being written by another process" in capsys.readouterr().err
