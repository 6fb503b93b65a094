"""Adaptive inference: trained classifiers that spend on each input only what it needs.

A newcomer's whole session:

    cascade  = offramp.Cascade.from_models({"resnet20": a, "resnet56": b})
    trace    = offramp.record(cascade, loader)
    frontier = offramp.fit(trace, policy="learned")
    chosen   = frontier.cheapest(max_drop=0.02)
    model    = offramp.Adaptive(cascade, chosen)
    model(images).labels

Names are imported on first use, so that the command line answers `--help` without torch.
"""

from typing import TYPE_CHECKING

from offramp._core.lazy import lazy

if TYPE_CHECKING:
    from offramp._core.costs import Costs as Costs
    from offramp._core.schema import from_json as from_json
    from offramp._core.schema import to_json as to_json
    from offramp._core.topology import Topology as Topology
    from offramp.bundle import load_bundle as load_bundle
    from offramp.bundle import save_bundle as save_bundle
    from offramp.evaluation import Frontier as Frontier
    from offramp.evaluation import fit as fit
    from offramp.policy import Candidate as Candidate
    from offramp.policy import Policy as Policy
    from offramp.recording import record as record
    from offramp.runtime import Adaptive as Adaptive
    from offramp.runtime import Prediction as Prediction
    from offramp.stages import Cascade as Cascade
    from offramp.stages import Stage as Stage
    from offramp.trace import Trace as Trace
    from offramp.trace import load_trace as load_trace
    from offramp.trace import save_trace as save_trace

__version__ = "0.1.0"

_HOME = {
    "Adaptive": "offramp.runtime",
    "Prediction": "offramp.runtime",
    "Cascade": "offramp.stages",
    "Costs": "offramp._core.costs",
    "Frontier": "offramp.evaluation",
    "Policy": "offramp.policy",
    "Candidate": "offramp.policy",
    "Stage": "offramp.stages",
    "Topology": "offramp._core.topology",
    "Trace": "offramp.trace",
    "fit": "offramp.evaluation",
    "from_json": "offramp._core.schema",
    "load_bundle": "offramp.bundle",
    "load_trace": "offramp.trace",
    "record": "offramp.recording",
    "save_bundle": "offramp.bundle",
    "save_trace": "offramp.trace",
    "to_json": "offramp._core.schema",
}

__all__ = [*sorted(_HOME), "__version__"]


__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return list(__all__)
