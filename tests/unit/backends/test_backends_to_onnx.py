import sys

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from offramp._core.batch import apply, flat
from offramp._core.errors import InputError, MissingExtraError, UnsupportedError
from offramp.backends import onnx_export, to_onnx
from offramp.backends.form import TensorSpec
from offramp.models import small_cnn
from offramp.stages import Normalize, cut


def random(form, n, seed=0):
    """So many examples of a form."""
    generator = torch.Generator().manual_seed(seed)
    return form.pack(
        [
            torch.rand(t.shape, generator=generator)
            if t.is_floating_point()
            else torch.randint(0, 5, t.shape, generator=generator, dtype=t.dtype)
            for t in form.parts(n)
        ]
    )


def both(session, module, example, n):
    """What ONNX Runtime and what PyTorch makes of a batch."""
    batch = random(TensorSpec.of(example), n)
    with torch.no_grad():
        wanted = flat(apply(module, batch))
    feed = {f"in.{k}": tensor.numpy() for k, tensor in enumerate(flat(batch))}
    found = session.run([f"out.{k}" for k in range(len(wanted))], feed)
    return found, [tensor.numpy() for tensor in wanted]


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids, mask):
        rows = self.table(ids)  # (m, words, 4)
        return {"logits": (rows * mask[..., None]).sum(1), "loss": None, "rows": rows}


def segments():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()).eval()
    return cut(net, ["1"], torch.rand(1, 1, 5, 5))


class HandsOn(nn.Module):
    """Gives one of its inputs as it is: some exporters rename it then."""

    def forward(self, x, mask):
        return x * 2, mask, x + 1


CASES = {
    "handed on": lambda: (HandsOn().eval(), (torch.rand(1, 3), torch.rand(1, 4))),
    "tensor": lambda: (small_cnn(width=2, depth=2).eval(), torch.rand(1, 1, 8, 8)),
    "tuple": lambda: (nn.Bilinear(3, 4, 2).eval(), (torch.rand(1, 3), torch.rand(1, 4))),
    "mapping": lambda: (
        Text().eval(),
        {"mask": torch.ones(1, 5), "ids": torch.ones(1, 5, dtype=torch.long)},
    ),
    "segment": lambda: (segments()[1], torch.rand(1, 2, 3, 3)),
    "bytes": lambda: (
        Normalize(1 / 255, mean=[0.5], std=[0.5]),
        torch.zeros(1, 1, 2, 2, dtype=torch.uint8),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_model_computes_the_same_at_any_batch_size(case):
    module, example = CASES[case]()
    model = to_onnx(module, example, name="stage 'x'").SerializeToString()
    session = onnxruntime.InferenceSession(model)
    for n in (1, 2, 33):
        found, wanted = both(session, module, example, n)
        for have, want in zip(found, wanted, strict=True):
            assert have.dtype == want.dtype
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)


def test_inputs_outputs_and_the_batch_axis_have_names_of_their_own():
    model = to_onnx(*CASES["mapping"](), name="stage 'x'")
    values = [*model.graph.input, *model.graph.output]
    assert [value.name for value in values] == ["in.0", "in.1", "out.0", "out.1"]
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in values} == {"batch"}


def test_batch_norms_are_folded_and_the_network_stays_as_it_was():
    net = small_cnn(width=2, depth=2).eval()
    before = [type(part) for part in net.modules()]
    model = to_onnx(net, torch.rand(1, 1, 8, 8), name="stage 'x'")
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert [type(part) for part in net.modules()] == before


def test_nothing_of_the_machine_is_in_it_and_nothing_is_printed(capfd):
    content = to_onnx(*CASES["tensor"](), name="stage 'x'").SerializeToString()
    assert b"site-packages" not in content
    assert b".py" not in content
    assert capfd.readouterr() == ("", "")


class Svd(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)


class ByValue(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


class Mixed(nn.Module):
    def forward(self, x):
        return x.flatten(0, 1)


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (Svd(), r"stage 'bad' cannot be exported to ONNX: it has no operator for 'aten._linalg_s"),
        (ByValue(), r"stage 'bad' cannot be exported to ONNX: it decides by the values"),
        (Fixed(), r"stage 'bad' cannot be exported to ONNX: .*batch"),
        (Mixed(), r"stage 'bad' .* the first axis of 'out.0' is 3\*\w+, not the batch size"),
    ],
)
def test_what_cannot_be_exported_is_named_with_its_operator(module, match, capfd):
    with pytest.raises(UnsupportedError, match=match):
        to_onnx(module.eval(), torch.rand(1, 3, 3), name="stage 'bad'")
    assert capfd.readouterr() == ("", "")


def test_inputs_that_do_not_fit_are_an_error_with_their_shapes():
    with pytest.raises(InputError, match=r"stage 'x' does not run on inputs of .*\(2, 5\)"):
        to_onnx(nn.Linear(4, 3), torch.rand(1, 5), name="stage 'x'")
    with pytest.raises(InputError, match=r"at least one example, got 0"):
        to_onnx(nn.Linear(4, 3), torch.rand(0, 4), name="stage 'x'")


def test_an_output_that_is_no_tensor_is_an_error_that_names_its_type():
    class Text(nn.Module):
        def forward(self, x):
            return "answer"

    with pytest.raises(InputError, match="got str"):
        to_onnx(Text(), torch.rand(1, 5), name="stage 'x'")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_without_the_packages_the_extra_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"offramp\[onnx\]"):
        to_onnx(nn.Linear(4, 3), torch.rand(1, 4), name="stage 'x'")


def test_the_operators_of_the_exporter_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.onnx._internal.exporter import _registration

    made: list[_registration.ONNXRegistry] = []
    read = _registration.ONNXRegistry.__dict__["from_torchlib"].__func__

    def counted(
        cls: type[_registration.ONNXRegistry], opset_version: int
    ) -> _registration.ONNXRegistry:
        made.append(read(cls, opset_version))
        return made[-1]

    replaced = classmethod(counted)
    monkeypatch.setattr(_registration.ONNXRegistry, "from_torchlib", replaced)
    contents = {to_onnx(*CASES["tensor"](), name="stage 'x'").SerializeToString() for _ in range(2)}
    assert len(contents) == len(made) == 1
    assert _registration.ONNXRegistry.__dict__["from_torchlib"] is replaced  # as it was

    with onnx_export._operators_read_once():
        mine, yours = (_registration.ONNXRegistry.from_torchlib(opset_version=18) for _ in "ab")
    name = next(iter(mine.functions))
    mine.functions[name].clear()  # as `register_op` changes it
    assert yours.functions[name]
    assert all(made[-1].functions.values())


def test_another_pytorch_exports_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = to_onnx(*CASES["tensor"](), name="stage 'x'").SerializeToString()
    monkeypatch.setitem(sys.modules, "torch.onnx._internal.exporter._registration", None)
    assert to_onnx(*CASES["tensor"](), name="stage 'x'").SerializeToString() == expected
