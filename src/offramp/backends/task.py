"""What a backend is asked to do.

Layer: backends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from offramp._core.batch import apply, batch_size, flat
from offramp._core.errors import FAILURES, InputError, UnsupportedError
from offramp._core.types import Batch
from offramp.backends.compiled import Compiled, Files, Run
from offramp.backends.form import TensorSpec

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
        others: The same with sequences of other lengths, where the network takes them.
        calibration: What it reads, enough of it to see which values occur; None where there is
            none.
    """

    module: nn.Module
    inputs: Batch
    name: str
    threads: int
    calibration: Batch | None = None
    others: tuple[Batch, ...] = ()

    def answers(self, inputs: Batch | None = None) -> Any:  # noqa: ANN401  (what the network gives)
        """What the network gives for `inputs`, by default its own."""
        with torch.inference_mode():
            return apply(self.module, self.inputs if inputs is None else inputs)

    def given(self, *, free: bool) -> TensorSpec:
        """What the network gives, with its free axes where they are."""
        others = [self.answers(other) for other in self.others] if free else []
        return TensorSpec.of(self.answers(), others)

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
        self,
        run: Run,
        *,
        backend: str,
        content: bytes,
        exact: bool,
        files: Files | None = None,
        free: bool = False,
    ) -> Compiled:
        """What runs it, after it has shown that it does so, for other lengths as well if `free`.

        Raises:
            UnsupportedError: If it cannot run the inputs, or an exact backend answers otherwise.
        """
        others = self.others if free else ()
        made = Compiled(
            run,
            inputs=TensorSpec.of(self.inputs, others),
            outputs=self.given(free=free),
            name=self.name,
            backend=backend,
            content=content,
            files=files,
        )
        for inputs in (self.inputs, *others):
            self._check_answers(made, inputs, exact=exact)
        return made

    def _check_answers(self, made: Compiled, inputs: Batch, *, exact: bool) -> None:
        try:
            found = flat(apply(made, inputs))
        except InputError:
            raise
        except FAILURES as error:
            raise UnsupportedError(
                f"{self.name} does not run in {made.backend!r}: {error}"
            ) from error
        for have, want in zip(found, flat(self.answers(inputs)), strict=True):
            if have.shape != want.shape or (exact and not _same(have, want)):
                raise UnsupportedError(
                    f"{self.name} answers otherwise in {made.backend!r} than in PyTorch. Leave it "
                    "to the backend 'eager'."
                )


Build = Callable[[Task], nn.Module]


def _same(have: torch.Tensor, want: torch.Tensor) -> bool:
    if not want.is_floating_point():
        return torch.equal(have, want)
    have, want = have.double(), want.double()
    finite = want[want.isfinite()].abs()
    largest = max(1.0, float(finite.max()) if finite.numel() else 0.0)
    return torch.allclose(have, want, rtol=0, atol=_TOLERANCE * largest, equal_nan=True)
