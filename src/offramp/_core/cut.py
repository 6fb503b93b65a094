"""Where a cascade is cut: what runs on the device, and what has to be sent from there.

Layer: _core.  Source: docs/adr/0056.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, final

from offramp._core.checks import check_choice, check_known
from offramp._core.errors import InputError
from offramp._core.packing import PACKINGS, Packing
from offramp._core.topology import RAW_INPUT, Topology

#: The raw input as it came, or what the last stage computed: as it is, or made smaller.
Send = Literal["raw", "float32", "float16", "int8"]
SENDS: tuple[Send, ...] = ("raw", *PACKINGS)


@final
@dataclass(frozen=True, kw_only=True)
class Cut:
    """A cascade in two.

    Args:
        topology: What the policy uses.
        here: Stages on the device.
        away: Those in the cloud, which all who answer there need.
        send: What is sent.
        carries: Groups whose carries are sent.
        raw: Whether the raw input is sent.
        again: Stages of the device that run once more in the cloud, from the raw input.
    """

    topology: Topology
    here: frozenset[int]
    away: frozenset[int]
    send: Send
    carries: tuple[str, ...]
    raw: bool
    again: frozenset[int]

    @classmethod
    def of(
        cls, topology: Topology, device: Collection[str], send: Send, *, reference: str
    ) -> "Cut":
        """Check a cut.

        Args:
            topology: What the policy uses.
            device: Names of the stages on the device.
            send: What is sent.
            reference: Name of the reference, which the cloud holds as well.

        Raises:
            UnknownNameError: If there is no such stage.
            InputError: If nothing is left on either side, the policy goes back from the cloud to
                the device, or the carry is not what the cloud's stages read.
        """
        check_choice("send", send, SENDS)
        here = frozenset(
            topology.index(check_known("stage", name, topology.names)) for name in device
        )
        active, names = set(topology.active), topology.names
        if topology.root not in here:
            raise InputError(
                f"device must hold {names[topology.root]!r}, which every example visits first, got "
                f"{sorted(device)}: nothing would be left to the device. Use the cloud alone: "
                "offramp serve."
            )
        answering = active | {topology.index(reference)}
        away = {j for k in answering for j in topology.lineage(k)} - here
        if not active - here:
            raise InputError(
                f"device must leave a stage of the policy to the cloud, got {sorted(device)}, "
                f"which is all of {[names[k] for k in sorted(active)]}. Run it on the device "
                "alone: offramp export --out."
            )
        _check_forward(topology, here)
        sources = {(topology.sources[k], k) for k in away}
        carried = {topology.groups[j] for j, _ in sources if j in here}
        raw = any(j == RAW_INPUT for j, _ in sources)
        again = frozenset[int]()
        if send == "raw":
            again = frozenset(j for k in away for j in topology.lineage(k) if j in here)
            raw, carried = True, set()
        elif not carried:
            raise InputError(
                f"send must be 'raw' where the cloud's stages read the raw input, got {send!r}."
            )
        roots = [topology.groups[topology.lineage(j)[0]] for j, _ in sources if j in here]
        if carried and len(carried) > len(set(roots)):
            raise InputError(
                f"send={send!r} must send one carry of a network, and the cloud's stages read "
                f"those of {sorted(carried)}. Send the raw input: send='raw'."
            )
        found = cls(
            topology=topology,
            here=here,
            away=frozenset(away),
            send=send,
            carries=tuple(sorted(carried)),
            raw=raw,
            again=again,
        )
        found._check_run()
        return found

    @property
    def packing(self) -> Packing:
        """How carries are sent."""
        return "float32" if self.send == "raw" else self.send

    @property
    def asked(self) -> tuple[int, ...]:
        """Stages of the device whose logits go along, in order."""
        return tuple(k for k in self.topology.active if k in self.here - self.again)

    def goes_on(self) -> dict[int, tuple[int, ...]]:
        """For each stage that an example may go on to in the cloud, what must have run before."""
        edges = self.topology.edges
        firsts = {k for j, k in edges if j in self.here and k not in self.here}
        if not self.carries:
            return dict.fromkeys(sorted(firsts), ())
        return {k: tuple(j for j in self.topology.lineage(k) if j in self.here) for k in firsts}

    def _check_run(self) -> None:
        """Raise `InputError` where what is sent has not run for everybody who goes on."""
        topology, goes_on = self.topology, self.goes_on()
        for path in topology.paths():
            *before, last = path
            if last in self.here or not set(before) <= self.here:
                continue
            run = {topology.groups[j] for k in before for j in topology.lineage(k)}
            run |= {topology.groups[j] for j in goes_on[last]}
            for group in self.carries:
                if group not in run:
                    way = " -> ".join(topology.names[k] for k in path)
                    raise InputError(
                        f"send={self.send!r} sends the carry of {group!r}, which has not run on "
                        f"the way {way}. Send the raw input: send='raw'."
                    )


def _check_forward(topology: Topology, here: frozenset[int]) -> None:
    names = topology.names
    for j, k in topology.edges:
        if j in topology.active and j not in here and k in here:
            raise InputError(
                f"device must not hold {names[k]!r} without {names[j]!r}, after which the policy "
                "may go on to it: nobody comes back from the cloud."
            )
    for k in here:
        for j in topology.lineage(k):
            if j not in here:
                raise InputError(f"device must hold {names[j]!r}, which {names[k]!r} continues.")
    for j in here:
        for k in set(range(len(topology))) - here:
            if topology.groups[j] == topology.groups[k] and k in topology.active:
                raise InputError(
                    f"device must hold {names[k]!r} as well as {names[j]!r}: they share a segment."
                )
