import sys
from collections import namedtuple

import pytest
import torch
from torch import nn

import offramp
from offramp._core.errors import InputError
from offramp.backends import with_backend
from offramp.bundle import load, save
from offramp.cli import main
from offramp.models import ModelSpec, SeveralLogitsError, build, extract_logits, head_arguments
from offramp.policy import Candidate, Constant, Node, Policy
from offramp.runtime import Adaptive
from offramp.stages import Cascade, Stage, cut, cut_points, given_costs


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
    cascade = Cascade.from_models({"a": Both(16, 0, order), "b": net}, class_names=NAMES)
    trace = go(cascade, labels)
    assert (trace.classes, trace.accuracy(1)) == (3, 1.0)
    model = Adaptive(cascade, Policy(cascade.topology, {(0,): Node(Constant(False))}))
    assert torch.equal(model(X).labels, labels)


def test_class_names_given_to_record_tell_it_too():
    net = Both(16, 1)
    cascade = Cascade.from_models({"a": Both(16), "b": net})
    assert go(cascade, logits_of(net).argmax(1), class_names=NAMES).accuracy(1) == 1.0


@pytest.mark.parametrize("other", [nn.Linear(8, 3), Both(32)])
def test_the_other_stages_tell_it_where_only_one_width_is_common(other):
    net = Both(16, 1)
    cascade = Cascade.from_models({"a": other, "b": net})
    trace = go(cascade, logits_of(net).argmax(1))
    assert (trace.classes, trace.accuracy(1)) == (3, 1.0)


def test_where_nobody_knows_it_is_refused_with_the_stage_and_the_widths():
    cascade = Cascade.from_models({"a": Both(16), "b": Both(16, 1)})
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
    quick = with_backend(cascade, "folded", example=X[:4])
    with torch.no_grad():
        torch.testing.assert_close(quick(X), cascade(X))


class Forms(nn.Module):
    """The same network in the forms in which features and logits are returned."""

    def __init__(self, form):
        super().__init__()
        self.net, self.form = Both(16, 1), form
        self.eval()

    def forward(self, x):
        features, logits = self.net(x)
        return {
            "pair": (features, logits),
            "list": [logits, features],
            "mapping": {"embedding": features, "scores": logits, "loss": None},
            "twice": (logits, features, logits + 1),
        }[self.form]


def from_network(form, **arguments):
    heads = {"net.a": nn.Linear(16, 3).eval()}
    return Cascade.from_network(Forms(form), ["net.a"], head=heads, example=X[:1], **arguments)


FORMS = ["pair", "list", "mapping"]


@pytest.mark.parametrize("form", FORMS)
def test_a_network_is_cut_where_the_number_of_classes_tells_its_logits(form):
    net = Forms(form)
    first, last = cut(net, ["net.a"], X[:1], classes=3)
    with torch.no_grad():
        assert torch.equal(last(first(X)), logits_of(net.net))
    assert [point.name for point in cut_points(net, X[:1], classes=3)] == ["net.a"]
    for other in (lambda: cut(net, ["net.a"], X[:1]), lambda: cut_points(net, X[:1])):
        with pytest.raises(SeveralLogitsError, match=r"columns .*not known.*classes"):
            other()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("known", [{"class_names": NAMES}, {"classes": 3}])
def test_exits_take_the_output_that_class_names_or_classes_tell(form, known):
    cascade = from_network(form, **known)
    with torch.no_grad():
        assert torch.equal(cascade(X)[:, 1], logits_of(Forms(form).net))
    first = Cascade.from_network(Forms(form), ["net.a"], example=X[:1], **known)  # heads of ours
    assert first(X).shape == (50, 2, 3)


@pytest.mark.parametrize(
    ("form", "known", "said"),
    [
        ("pair", {}, "of 16, 3 columns .*not known.*Give class_names, or classes"),
        ("mapping", {}, "of 16, 3 columns .*not known.*Give class_names, or classes"),
        ("pair", {"classes": 4}, r"of 16, 3 columns \(4 classes\).*wrap the network"),
        ("mapping", {"classes": 4}, r"of 16, 3 columns \(4 classes\).*wrap the network"),
        ("twice", {"class_names": NAMES}, r"of 3, 16, 3 columns \(3 classes\).*wrap the network"),
    ],
)
def test_exits_are_refused_where_none_fits_or_two_do(form, known, said):
    with pytest.raises(SeveralLogitsError, match=said):
        from_network(form, **known)


NETWORK = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x):
        features = self.a(x.flatten(1))
        return {"embedding": features, "scores": self.b(features)}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "several_outputs.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    yield "several_outputs:Net"
    sys.modules.pop("several_outputs", None)


def test_a_bundle_of_such_exits_is_cut_alike(tmp_path, module):
    head = ModelSpec(name="vector_linear", arguments=head_arguments("vector_linear", (16,), 10))
    spec = ModelSpec(name=module)
    net, x = build(spec).eval(), torch.rand(5, 1, 8, 8)
    cascade = Cascade.from_network(
        net, ["a"], head={"a": head}, example=x[:1], class_names=list("abcdefghij"), spec=spec
    )
    save(
        Adaptive(cascade, Candidate.single(cascade.topology, "last", reference="last")),
        tmp_path / "b",
    )
    model = load(tmp_path / "b", allow_import=True)
    with torch.no_grad():
        assert torch.equal(model(x).labels, net(x)["scores"].argmax(1))


def test_a_mapping_of_one_tensor_is_taken_only_where_its_width_is_known():
    scores = {"scores": torch.zeros(2, 3), "hidden": torch.zeros(2, 5, 4)}
    assert extract_logits(scores, classes=3) is scores["scores"]
    for classes in (None, 4):
        with pytest.raises(InputError, match="hold a tensor named 'logits'"):
            extract_logits(scores, classes)


def test_the_command_line_knows_the_classes_of_the_data(tmp_path, module, capsys):
    config = tmp_path / "run.toml"
    config.write_text(
        '[data]\nkind = "digits"\n[network]\nname = "whole"\n'
        f'model = "{module}"\ntransform = {{ kind = "normalize", scale = 0.0625 }}\n'
        '[exits]\nat = ["a"]\n'
    )
    for arguments in (["--list"], []):
        assert main(["cut", "--json", "-c", str(config), *arguments]) == 0
    assert '"max_difference"' in capsys.readouterr().out
