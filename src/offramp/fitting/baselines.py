"""Policies to compare with that look at no confidence: random, and agreement of rankings.

Layer: fitting.  Source: methods.md 1 (references; agreement for rankings without confidences).
"""

from collections.abc import Sequence

from offramp._core.errors import InputError
from offramp._core.topology import Path, Topology
from offramp.fitting.chains import chains_to_fit
from offramp.fitting.pooling import fit_path_pooling
from offramp.fitting.search import sub_chains
from offramp.fitting.temperature import fit_temperatures
from offramp.policy.candidate import Candidate
from offramp.policy.combination import Combine
from offramp.policy.policy import Node, Policy
from offramp.policy.rules import Agreement, Constant, Random
from offramp.trace import Trace

_RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def fit_random(
    part: Trace,
    *,
    reference: str,
    top: int = 1,
    rates: Sequence[float] = _RATES,
    topologies: Sequence[Topology] | None = None,
    combine: Combine = "last",
    seed: int = 0,
) -> list[Candidate]:
    """Candidates that leave at random: after each stage but the last with the same probability.

    Args:
        part: Examples to fit on; only temperatures and weights of a combination are fitted.
        reference: Name of the reference.
        top: A label is right when it is among the `top` best.
        rates: Probabilities of leaving, each in [0, 1].
        topologies: Chains; by default those that the learned policy fits.
        combine: How an answer is made of the visited stages.
        seed: Of the draws, which are fixed by (seed, example, stage).

    Raises:
        InputError: If a topology is no chain.

    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=100, stages=2, seed=0)
    >>> [s.parameters["rate"] for s in fit_random(trace, reference="stage1", rates=[0.2, 0.7])]
    [0.2, 0.7]
    """
    if topologies is None:
        topologies = chains_to_fit(part, reference=reference, top=top)
    temperatures = None if combine == "last" else fit_temperatures(part)
    return [
        Candidate(
            policy=Policy(
                chain,
                {p: Node(Random(rate, seed, p[-1])) for p in inner_paths(chain)},
                temperatures=temperatures,
                combine=combine,
                weights=fit_path_pooling(part, chain.paths(), temperatures or [])
                if combine == "log_linear"
                else None,
                outputs="labels" if combine == "last" else part.outputs,
            ),
            method="random",
            reference=reference,
            top=top,
            parameters={"rate": float(rate)},
        )
        for chain in topologies
        for rate in rates
    ]


def fit_agreement(
    part: Trace,
    *,
    reference: str,
    top: int = 1,
    topologies: Sequence[Topology] | None = None,
    options: Sequence[tuple[int, int]] | None = None,
) -> list[Candidate]:
    """Candidates that leave where two stages in a row agree: they need labels only.

    Everyone goes on after the first stage. After each later one an example leaves if enough of
    the best labels are common to it and the stage before; the last stage answers for the rest.

    Args:
        part: The examples; they decide how many ranked labels there are.
        reference: Name of the reference.
        top: A label is right when it is among the `top` best.
        topologies: Chains of three or more stages; by default every such sub-chain.
        options: Pairs (depth, shared): at least `shared` of the `depth` best labels are common.
            By default 1 of 1, and every number of the 3 and 5 best that are known.

    Raises:
        InputError: If a topology is no chain of three or more stages.

    >>> from offramp.trace.testing import make_trace
    >>> trace = make_trace(n=100, stages=3, kind="labels", seed=0)
    >>> fit_agreement(trace, reference="stage2", options=[(1, 1)])[0].label
    'agreement, stage0 -> stage1 -> stage2 (depth 1, shared 1)'
    """
    part.require_labels("policy='agreement'")
    if topologies is None:
        topologies = [t for t in sub_chains(part.topology) if len(t.active) > 2]
    known = part.classes if part.ranked is None else part.ranked.shape[2]
    if options is None:
        depths = [depth for depth in (1, 3, 5) if depth <= known]
        options = [(depth, shared) for depth in depths for shared in range(1, depth + 1)]
    return [
        Candidate(
            policy=Policy(chain, _agreement_nodes(chain, depth, shared), outputs="labels"),
            method="agreement",
            reference=reference,
            top=top,
            parameters={"depth": depth, "shared": shared},
        )
        for chain in topologies
        for depth, shared in options
    ]


def _agreement_nodes(chain: Topology, depth: int, shared: int) -> dict[Path, Node]:
    root, *later = inner_paths(chain)
    if not later:
        raise InputError(
            f"An agreement policy needs three or more stages, got {chain.describe()!r}: after the "
            "last stage there is nothing left to save."
        )
    agree = {p: Node(Agreement((p[-2], p[-1]), depth, shared)) for p in later}
    return {root: Node(Constant(False)), **agree}


def inner_paths(chain: Topology) -> list[Path]:
    """The paths of a chain after which there is something to decide, short ones first.

    Raises:
        InputError: If the topology is no chain of two or more stages.
    """
    inner = [path for path in chain.paths() if chain.children(path[-1])]
    if not inner or any(len(chain.children(path[-1])) > 1 for path in inner):
        raise InputError(
            f"topologies must be chains of two or more stages, got {chain.describe()!r}; "
            "topology.chain([...]) makes one."
        )
    return inner
