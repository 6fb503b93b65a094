"""Stage and Cascade: what runs, what is shared, what is refused."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from offramp._core.errors import InputError, TopologyError, UnknownNameError
from offramp.models import ModelSpec
from offramp.stages import Cascade, Normalize, Stage, evaluating

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Counted(nn.Module):
    """A linear layer that counts its calls."""

    def __init__(self, inputs, outputs, seed=0):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(outputs, inputs, generator=generator))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x)


def early_exits(**changes):
    """Segments a -> b -> c of one network; b has two alternative heads."""
    a, b, c = Counted(4, 6, 1), Counted(6, 6, 2), Counted(6, 6, 3)
    parts = {
        "a": Stage("a", a, head=Counted(6, 3, 4)),
        "b1": Stage("b1", b, head=Counted(6, 3, 5), source="a", group="b"),
        "b2": Stage("b2", b, head=Counted(6, 3, 6), source="a", group="b"),
        "c": Stage("c", c, head=Counted(6, 3, 7), source="b1"),
    }
    parts.update(changes)
    edges = [("a", "b1"), ("a", "b2"), ("b1", "c"), ("b2", "c")]
    return Cascade(list(parts.values()), edges=edges), (a, b, c)


def test_a_cascade_of_models_gives_each_models_own_logits():
    models = {"small": Counted(4, 3, 1), "large": Counted(4, 3, 2)}
    cascade = Cascade.from_models(models)
    logits = cascade(X)
    assert logits.shape == (5, 2, 3)
    for k, model in enumerate(models.values()):
        torch.testing.assert_close(logits[:, k], model(X))
    assert cascade.topology.names == ("small", "large")
    assert cascade.stage("large") is cascade.stage(1)


def test_early_exits_continue_carries_and_run_each_segment_once():
    cascade, (a, b, c) = early_exits()
    logits = cascade(X)
    assert (a.calls, b.calls, c.calls) == (1, 1, 1)
    hidden = [a.linear(X)]
    hidden += [b.linear(hidden[0])]
    hidden += [c.linear(hidden[1])]
    for k, depth in enumerate([0, 1, 1, 2]):
        expected = cascade.stage(k).head(hidden[depth])
        torch.testing.assert_close(logits[:, k], expected)


def test_running_stage_by_stage_equals_running_the_cascade():
    cascade, _ = early_exits()
    carries, logits = {}, []
    for stage in cascade:
        given = X if stage.source is None else carries[stage.source]
        out, carries[stage.name] = stage.run(given)
        logits.append(out.logits)
    torch.testing.assert_close(torch.stack(logits, dim=1), cascade(X))


def test_a_whole_network_gives_no_carry():
    said, carry = Stage("a", Counted(4, 3)).run(X)
    assert carry is None
    assert said.logits.dtype == torch.float32


def test_half_precision_outputs_become_float32():
    class Half(nn.Module):
        def forward(self, x):
            return x.half()

    assert Stage("a", Half()).run(X)[0].logits.dtype == torch.float32


def test_tuples_are_positional_and_mappings_named_arguments():
    class Two(nn.Module):
        def forward(self, x, mask):
            return SimpleNamespace(logits=x * mask)

    cascade = Cascade.from_models({"a": Two()})
    mask = torch.tensor([[1.0], [0.0], [1.0], [1.0], [0.0]])
    expected = (X * mask)[:, None]
    assert torch.equal(cascade((X, mask)), expected)
    assert torch.equal(cascade({"mask": mask, "x": X}), expected)


def test_a_transform_is_shared_or_by_name():
    models = {"small": Counted(4, 3, 1), "large": Counted(4, 3, 2)}
    double = Normalize(2.0)
    both = Cascade.from_models(models, transform=double)
    one = Cascade.from_models(models, transform={"large": double})
    torch.testing.assert_close(both(X), Cascade.from_models(models)(2 * X))
    torch.testing.assert_close(one(X)[:, 0], models["small"](X))
    torch.testing.assert_close(one(X)[:, 1], models["large"](2 * X))
    with pytest.raises(InputError, match=r"transform must name only .* got \['huge'\]"):
        Cascade.from_models(models, transform={"huge": double})


def test_specs_are_kept_by_name():
    spec = ModelSpec(name="resnet20")
    cascade = Cascade.from_models({"a": Counted(4, 3), "b": Counted(4, 3)}, specs={"b": spec})
    assert cascade.stage("a").spec is None
    assert cascade.stage("b").spec is spec
    with pytest.raises(InputError, match=r"specs must name only .* got \['c'\]"):
        Cascade.from_models({"a": Counted(4, 3)}, specs={"c": spec})


def test_different_class_counts_are_named_by_stage():
    cascade = Cascade.from_models({"small": Counted(4, 3), "large": Counted(4, 10)})
    for run in (cascade, cascade.check):
        with pytest.raises(InputError, match="'small' gives 3, 'large' gives 10"):
            run(X)


def test_check_counts_the_classes_and_compares_their_names():
    assert Cascade.from_models({"a": Counted(4, 3)}).check(X[:1]) == 3
    with pytest.raises(InputError, match=r"class_names must have 3 entries.* got 2"):
        Cascade.from_models({"a": Counted(4, 3)}, class_names=["x", "y"]).check(X)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Flatten(0), "Stage 'a' gives no logits"),
        (nn.Linear(4, 1), "Stage 'a' must give logits for at least 2 classes"),
    ],
)
def test_outputs_that_are_no_logits_are_named_by_stage(module, message):
    with pytest.raises(InputError, match=message):
        Cascade.from_models({"a": module})(X)


def test_a_network_in_training_mode_is_changed_with_a_warning_that_names_it():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with pytest.warns(UserWarning, match=r"Stage 'b' was in training mode.*BatchNorm1d"):
        Cascade.from_models({"a": Counted(4, 3), "b": network})
    assert not network[1].training
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Cascade.from_models({"b": network})


def test_evaluation_mode_for_a_while_restores_each_part():
    network = nn.Sequential(nn.Dropout(), nn.Dropout())
    network[1].eval()
    with evaluating(network):
        assert not network[0].training
    assert [network.training, network[0].training, network[1].training] == [True, True, False]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cascade([]), "at least one stage"),
        (
            lambda: Cascade([Stage("a", Counted(4, 3)), Stage("a", Counted(4, 3))]),
            r"names must be unique",
        ),
        (
            lambda: Cascade(
                [Stage("a", Counted(4, 3)), Stage("b", Counted(4, 3))], edges=[("b", "a")]
            ),
            r"no cycles",
        ),
        (
            lambda: Cascade.from_models({k: Counted(4, 3) for k in "abc"}, edges=[("a", "b")]),
            r"reachable from 'a'; \['c'\] are not",
        ),
        (
            lambda: Cascade([Stage("a", Counted(4, 3)), Stage("b", Counted(3, 3), source="a")]),
            "'b' continues 'a', which is a whole network",
        ),
        (
            lambda: Cascade([Stage("a", Counted(4, 3)), Stage("b", Counted(3, 3), source="x")]),
            r"source of stage 'b' must be .* one of \['a', 'b'\], got 'x'",
        ),
        (
            lambda: early_exits(
                b2=Stage("b2", Counted(6, 6), head=Counted(6, 3), source="a", group="b")
            ),
            "'b1' and 'b2' of group 'b' must share one module",
        ),
    ],
)
def test_an_impossible_cascade_is_refused(build, message):
    with pytest.raises(TopologyError, match=message):
        build()


def test_a_stage_cannot_transform_a_carry_or_be_nameless():
    with pytest.raises(InputError, match="reads the carry of 'a'"):
        Stage("b", Counted(3, 3), source="a", transform=Normalize())
    with pytest.raises(InputError, match="name must be"):
        Stage("", Counted(3, 3))


def test_an_unknown_stage_suggests_the_near_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'small'"):
        Cascade.from_models({"small": Counted(4, 3)}).stage("smal")


def test_an_empty_batch_gives_empty_logits():
    assert early_exits()[0](X[:0]).shape == (0, 4, 3)
