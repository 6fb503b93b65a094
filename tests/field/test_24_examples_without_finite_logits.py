import json

import numpy as np
import pytest
import torch
from torch import nn

import offramp
from offramp._core.errors import InputError
from offramp._core.types import SPLITS
from offramp.cli import main
from offramp.data import arrays
from offramp.models import save_weights, small_cnn
from offramp.stages import Cascade, given_costs
from offramp.trace import load_trace, save_trace

N, BAD = 60, (17, 40)


class Net(nn.Module):
    """Gives NaN, or infinity, where the first number is huge."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        logits = x[:, 1:4] * 1.0
        logits[x[:, 0] > 1e3, 1] = self.value
        return logits


def inputs():
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    x[list(BAD), 0] = 1e6
    return x


LABELS = torch.arange(N) % 3


def go(nonfinite, *, value=float("nan"), ids=None, batch_size=10, data=None, **arguments):
    cascade = Cascade.from_models({"a": Net(0.0), "b": Net(value)})
    data = arrays(inputs(), LABELS) if data is None else data
    if ids is not None:
        data = [
            (inputs()[k : k + 10], LABELS[k : k + 10], ids[k : k + 10]) for k in range(0, N, 10)
        ]
    costs = given_costs(cascade, "u", {"a": 1.0, "b": 9.0})
    return offramp.record(
        cascade,
        data,
        costs=costs,
        progress=False,
        batch_size=batch_size,
        nonfinite=nonfinite,
        **arguments,
    )


def test_by_default_it_is_refused_with_the_example_and_the_ways_out():
    with pytest.raises(InputError, match=r"example 17, stage 'b'.*nonfinite='skip'.*'wrong'"):
        go("error")
    names = [f"file {k}" for k in range(N)]
    with pytest.raises(InputError, match="example 'file 17', stage 'b'"):
        go("error", ids=names)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_skip_leaves_such_examples_out_and_says_so(tmp_path, value, on_disk, dtype):
    path = tmp_path / "t.trace" if on_disk else None
    with pytest.warns(UserWarning, match=r"2 of 60 examples left out.*'b' for 2\): 17, 40\."):
        trace = go("skip", value=value, path=path, dtype=dtype)
    kept = [k for k in range(N) if k not in BAD]
    assert trace.ids.tolist() == kept
    assert trace.labels.tolist() == LABELS[kept].tolist()
    torch.testing.assert_close(
        trace.logits.float(), inputs()[kept, None, 1:].expand(-1, 2, -1), atol=2e-3, rtol=0
    )
    assert "17, 40" in trace.notes[0]


@pytest.mark.parametrize("on_disk", [False, True])
def test_wrong_keeps_them_and_lets_the_stage_be_wrong_and_unsure(tmp_path, on_disk):
    with pytest.warns(UserWarning, match="2 of 60 examples counted as wrong"):
        trace = go("wrong", path=tmp_path / "t.trace" if on_disk else None)
    assert len(trace) == N
    for row in BAD:
        probability, label = trace.logits[row, 1].softmax(0).max(0)
        assert label != trace.labels[row]
        assert float(probability) == pytest.approx(1 / 3, abs=1e-3)
    torch.testing.assert_close(trace.logits[:, 0], Net(0.0)(inputs()))
    assert trace.notes == load_trace(tmp_path / "t.trace").notes if on_disk else trace.notes


def test_a_recording_that_stopped_there_goes_on_under_another_choice(tmp_path):
    path = tmp_path / "t.trace"
    for _ in range(2):
        with pytest.raises(InputError, match="example 17"):
            go("error", path=path)
    with pytest.warns(UserWarning, match="2 of 60"):
        trace = go("skip", path=path)
    with pytest.warns(UserWarning, match="2 of 60"):
        other = go("skip")
    torch.testing.assert_close(trace.logits, other.logits)
    assert trace.ids.tolist() == other.ids.tolist()
    assert trace.notes == other.notes


def test_a_recording_interrupted_after_such_an_example_still_knows_it(tmp_path):
    path = tmp_path / "t.trace"

    def cut_short():
        for k in range(0, N, 10):
            if k == 50:
                raise KeyboardInterrupt
            yield inputs()[k : k + 10], LABELS[k : k + 10]

    for how in ("skip", "wrong"):
        with pytest.raises(KeyboardInterrupt):
            go(how, path=path, data=cut_short(), resume=how == "wrong")
    loader = [(inputs()[k : k + 10], LABELS[k : k + 10]) for k in range(0, N, 10)]
    with pytest.raises(InputError, match="example 17, stage 'b'"):
        go("error", path=path, data=loader)
    with pytest.warns(UserWarning, match="counted as wrong"):
        assert len(go("wrong", path=path, data=loader)) == N


def test_splits_of_the_data_set_stay_with_their_examples():
    data = arrays(inputs(), LABELS, split=[SPLITS[k % 4] for k in range(N)])
    with pytest.warns(UserWarning, match="2 of 60"):
        trace = go("skip", data=data)
    assert trace.split.tolist() == [k % 4 for k in range(N) if k not in BAD]


def test_where_nothing_is_left_it_is_said():
    data = [(inputs()[list(BAD)], LABELS[:2])]
    with pytest.raises(InputError, match="nothing is left"):
        go("skip", data=data)


def test_notes_survive_saving(tmp_path):
    with pytest.warns(UserWarning, match="2 of 60"):
        trace = go("skip")
    save_trace(trace, tmp_path / "again.trace")
    assert load_trace(tmp_path / "again.trace").notes == trace.notes


def test_a_trace_with_nothing_to_note_is_written_as_before(tmp_path):
    go("skip", data=arrays(inputs()[:10], LABELS[:10]), path=tmp_path / "t.trace")
    assert "notes" not in json.loads((tmp_path / "t.trace" / "trace.json").read_text())


CONFIG = """
[data]
kind = "npz"
path = "data.npz"

[[stage]]
name = "small"
model = "small_cnn"
arguments = { width = 2, depth = 2, classes = 3 }
weights = "net.safetensors"
transform = { kind = "normalize", scale = 1e30 }
"""


@pytest.mark.parametrize("how", ["option", "section"])
def test_the_shell_has_the_same_choice(tmp_path, capsys, how):
    images = np.random.default_rng(0).random((12, 1, 8, 8), dtype=np.float32) * 1e-30
    images[5] = 1e20  # overflows
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(12) % 3)
    arguments = {"width": 2, "depth": 2, "classes": 3}
    save_weights(small_cnn(**arguments), tmp_path / "net.safetensors")
    config = tmp_path / "run.toml"
    config.write_text(CONFIG)
    call = ["record", "--config", str(config), "--out", str(tmp_path / "t.trace"), "--json"]
    assert main(call) == 2
    assert "--on-nonfinite skip" in capsys.readouterr().err
    if how == "section":
        config.write_text(CONFIG + '\n[record]\non_nonfinite = "skip"\n')
    else:
        assert main([*call, "--on-nonfinite", "drop"]) == 2
        assert "must be one of" in capsys.readouterr().err
        call += ["--on-nonfinite", "skip"]
    assert main(call) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["n"] == 11
    assert "1 of 12 examples left out" in found["notes"][0]
    assert "1 of 12 examples left out" in shown.err
