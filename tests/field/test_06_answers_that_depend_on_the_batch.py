import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

import offramp
from offramp._core.errors import InputError, UnsupportedError
from offramp.policy import Constant, Feature, Linear, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Stage, given_costs

WIDTH = 16


def draw(n=200):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, WIDTH, generator=generator) * (1 + torch.arange(n)[:, None] % 7)


def layers(*widths, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    made = []
    for a, b in pairwise(widths):
        layer = nn.Linear(a, b, dtype=dtype)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(b, a, generator=generator) / a**0.5)
        made += [layer, nn.ReLU()]
    return nn.Sequential(*made[:-1]).eval()


def dynamic_int8():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(
            layers(WIDTH, 32, 32, 4), {nn.Linear}, dtype=torch.qint8
        )


class WholeBatch(nn.Module):
    """Standardizes over the batch."""

    def __init__(self):
        super().__init__()
        self.f = layers(WIDTH, 4)

    def forward(self, x):
        return self.f((x - x.mean(0)) / (x.std(0) + 1))


class Experts(nn.Module):
    """Drops whoever comes to an expert that is full."""

    def __init__(self):
        super().__init__()
        self.f, self.experts = layers(WIDTH, 4), nn.ModuleList(layers(WIDTH, 4) for _ in range(4))

    def forward(self, x):
        chosen = x[:, :4].argmax(1)
        capacity = max(1, int(1.25 * len(x) / 4))
        found = self.f(x) * 0.0
        for k, expert in enumerate(self.experts):
            rows = (chosen == k).nonzero()[:capacity, 0]
            found[rows] = expert(x[rows]) + k
        return found


class ByPlace(nn.Module):
    """Takes the batch's axis for time."""

    def __init__(self):
        super().__init__()
        self.f = layers(WIDTH, 4)

    def forward(self, x):
        return self.f(x + 9 * torch.sin(torch.arange(len(x)).float())[:, None])


class Attends(nn.Module):
    """Looks at the other examples of the batch."""

    def __init__(self):
        super().__init__()
        self.f = layers(WIDTH, 4)

    def forward(self, x):
        return self.f((x @ x.T).softmax(1) @ x + x.mean(0))


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = layers(WIDTH, 4)

    def forward(self, x):
        return self.f(x).squeeze()


