"""What is decided silently is told to the logger `offramp`, and to nobody else."""

import logging
import subprocess
import sys

import torch
from torch import nn

from offramp._core.temporaries import sweep
from offramp.backends import choose_backends
from offramp.stages import Stage


class Unknown(nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_nothing_is_printed_unless_somebody_asks():
    code = "import logging, offramp; logging.getLogger('offramp.x').warning('said')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_backend_that_is_not_taken_is_named_with_the_reason(caplog):
    example = torch.zeros(1, 4)
    with caplog.at_level(logging.INFO, logger="offramp"):
        table = choose_backends(
            [Stage("net", Unknown())],
            example,
            candidates=["onnxruntime"],
            batch_sizes=[1],
            rounds=1,
        )
    assert list(table.refused["net"]) == ["onnxruntime"]
    assert "'onnxruntime' is not taken for 'net': " in caplog.text
    assert "bessel_j0" in caplog.text


def test_what_a_killed_process_left_is_named_when_it_goes(tmp_path, caplog):
    left = tmp_path / ".offramp-0123456789ab"
    left.write_text("half of a file")
    with caplog.at_level(logging.INFO, logger="offramp"):
        sweep(tmp_path)
    assert not left.exists()
    assert str(left) in caplog.text
