import pytest
import torch
from torch import nn

from offramp._core.errors import FileFormatError, InputError, UnknownNameError
from offramp._core.schema import from_json, to_json
from offramp.backends import (
    BackendTable,
    Compiled,
    TensorSpec,
    choose_backends,
    with_backend,
)
from offramp.stages import Cascade

FORM = TensorSpec.of(torch.zeros(1, 4))


def table(**changes):
    fields = {
        "batch_sizes": (1, 8),
        "seconds": {
            "a": {"eager": (4.0, 4.0), "folded": (1.0, 9.0), "onnxruntime": (3.0, 2.0)},
            "b": {"eager": (1.0, 1.0), "openvino-int8": (0.1, 0.1)},
        },
        "inputs": FORM,
    }
    return BackendTable(**{**fields, **changes})


def test_the_fastest_of_those_that_answer_alike_is_chosen_for_each_stage():
    assert table().best() == {"a": "onnxruntime", "b": "eager"}  # 3 * 2 < 1 * 9 < 4 * 4
    assert table().best(batch_size=1) == {"a": "folded", "b": "eager"}
    assert table().best(batch_size=8) == {"a": "onnxruntime", "b": "eager"}
    lossy = table().best(among=["eager", "openvino-int8"])
    assert lossy == {"a": "eager", "b": "openvino-int8"}


def test_one_that_is_not_installed_here_is_passed_over(monkeypatch):
    monkeypatch.setattr("offramp.backends.measured.exact_backends", lambda: ("eager", "folded"))
    assert table().best() == {"a": "folded", "b": "eager"}


def test_speedups_are_over_eager_pytorch():
    assert table().speedup("a", "onnxruntime") == (4 / 3, 2.0)
    with pytest.raises(UnknownNameError, match="no stage 'c'"):
        table().speedup("c", "eager")
    with pytest.raises(UnknownNameError, match="no backend 'openvino'"):
        table().speedup("a", "openvino")


def test_what_was_not_measured_is_not_chosen():
    with pytest.raises(InputError, match=r"one of those measured, \(1, 8\), got 32"):
        table().best(batch_size=32)
    with pytest.raises(InputError, match=r"Stage 'a' was measured in .* among \['cuda'\]"):
        table().best(among=["cuda"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seconds": {}}, "must have batch sizes, stages and backends"),
        ({"batch_sizes": ()}, "must have batch sizes, stages and backends"),
        ({"seconds": {"a": {"eager": (1.0,)}}}, r"got \(1.0,\) for stage 'a' in 'eager'"),
        ({"seconds": {"a": {"eager": (1.0, 0.0)}}}, r"got \(1.0, 0.0\) for stage 'a'"),
        ({"seconds": {"a": {"eager": (1.0, float("nan"))}}}, "for stage 'a'"),
    ],
)
def test_a_table_is_checked(change, match):
    with pytest.raises(InputError, match=match):
        table(**change)


def test_a_table_survives_being_stored():
    given = table(refused={"a": {"compile": "no compiler"}}, where="here")
    assert from_json(BackendTable, to_json(given)) == given
    with pytest.raises(FileFormatError, match="as a backend table: seconds: "):
        from_json(BackendTable, {**to_json(given), "seconds": [1]})


class Svd(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)


@pytest.fixture(scope="module")
def cascade():
    return Cascade.from_models(
        {"plain": nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), "odd": Svd()}
    )


@pytest.fixture(scope="module")
def measured(cascade):
    return choose_backends(
        cascade,
        torch.rand(1, 4, 4),
        candidates=["onnxruntime", "onnxruntime"],
        batch_sizes=[2, 1, 2],
        rounds=1,
        threads=1,
    )


def test_every_stage_is_measured_in_every_backend_that_can_run_it(measured):
    assert measured.batch_sizes == (1, 2)
    assert {stage: list(each) for stage, each in measured.seconds.items()} == {
        "plain": ["eager", "onnxruntime"],
        "odd": ["eager"],
    }
    assert "aten._linalg_svd" in measured.refused["odd"]["onnxruntime"]
    assert "plain" not in measured.refused
    assert "1 for other runtimes" in measured.where
    assert measured.inputs == TensorSpec.of(torch.rand(7, 4, 4))


def test_auto_takes_what_was_measured(cascade, measured, monkeypatch):
    from offramp.backends import apply

    asked = []

    def found(given, example, *, threads):
        asked.append((given, threads))
        quick = {"eager": (2.0, 2.0), "onnxruntime": (1.0, 1.0)}
        return BackendTable(
            batch_sizes=(1, 2),
            seconds={"plain": quick, "odd": {"eager": (1.0, 1.0)}},
            inputs=measured.inputs,
        )

    monkeypatch.setattr(apply, "choose_backends", found)
    made = with_backend(cascade, "auto", example=torch.rand(1, 4, 4), threads=1)
    assert isinstance(made.stage("plain").module, Compiled)
    assert made.stage("odd").module is cascade.stage("odd").module
    assert asked == [(cascade, 1)]


def test_candidates_and_rounds_are_checked(cascade):
    x = torch.rand(1, 4, 4)
    with pytest.raises(UnknownNameError, match=r"no backend 'eagre'\. Did you mean 'eager'"):
        choose_backends(cascade, x, candidates=["eagre"])
    with pytest.raises(InputError, match="candidates must be a sequence of names, got the text"):
        choose_backends(cascade, x, candidates="eager")
    with pytest.raises(InputError, match="rounds must be an integer of at least 1, got 0"):
        choose_backends(cascade, x, rounds=0)
    with pytest.raises(InputError, match="must have batch sizes"):
        choose_backends(cascade, x, candidates=[], batch_sizes=[], rounds=1)
