"""What is given first, where it is of another kind: a path for a model, a text for a seed."""

import pytest
import torch

import offramp
from offramp import tuning
from offramp._core.checks import check_kind, check_path, check_seed
from offramp._core.errors import InputError
from offramp.data import image_folder, jpeg_compressed
from offramp.edge import Client, split
from offramp.evaluation import advise, overlap, replay
from offramp.models import small_cnn
from offramp.policy import Random
from offramp.trace import make_trace

TRACE = make_trace(60, accuracies=[0.6, 0.9], seed=0)


def test_a_seed_is_a_whole_number():
    assert check_seed(3) == 3
    for bad in ("x", 1.5, None, True, -1, 2**63, [1]):
        with pytest.raises(InputError, match=r"seed must be a whole number in \[0, 2\*\*63\), got"):
            check_seed(bad)


@pytest.mark.parametrize(
    "call",
    [
        lambda seed: offramp.suggest(TRACE, seed=seed),
        lambda seed: offramp.fit(TRACE, seed=seed, progress=False),
        lambda seed: TRACE.split_into({"fit": 0.5, "test": 0.5}, seed=seed),
        lambda seed: make_trace(60, accuracies=[0.6, 0.9], seed=seed),
        lambda seed: small_cnn(width=2, depth=2, seed=seed),
        lambda seed: Random(0.5, seed, 0),
        lambda seed: jpeg_compressed(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), seed=seed),
    ],
)
def test_every_door_refuses_another_seed(call):
    for bad in ("x", None):
        with pytest.raises(InputError, match="seed must be a whole number"):
            call(bad)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: offramp.export_onnx(x, "y.onnx"), "model must be an Adaptive"),
        (lambda x: offramp.save(x, "y"), "model must be an Adaptive"),
        (lambda x: offramp.compile(x, torch.zeros(1, 2)), "model must be an Adaptive"),
        (lambda x: split(x, "y"), "model must be an Adaptive"),
        (lambda x: tuning.profile(x, torch.zeros(1, 2)), "model must be an Adaptive"),
        (lambda x: offramp.record(x, []), "cascade must be a Cascade"),
        (lambda x: tuning.quantize(x, [], calibration=torch.zeros(1, 2)), "cascade must be a Ca"),
        (lambda x: offramp.fit(x), "trace must be a Trace"),
        (lambda x: offramp.evaluate(x, None), "trace must be a Trace"),
        (lambda x: offramp.suggest(x), "trace must be a Trace"),
        (lambda x: replay(x, None), "trace must be a Trace"),
        (lambda x: advise(x), "trace must be a Trace"),
        (lambda x: overlap(x), "trace must be a Trace"),
    ],
)
def test_a_path_in_the_place_of_what_lies_there_is_told_how_to_read_it(call, said):
    with pytest.raises(InputError, match=rf"{said}.*got str\. Read it: offramp\.load"):
        call("somewhere")
    with pytest.raises(InputError, match=rf"{said}.*got int\.$"):
        call(3)


def test_a_path_is_a_text_or_a_path(tmp_path):
    assert check_path("path", str(tmp_path)) == tmp_path
    for call in (offramp.load, offramp.load_trace, image_folder, Client):
        with pytest.raises(InputError, match="must be a path, got int"):
            call(3)
    check_kind("trace", TRACE, offramp.Trace)
