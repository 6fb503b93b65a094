"""What a backend is asked to do.

Layer: runtime.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from offramp._core.batch import apply, batch_size
from offramp._core.errors import InputError, UnsupportedError
from offramp._core.types import Batch
from offramp.runtime.backends.compiled import Compiled, Files, Run
from offramp.runtime.backends.form import Form, flat
from offramp.stages.cut_graph import FAILURES

_TOLERANCE = 1e-3  # of an exact backend's answers, relative to the largest


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A network to be made faster.

    Args:
        module: The network, in evaluation mode; stays as it is.
        inputs: Some of what it reads.
        name: Whose it is, for messages: "stage 'small'".
        threads: That a runtime of its own may use, at least 1.
        calibration: What it reads, enough of it to see which values occur; None where there is
            none.
    """

    module: nn.Module
    inputs: Batch
    name: str
    threads: int
    calibration: Batch | None = None

    def answers(self) -> Any:  # noqa: ANN401  (what the network gives)
        """What the network gives for `inputs`."""
        with torch.inference_mode():
            return apply(self.module, self.inputs)

    def calibrated(self, backend: str) -> Batch:
        """The calibration batch.

        Raises:
            InputError: If there is none, or no example in it.
        """
        if self.calibration is None or batch_size(self.calibration) == 0:
            raise InputError(
                f"The backend {backend!r} needs a calibration batch for {self.name}: a few hundred "
                "raw inputs such as will come, none of them used to test. Got "
                f"{'None' if self.calibration is None else 'no example'}; pass calibration=..."
            )
        return self.calibration

    def compiled(
        self, run: Run, *, backend: str, content: bytes, exact: bool, files: Files | None = None
    ) -> Compiled:
        """What runs it, after it has shown that it does so.

        Raises:
            UnsupportedError: If it cannot run the inputs, or an exact backend answers otherwise.
        """
        wanted = self.answers()
        made = Compiled(
            run,
            inputs=Form.of(self.inputs),
            outputs=Form.of(wanted),
            name=self.name,
            backend=backend,
            content=content,
            files=files,
        )
        try:
            found = flat(apply(made, self.inputs))
        except InputError:
            raise
        except FAILURES as error:
            raise UnsupportedError(f"{self.name} does not run in {backend!r}: {error}") from error
        for have, want in zip(found, flat(wanted), strict=True):
            if have.shape != want.shape or (exact and not _same(have, want)):
                raise UnsupportedError(
                    f"{self.name} answers otherwise in {backend!r} than in PyTorch. Leave it to "
                    "the backend 'eager'."
                )
        return made


Build = Callable[[Task], nn.Module]


def _same(have: torch.Tensor, want: torch.Tensor) -> bool:
    if not want.is_floating_point():
        return torch.equal(have, want)
    have, want = have.double(), want.double()
    finite = want[want.isfinite()].abs()
    largest = max(1.0, float(finite.max()) if finite.numel() else 0.0)
    return torch.allclose(have, want, rtol=0, atol=_TOLERANCE * largest, equal_nan=True)
