"""A gateway between devices and the cloud: it goes on from a device, and asks the cloud itself.

Its bundle is that of a cloud, but that the stage of the cloud is a service in it. So who goes on is
decided, answered and billed there as in any cascade, and where the cloud cannot be had the last
stage that has answered does.

Layer: edge.  Source: docs/adr/0056.
"""

from collections.abc import Collection, Mapping

import numpy as np

from offramp._core.cut import Cut, Send
from offramp._core.errors import InputError
from offramp._core.open_inference import datatype_of
from offramp.adapters.http import http_stage
from offramp.adapters.http_settings import HttpSettings
from offramp.adapters.limits import Limits
from offramp.bundle.onnx.parts import Parts
from offramp.edge.resume import reading
from offramp.policy import Candidate
from offramp.runtime import Adaptive
from offramp.stages import Cascade, HeldStages, Stage

#: A device waits meanwhile, so that the cloud is given up soon.
LIMITS = Limits(
    timeout=1.0, attempts=2, longest_wait=0.25, breaker_failures=3, breaker_seconds=10.0, cache=0
)


def stage_of_the_cloud(
    model: Adaptive, device: Collection[str], gateway: Collection[str], send: Send
) -> str:
    """Name of the one stage that is neither on the device nor at the gateway.

    Raises:
        InputError: If there are several or none, it continues another one, or nobody sends what it
            reads.
    """
    topology, reference = model.policy.topology, model.candidate.reference
    if send != "raw":
        raise InputError(
            f"send must be 'raw' where a gateway asks the cloud, got {send!r}: the gateway hands "
            "on the raw input."
        )
    cut = Cut.of(topology, [*device, *gateway], send, reference=reference)
    names = [topology.names[k] for k in sorted(cut.away)]
    if len(names) > 1 or cut.again:
        raise InputError(
            "gateway must leave the cloud one network that reads the raw input, got "
            f"{sorted(gateway)}, which leaves {names}."
        )
    return names[0]


def at_the_gateway(
    cascade: Cascade | HeldStages, name: str, parts: Parts, raw: Mapping[str, str], url: str
) -> Cascade | HeldStages:
    """The cascade whose stage of the cloud is asked over the network.

    Args:
        cascade: As the cloud would hold it.
        name: Of that stage.
        parts: Of the device; its raw input is what is handed on.
        raw: What that is sent as.
        url: Where the gateway finds the cloud.

    Raises:
        InputError: If there are several tensors of raw input, or the address is none.
    """
    if len(parts.inputs) != 1:
        raise InputError(
            "gateway must hand on one tensor of raw input, and the model reads "
            f"{[value.name for value in parts.inputs]}."
        )
    (value,) = parts.inputs
    kind = datatype_of(np.empty(0, dtype=value.dtype))
    settings = HttpSettings(
        url=url,
        model="cloud",
        inputs=((raw[value.name], kind),),
        outputs=("probabilities",),
        form="probabilities",
        classes=parts.classes,
        class_names=tuple(cascade.class_names),
        binary=True,
        limits=LIMITS,
    )
    asked = http_stage(settings).named(name)
    return cascade.with_stages([asked if stage.name == name else stage for stage in cascade])


def in_the_cloud(stage: Stage, raw: Mapping[str, str]) -> Adaptive:
    """The stage of the cloud alone, which reads what is sent under the name of the split."""
    cascade = Cascade([reading(stage, raw)], class_names=stage.class_names)
    return Adaptive(cascade, Candidate.single(cascade.topology, stage.name, reference=stage.name))
