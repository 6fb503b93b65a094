"""What a call of a server takes beside its stages, measured on this machine.

Layer: serve.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp._core.batch import take_rows
from offramp._core.costs import Costs
from offramp._core.types import AnyBatch
from offramp.bundle import save
from offramp.edge.calls import Calls
from offramp.edge.messages import message_of, outputs_of
from offramp.edge.settings import Settings as Asking
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.serve.run import Running
from offramp.serve.settings import Settings
from offramp.stages import Cascade

_NAME = "cloud"
_WARM = 3  # calls that do not count


def measure_handling(
    cascade: Cascade,
    reference: str,
    batch: AnyBatch,
    costs: Costs,
    *,
    rounds: int = 15,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that client and server take for a call, beside the stages and the link.

    A server in this process serves the reference alone, and is asked about one example after the
    other over loopback. Of what that takes, the median counts, less the seconds of the stages.

    Args:
        cascade: As the server runs it; `offramp.bundle.save` takes it.
        reference: Name of a stage.
        batch: Some raw input; its first example is sent.
        costs: Seconds of the stages, as the server runs them.
        rounds: Calls that count, at least 1.
        clock: Seconds.

    Raises:
        OfframpError: As `offramp.bundle.save`, or if the server does not answer.
    """
    topology = cascade.topology
    candidate = Candidate.single(topology, reference, reference=reference)
    body, length = message_of(_columns(take_rows(batch, torch.arange(1))))
    shape = tuple(batch.shape[1:]) if isinstance(batch, Tensor) else None
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / _NAME
        save(Adaptive(cascade, candidate), folder, input_shape=shape)
        with Running({_NAME: folder}, Settings(port=0)) as server:
            calls = Calls(Asking(url=server.url, timeout=60.0), lambda _: None)
            seconds = []
            for _ in range(_WARM + rounds):
                began = clock()
                outputs_of(calls, _NAME, body, length, {})
                seconds.append(clock() - began)
            calls.close()
    return max(median(seconds[_WARM:]) - costs.alone(topology, topology.index(reference)), 0.0)


def _columns(one: Any) -> dict[str, NDArray[Any]]:  # noqa: ANN401  (raw input of any kind)
    """What is sent of a raw input, by the names that a server has for them."""
    if isinstance(one, Mapping):
        return {name: values.numpy() for name, values in one.items()}
    if isinstance(one, tuple):
        return {f"input_{k}": values.numpy() for k, values in enumerate(one)}
    return {"input": one.numpy()}
