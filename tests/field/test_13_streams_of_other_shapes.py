import pytest
import torch
from torch import nn

from offramp.policy import Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Stage


def sure_of(cascade, bound):
    """Who is less sure than that goes on."""
    return Policy(cascade.topology, {(0,): Node(Linear.threshold(Feature("max_prob", 0), bound))})


class Bag(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.e = nn.EmbeddingBag(50, 4, mode="mean")
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            self.e.weight.copy_(torch.randn(50, 4, generator=generator))

    def forward(self, ids):
        return self.e(ids)


class Masked(Bag):
    def forward(self, ids, mask):
        return (self.e(ids[:, None].reshape(-1, 1)).reshape(*ids.shape, 4) * mask[:, :, None]).sum(
            1
        )


class Pool(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x.flatten(2).mean(2) * self.factor


def of_texts():
    return Cascade.from_models({"a": Bag(0), "b": Bag(1)})


def from_network():
    first = Stage("a", nn.Conv2d(4, 4, 3, padding=1), head=Pool(9.0))
    return Cascade([first, Stage("b", Pool(3.0), source="a")], edges="chain")


CASCADES = {
    "texts": of_texts,
    "masked": lambda: Cascade.from_models({"a": Masked(0), "b": Masked(1)}),
    "images": lambda: Cascade.from_models({"a": Pool(1.0), "b": Pool(3.0)}),
    "exits": from_network,
}


def batch_of(kind, n, length, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (n, length), generator=generator)
    if kind == "texts":
        return ids
    if kind == "masked":
        return {"ids": ids, "mask": torch.ones(n, length)}
    return torch.randn(n, 4, length, length + 1, generator=generator)


@pytest.mark.parametrize("kind", CASCADES)
@pytest.mark.parametrize("bound", [0.0, 0.4, 1.1])
@pytest.mark.parametrize("full", [1, 5, 64])
def test_survivors_wait_for_others_of_their_shape_and_each_is_answered_once(kind, bound, full):
    cascade = CASCADES[kind]()
    model = Adaptive(cascade, sure_of(cascade, bound))
    batches = [batch_of(kind, 4, length, k) for k, length in enumerate([12, 7, 12, 7, 3])]
    found = {}
    for ids, answer in model.stream(batches, batch_size=full):
        assert not found.keys() & set(ids.tolist())
        found |= {name: (answer, row) for row, name in enumerate(ids.tolist())}
    assert sorted(found) == list(range(20))
    for k, batch in enumerate(batches):
        wanted = model(batch)
        for row in range(4):
            answer, at = found[4 * k + row]
            assert answer.labels[at] == wanted.labels[row]
            assert answer.stage[at] == wanted.stage[row]
            torch.testing.assert_close(answer.log_probs[at], wanted.log_probs[row])


def test_batches_of_one_shape_are_still_joined_across_those_of_another():
    cascade = of_texts()
    sizes = []
    note = lambda _m, given, _out: sizes.append(given[0].shape)  # noqa: E731
    cascade.stage(1).module.register_forward_hook(note)
    for stage in cascade:
        stage.keeps_company = True
    model = Adaptive(cascade, sure_of(cascade, 1.1))
    batches = [batch_of("texts", 4, length, k) for k, length in enumerate([12, 7] * 4)]
    assert sum(len(ids) for ids, _ in model.stream(batches, batch_size=8)) == 32
    assert [tuple(size) for size in sizes] == [(8, 12), (8, 7), (8, 12), (8, 7)]


def test_types_of_input_may_differ_as_well():
    class Doubled(nn.Module):
        def forward(self, x):
            return x.double() * 2

    cascade = Cascade.from_models({"a": Doubled(), "b": Doubled()})
    model = Adaptive(cascade, sure_of(cascade, 1.1))
    batches = [torch.eye(3), torch.eye(3).int(), torch.eye(3).half()]
    assert sum(len(ids) for ids, _ in model.stream(batches)) == 9
