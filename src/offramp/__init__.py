"""Adaptive inference: trained classifiers that spend on each input only what it needs.

A newcomer's whole session:

    cascade  = offramp.Cascade.from_models({"resnet20": a, "resnet56": b})
    trace    = offramp.record(cascade, dataset)
    frontier = offramp.fit(trace)
    choice   = frontier.cheapest(max_drop=0.02)
    model    = offramp.Adaptive(cascade, choice)
    model(images).labels
    offramp.save(model, "bundle")

One network instead of several gets exits: `Cascade.from_network(net, exits=5, head="conv_head",
example=images)`, whose heads `offramp.train_heads` trains. Where the model is to run,
`offramp.load("bundle")` gives it back, `offramp.compile(model, images)` makes it as fast as the
machine allows, and `offramp.export_onnx(model, "cascade.onnx")` takes it elsewhere.

Names are imported on first use, so that the command line answers `--help` without torch.
"""

import logging
from typing import TYPE_CHECKING

from offramp._core.lazy import lazy

if TYPE_CHECKING:
    from offramp._core.costs import Costs as Costs
    from offramp._core.schema import from_json as from_json
    from offramp._core.schema import to_json as to_json
    from offramp._core.topology import Topology as Topology
    from offramp._core.version import __version__ as __version__
    from offramp.bundle import export_onnx as export_onnx
    from offramp.bundle import load as load
    from offramp.bundle import save as save
    from offramp.evaluation import Frontier as Frontier
    from offramp.evaluation import evaluate as evaluate
    from offramp.evaluation import fit as fit
    from offramp.evaluation import suggest as suggest
    from offramp.models import ModelSpec as ModelSpec
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
    from offramp.train import train_heads as train_heads
    from offramp.tuning import compile as compile

_HOME = {
    "Adaptive": "offramp.runtime",
    "Candidate": "offramp.policy",
    "Cascade": "offramp.stages",
    "Costs": "offramp._core.costs",
    "Frontier": "offramp.evaluation",
    "ModelSpec": "offramp.models",
    "Policy": "offramp.policy",
    "Prediction": "offramp.runtime",
    "Stage": "offramp.stages",
    "Topology": "offramp._core.topology",
    "Trace": "offramp.trace",
    "__version__": "offramp._core.version",
    "compile": "offramp.tuning",
    "evaluate": "offramp.evaluation",
    "export_onnx": "offramp.bundle",
    "fit": "offramp.evaluation",
    "from_json": "offramp._core.schema",
    "load": "offramp.bundle",
    "load_trace": "offramp.trace",
    "record": "offramp.recording",
    "save": "offramp.bundle",
    "save_trace": "offramp.trace",
    "suggest": "offramp.evaluation",
    "to_json": "offramp._core.schema",
    "train_heads": "offramp.train",
}

__all__ = [*sorted(_HOME)]

logging.getLogger(__name__).addHandler(logging.NullHandler())

__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    return list(__all__)
