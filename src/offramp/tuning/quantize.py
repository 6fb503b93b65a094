"""From a cascade in float32 to one in int8 with a policy of its own.

Quantized networks answer otherwise, most of all near a threshold. So they get other names, are
recorded anew, and the policy is fitted on what they say.

Layer: tuning.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from offramp._core.checks import check_kind
from offramp._core.costs import Costs
from offramp._core.errors import InputError
from offramp._core.types import Batch, Split
from offramp.backends import backend_of, with_backend
from offramp.backends.ort import INT8
from offramp.evaluation import Frontier, fit
from offramp.recording import record
from offramp.recording.rows import Loader
from offramp.stages import Cascade, measure_seconds
from offramp.trace import Trace

_BATCH = 32  # at which costs are measured


@final
@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A cascade with quantized stages, and what was learned about it.

    Args:
        cascade: Its quantized stages are named "small@int8".
        trace: What they said.
        frontier: Candidates fitted on that; choose one, and save it with `cascade`.
    """

    cascade: Cascade
    trace: Trace
    frontier: Frontier


def quantize(
    cascade: Cascade,
    data: Loader,
    *,
    calibration: Batch,
    backend: str = INT8,
    stages: Collection[str] | None = None,
    costs: Costs | None = None,
    path: Path | str | None = None,
    split: Split | None = None,
    policy: str | Collection[str] = "learned",
    reference: str | None = None,
    batch_size: int = 256,
    threads: int | None = None,
    progress: bool = True,
    **options: Any,  # noqa: ANN401  (of the POLICIES)
) -> Quantized:
    """Quantize stages, record the cascade again, and fit policies on the new recording.

    Candidates that were fitted before are for other answers: `Adaptive` refuses them here.

    Args:
        cascade: In PyTorch; stays as it is.
        data: Labelled examples, as for `record`, with the splits `fit` and `calibrate`.
        calibration: As for `with_backend`: a few hundred raw inputs, none of them used to test.
        backend: "onnxruntime-int8", "openvino-int8" or "openvino-bf16".
        stages: Names of those to quantize; by default all. Those that continue one of them get
            another name as well.
        costs: Cost of each stage of the new cascade; by default the seconds that each takes here
            at batch size 32, for operations do not tell int8 from float32.
        path: Where the trace goes; by default it stays in memory.
        split: As for `record`.
        policy: As for `fit`.
        reference: the reference, by its new name; by default the most accurate stage.
        batch_size: As for `record`.
        threads: As for `with_backend`.
        progress: Whether to show bars.
        **options: For `fit`.

    Raises:
        InputError: If `backend` leaves answers as they are, or as `with_backend`, `record` and
            `fit` say.
        UnknownNameError: If there is no such backend, stage or policy.

    >>> import torch
    >>> from torch import nn
    >>> from offramp.stages import given_costs
    >>> cascade = Cascade.from_models({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
    >>> x, y = torch.rand(300, 4), torch.arange(300) % 3
    >>> found = quantize(
    ...     cascade, [(x[50:], y[50:])], calibration=x[:50], stages=["a"], progress=False,
    ...     costs=given_costs(["a@int8", "b"], "usd", {"a@int8": 0.1, "b": 1.0}), policy="random",
    ... )
    >>> found.cascade.topology.names, found.trace.stages
    (('a@int8', 'b'), ('a@int8', 'b'))
    """
    check_kind("cascade", cascade, Cascade, read="offramp.load(path).cascade")
    if backend_of(backend).exact:
        raise InputError(
            f"backend must be one that changes answers, such as {INT8!r}, got {backend!r}; for "
            "others with_backend is enough, and the policy stays as it is."
        )
    chosen = {name: backend for name in (cascade.topology.names if stages is None else stages)}
    made = with_backend(
        cascade, chosen, example=calibration, calibration=calibration, threads=threads
    )
    if costs is None:
        costs = measure_seconds(made, calibration, batch_sizes=[_BATCH])[_BATCH]
    trace = record(
        made,
        data,
        path=path,
        split=split,
        costs=costs,
        batch_size=batch_size,
        progress=progress,
    )
    names = policy if isinstance(policy, str) else list(policy)
    frontier = fit(trace, names, reference=reference, progress=progress, **options)
    return Quantized(cascade=made, trace=trace, frontier=frontier)
