"""Where a network can be cut nowhere, everybody says why, and torch's graphs stay unprinted."""

import sys
import threading

import pytest
import torch
from torch import Tensor, nn

from offramp._core.errors import InputError, UnsupportedError
from offramp.stages import choose_points, cut, cut_points
from offramp.stages.cutting.quiet import quiet, shortened
from offramp.train.class_exits.points import attachment_points


class Mixing(nn.Module):
    """Each example looks at all the others."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.second((h @ h.T).softmax(dim=1) @ h)


class Picking(Mixing):
    """Picks out the marked places of all examples at once, as BART does."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        marked = h[(x[:, 0] * 0).eq(0)]
        return self.second(marked.view(x.shape[0], -1))


def test_examples_that_mix_are_the_reason():
    net, example = Mixing().eval(), torch.rand(1, 4)
    with pytest.raises(UnsupportedError, match="brings all examples of the batch together") as told:
        cut_points(net, example)
    assert str(told.value).startswith("The network can be cut nowhere: ")
    with pytest.raises(UnsupportedError, match="brings all examples of the batch together"):
        cut(net, ["first"], example)
    with pytest.raises(UnsupportedError, match="brings all examples of the batch together"):
        attachment_points(net, example)


def test_rows_picked_by_their_values_are_a_reason():
    with pytest.raises(UnsupportedError):
        cut_points(Picking().eval(), torch.rand(1, 4))


class Merged(nn.Module):
    """Only where the batch and another axis are one could it be cut."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.reshape(-1, 4))
        return self.second(h.reshape(x.shape[0], -1))


def test_a_region_of_merged_axes_is_a_reason():
    with pytest.raises(UnsupportedError, match=r"can be cut nowhere.*not one axis of their own"):
        cut_points(Merged().eval(), torch.rand(1, 2, 4))


def test_a_network_of_one_layer_has_none_before_its_end():
    with pytest.raises(UnsupportedError, match="no layer before the one that ends it"):
        cut_points(nn.Linear(4, 3).eval(), torch.rand(1, 4))


def test_choosing_among_none_says_who_knows_why():
    with pytest.raises(InputError, match=r"got none.*cut_points says why"):
        choose_points([])


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if (h.sum() > 0).item():
            h = -h
        return self.second(h)


def test_no_graph_is_printed_before_the_error(capfd):
    with pytest.raises(UnsupportedError, match="decides by the values of its input") as told:
        cut_points(Deciding().eval(), torch.rand(1, 4))
    shown = capfd.readouterr()
    assert "graph" not in shown.err + shown.out
    assert "aten" not in shown.err + shown.out
    assert len(str(told.value)) < 1000


def test_what_other_threads_write_passes(capsys):
    with quiet():
        sys.stderr.write("a graph of 700 lines\n")
        other = threading.Thread(target=lambda: sys.stderr.write("from another thread\n"))
        other.start()
        other.join()
    sys.stderr.write("afterwards\n")
    assert capsys.readouterr().err == "from another thread\nafterwards\n"


def test_long_errors_of_torch_are_cut_off():
    assert shortened("first\n\nsecond\nthird") == "first second"
    assert len(shortened("x" * 100_000)) < 400


@pytest.mark.slow
def test_bart_says_why():
    transformers = pytest.importorskip("transformers")
    config = transformers.BartConfig(
        vocab_size=99, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2
    )
    config.decoder_attention_heads, config.encoder_ffn_dim, config.decoder_ffn_dim = 2, 24, 24
    net = transformers.BartForSequenceClassification(config).eval()
    ids = torch.randint(5, 99, (1, 12))
    ids[:, -1] = config.eos_token_id
    with pytest.raises(UnsupportedError, match="brings all examples of the batch together"):
        cut_points(net, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