class Chance(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = layers(WIDTH, 4)

    def forward(self, x):
        return nn.functional.dropout(self.f(x), 0.5)  # training=True is its default


def unfixed():
    return nn.Sequential(nn.BatchNorm1d(WIDTH, track_running_stats=False), layers(WIDTH, 4)).eval()


DEPENDENT = {
    "dynamic int8": dynamic_int8,
    "batch norm": unfixed,
    "standardized": WholeBatch,
    "experts": Experts,
    "by place": ByPlace,
    "attends": Attends,
}


def cascade_of(net):
    return Cascade.from_models({"a": layers(WIDTH, 4), "b": net})


def model_of(cascade):
    return Adaptive(cascade, Policy(cascade.topology, {(0,): Node(Constant(False))}))


def go(cascade, loader):
    costs = given_costs(
        cascade, "u", {name: 4.0**k for k, name in enumerate(cascade.topology.names)}
    )
    return offramp.record(cascade, loader, costs=costs, progress=False)


def labeled(x):
    return [(x, torch.zeros(len(x), dtype=torch.int64))]


@pytest.mark.parametrize("kind", DEPENDENT)
def test_a_stage_that_looks_at_the_others_of_its_batch_is_not_recorded(kind):
    with pytest.raises(UnsupportedError, match=r"Stage 'b' answers an example otherwise .* span"):
        go(cascade_of(DEPENDENT[kind]()), labeled(draw()))


@pytest.mark.parametrize("kind", DEPENDENT)
def test_nor_does_it_run_adaptively_or_alone_in_a_cascade(kind):
    cascade = cascade_of(DEPENDENT[kind]())
    for model in (model_of(cascade), Adaptive.single(cascade, "b")):
        with pytest.raises(UnsupportedError, match="Stage 'b' answers an example otherwise"):
            model(draw())
        with pytest.raises(UnsupportedError, match="Stage 'b' answers an example otherwise"):
            model(draw())  # again, not only once


def test_an_exit_behind_such_a_segment_is_named():
    body = nn.Sequential(nn.BatchNorm1d(WIDTH, track_running_stats=False), nn.Linear(WIDTH, 8))
    stages = [
        Stage("early", layers(WIDTH, 4)),
        Stage("exit", body, head=layers(8, 4)),
        Stage("last", layers(8, 4), source="exit"),
    ]
    body.eval()
    with pytest.raises(UnsupportedError, match="Stage 'exit'"):
        go(Cascade(stages, edges="chain"), labeled(draw()))


def test_one_example_shows_nothing_and_the_next_batch_is_looked_at():
    x = draw()
    model = model_of(cascade_of(WholeBatch()))
    assert len(model(torch.zeros(3, WIDTH))) == 3  # all alike
    with pytest.raises(UnsupportedError, match="Stage 'b'"):
        model(x)
    loader = [(x[k : k + 1], torch.tensor([0])) for k in range(3)]
    with pytest.raises(UnsupportedError, match="Stage 'b'"):
        go(cascade_of(ByPlace()), [*loader, *labeled(x)])


def test_a_stage_that_does_not_run_on_one_example_is_told_so():
    with pytest.raises(UnsupportedError, match="not on one alone"):
        go(cascade_of(Squeezed()), labeled(draw()))


def test_a_stage_that_draws_at_random_is_told_apart():
    with pytest.raises(UnsupportedError, match="Stage 'b' gives another answer each time"):
        go(cascade_of(Chance()), labeled(draw()))
    with pytest.raises(UnsupportedError, match="gives another answer each time"):
        model_of(cascade_of(Chance()))(draw())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_rounding_of_any_precision_is_no_dependence(dtype):
    nets = {"a": layers(WIDTH, 64, 64, 64, 4, dtype=dtype), "b": layers(WIDTH, 64, 4, dtype=dtype)}
    cascade = Cascade.from_models(nets)
    assert go(cascade, labeled(draw().to(dtype))).classes == 4
    cascade = Cascade.from_models(nets)
    assert len(model_of(cascade)(draw().to(dtype))) == 200


def test_constant_and_equal_logits_are_no_dependence():
    class Constantly(nn.Module):
        def forward(self, x):
            return x[:, :4] * 1e-7 + 5.0

    cascade = Cascade.from_models({"a": layers(WIDTH, 4), "b": Constantly()})
    assert len(model_of(cascade)(draw())) == 200


def test_static_int8_passes():
    class Fixed(nn.Module):
        """Rounds to steps of a fixed size, as quantization with fixed scales does."""

        def __init__(self):
            super().__init__()
            self.f, self.g = layers(WIDTH, 32), layers(32, 4)

        def forward(self, x):
            steps = torch.fake_quantize_per_tensor_affine(self.f(x), 0.1, 0, -128, 127)
            return self.g(steps)

    assert go(cascade_of(Fixed()), labeled(draw())).classes == 4


def test_what_has_passed_once_is_not_run_again():
    seen = []
    net = layers(WIDTH, 4)
    net.register_forward_hook(lambda _m, _given, out: seen.append(len(out)))
    cascade = cascade_of(net)
    go(cascade, labeled(draw()))
    seen.clear()
    model = model_of(cascade)
    model(draw())
    model(draw())
    assert seen == [200, 200]


def test_stages_with_other_numbers_of_classes_or_rows_are_told_plainly():
    class Drops(nn.Module):
        def forward(self, x):
            return x[1:, :4]

    cascade = Cascade.from_models({"a": layers(WIDTH, 4), "b": layers(WIDTH, 5)})
    model = model_of(cascade)
    with pytest.raises(InputError, match="'a' gives 4, 'b' gives 5"):
        model(draw()[:5])
    topology = cascade.topology
    by_sign = Policy(topology, {(0,): Node(Linear.threshold(Feature("max_prob", 0), 0.999))})
    alone, seen = Adaptive(cascade, by_sign), draw()
    sure = Adaptive.single(cascade, "a")(seen).confidence > 0.999
    one, other = int((~sure).nonzero()[0]), int(sure.nonzero()[0])
    assert alone(seen[one : one + 1]).stage.tolist() == [1]
    with pytest.raises(InputError, match="must have the same classes, 5; one of"):
        alone(seen[other : other + 1])
    for model in (model_of(cascade_of(Drops())), Adaptive.single(cascade_of(Drops()), "b")):
        for n in (1, 5):
            with pytest.raises(InputError, match="'b' must answer for each of the"):
                model(draw()[:n])
