"""Default exits are spread over the operations, whatever masks and contexts go along."""

import pytest
import torch
from torch import Tensor, nn

from offramp.models import cifar_resnet
from offramp.stages import choose_points, cut, cut_points

DEPTH, TOKENS, WIDTH = 12, 6, 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        weights = (h @ h.mT).masked_fill(~mask, -1e9).softmax(dim=-1)
        h = h + self.mix(weights @ h)
        return h + self.down(self.up(h).relu())


class LocalAndGlobal(nn.Module):
    """Layers read a local mask but for each third, which reads the global one; so do the last."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(20, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        whole = mask.bool()[:, None, :].expand(-1, TOKENS, -1)
        places = torch.arange(TOKENS)
        near = whole & ((places[:, None] - places).abs() < 2)
        h = self.embeddings(ids)
        for k, layer in enumerate(self.layers):
            h = layer(h, whole if k % 3 == 0 else near)
        return self.head(h.mean(dim=1))


def test_layers_between_carry_more_masks_and_get_their_exits_all_the_same():
    net = LocalAndGlobal().eval()
    example = {"ids": torch.randint(20, (1, TOKENS)), "mask": torch.ones(1, TOKENS)}
    points = cut_points(net, example)
    widths = {len(p.live) for p in points if p.name.count(".") == 1}
    assert widths == {2, 3}  # less is carried towards the end
    chosen = choose_points(points, quantiles=3)
    assert [p.name for p in chosen] == ["layers.2", "layers.5", "layers.8"]
    assert [p.share for p in chosen] == pytest.approx([1 / 4, 2 / 4, 3 / 4], abs=0.02)
    ends = [p.name for p in choose_points(points)]
    assert ends[1:-1] == [f"layers.{k}" for k in range(DEPTH - 1)]
    assert len(cut(net, [p.name for p in chosen], example)) == 4


class Conditioned(nn.Module):
    """Two contexts made with weights go along, one to the tenth block, one to the last but one."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, WIDTH)
        self.short, self.long = nn.Linear(4, WIDTH), nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, WIDTH))
            for _ in range(DEPTH)
        )
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, short, long = self.first(x), self.short(x), self.long(x)
        for k, block in enumerate(self.blocks):
            h = h + block(h)
            if k < 10:
                h = h * short
            if k < 11:
                h = h + long
        return self.last(h)


def test_contexts_that_are_made_with_weights_go_along_as_well():
    points = cut_points(Conditioned().eval(), torch.rand(1, 4))
    chosen = choose_points(points, quantiles=3)
    assert [p.share for p in chosen] == pytest.approx([1 / 4, 2 / 4, 3 / 4], abs=0.05)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))


def test_the_input_that_the_first_block_adds_is_no_mask():
    net = nn.Sequential(*(Residual() for _ in range(4)), nn.Linear(8, 3)).eval()
    points = cut_points(net, torch.rand(1, 8))
    assert [p.name for p in choose_points(points)] == ["0", "1", "2", "3"]


def test_resnets_keep_the_exits_that_they_had():
    points = cut_points(cifar_resnet(14).eval(), torch.zeros(1, 3, 32, 32))
    ends = [*("relu", "layer1.0", "layer1", "layer2.0", "layer2", "layer3.0", "layer3")]
    assert [p.name for p in choose_points(points)] == ends
    assert [p.along for p in points] == [0] * len(points)


@pytest.mark.slow
def test_modernbert_and_gemma_are_cut_where_people_would():
    transformers = pytest.importorskip("transformers")
    example = {
        "input_ids": torch.randint(5, 99, (1, 12)),
        "attention_mask": torch.ones(1, 12).long(),
    }
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 2, "num_labels": 4}
    sizes |= {"intermediate_size": 48, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    bert = transformers.ModernBertConfig(
        **sizes, num_hidden_layers=22, cls_token_id=2, sep_token_id=3, local_attention=8
    )
    net = transformers.ModernBertForSequenceClassification(bert).eval()
    chosen = choose_points(cut_points(net, example), quantiles=4)
    assert [p.name for p in chosen] == [f"model.layers.{k}" for k in (3, 8, 12, 17)]
    gemma = transformers.Gemma2Config(
        **sizes, num_hidden_layers=8, num_key_value_heads=1, head_dim=16, sliding_window=8
    )
    net = transformers.Gemma2ForSequenceClassification(gemma).eval()
    chosen = choose_points(cut_points(net, example), quantiles=3)
    assert [p.name for p in chosen] == [f"model.layers.{k}" for k in (1, 3, 5)]
