from collections import namedtuple

import pytest
import torch
from torch import nn

import offramp
from offramp._core.errors import InputError
from offramp.backends import with_backend
from offramp.models import SeveralLogitsError, extract_logits
from offramp.policy import Constant, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Stage, cut, given_costs


class Both(nn.Module):
    """Gives features and logits, as metric learning and distillation do."""

    def __init__(self, features, seed=0, order=(0, 1)):
        super().__init__()
        self.a, self.b, self.order = nn.Linear(8, features), nn.Linear(features, 3), order
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))

    def forward(self, x):
        features = self.a(x)
        both = features, self.b(features)
        return tuple(both[k] for k in self.order)


X = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
NAMES = ("red", "green", "blue")


def logits_of(net):
    with torch.no_grad():
        return net.b(net.a(X))


def go(cascade, labels, **arguments):
    costs = given_costs(cascade, "u", {"a": 1.0, "b": 9.0})
    return offramp.record(cascade, [(X, labels)], costs=costs, progress=False, **arguments)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_class_names_tell_which_output_is_meant(order):
    net = Both(16, 1, order)
    labels = logits_of(net).argmax(1)
    cascade = Cascade.of_models({"a": Both(16, 0, order), "b": net}, class_names=NAMES)
    trace = go(cascade, labels)
    assert (trace.classes, trace.accuracy(1)) == (3, 1.0)
    model = Adaptive(cascade, Policy(cascade.topology, {(0,): Node(Constant(False))}))
    assert torch.equal(model(X).labels, labels)


def test_class_names_given_to_record_tell_it_too():
    net = Both(16, 1)
    cascade = Cascade.of_models({"a": Both(16), "b": net})
    assert go(cascade, logits_of(net).argmax(1), class_names=NAMES).accuracy(1) == 1.0


@pytest.mark.parametrize("other", [nn.Linear(8, 3), Both(32)])
def test_the_other_stages_tell_it_where_only_one_width_is_common(other):
    net = Both(16, 1)
    cascade = Cascade.of_models({"a": other, "b": net})
    trace = go(cascade, logits_of(net).argmax(1))
    assert (trace.classes, trace.accuracy(1)) == (3, 1.0)


def test_where_nobody_knows_it_is_refused_with_the_stage_and_the_widths():
    cascade = Cascade.of_models({"a": Both(16), "b": Both(16, 1)})
    with pytest.raises(InputError, match=r"Stage 'a'.*of 16, 3 columns .*class_names"):
        go(cascade, torch.zeros(50, dtype=torch.int64))
    model = Adaptive(cascade, Policy(cascade.topology, {(0,): Node(Constant(False))}))
    for n in (1, 50):
        with pytest.raises(InputError, match="of 16, 3 columns"):
            model(X[:n])


def test_two_that_fit_are_refused():
    with pytest.raises(SeveralLogitsError, match="of 3, 3 columns"):
        extract_logits((torch.zeros(2, 3), torch.zeros(2, 3)), classes=3)


def test_none_that_fits_is_refused():
    with pytest.raises(SeveralLogitsError, match=r"of 16, 4 columns \(3 classes\)"):
        extract_logits((torch.zeros(2, 16), torch.zeros(2, 4)), classes=3)


def test_a_map_beside_the_logits_is_told_by_the_width_only():
    both = torch.zeros(2, 5, 4, 4), torch.ones(2, 3)
    assert extract_logits(both, classes=3) is both[1]
    with pytest.raises(InputError, match="must have shape"):
        extract_logits(both)


def test_named_outputs_stay_as_they_were():
    auxiliary = namedtuple("Outputs", ["logits", "aux_logits"])
    pair = auxiliary(torch.zeros(2, 3), torch.ones(2, 3))
    assert extract_logits(pair) is pair.logits
    assert extract_logits({"logits": pair.logits, "features": torch.zeros(2, 9)}) is pair.logits
    hidden = (pair.logits, (torch.zeros(2, 7, 9),))
    assert extract_logits(hidden) is pair.logits


def test_cutting_and_backends_refuse_or_choose_alike():
    net = Both(16).eval()
    with pytest.raises(InputError, match="of 16, 3 columns"):
        cut(net, ["a"], X[:1])
    cascade = Cascade([Stage("a", net, classes=3), Stage("b", Both(16, 1).eval(), classes=3)])
    quick = with_backend(cascade, "prepared", example=X[:4])
    with torch.no_grad():
        torch.testing.assert_close(quick(X), cascade(X))
