"""Models that are split, and what the two parts answer together."""

import json
from contextlib import contextmanager

import pytest
import torch

from offramp._core.costs import Costs
from offramp._core.schema import to_json
from offramp.backends import to_onnx
from offramp.bundle.onnx import parts as parts_module
from offramp.fitting.stopping.network import stopping_policy
from offramp.models import ModelSpec, build, head_arguments
from offramp.policy import (
    Agreement,
    Candidate,
    ClassThreshold,
    Feature,
    Linear,
    Node,
    Policy,
    Stopping,
)
from offramp.runtime import Adaptive
from offramp.stages import Cascade
from offramp.testing import random_policy

NET = ModelSpec(name="resnet8", arguments={"width": 0.25})
SHAPES = {"layer1.0": (4, 8, 8), "layer2.0": (8, 4, 4), "layer3.0": (16, 2, 2)}
CLASSES = 10


def images(n, seed=0):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2


def exits():
    """One network with three exits and its own answer."""
    head = {
        point: ModelSpec(name="gap_linear", arguments=head_arguments("gap_linear", shape, CLASSES))
        for point, shape in SHAPES.items()
    }
    cascade = Cascade.from_network(build(NET), list(SHAPES), head=head, example=images(1), spec=NET)
    for stage in list(cascade)[:-1]:  # sure enough that some leave
        for layer in stage.head.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.data *= 6
    return cascade


def networks(edges="full"):
    """Three networks."""
    specs = {
        name: ModelSpec(name="small_cnn", arguments={"width": w, "depth": 2, "in_channels": 3})
        for name, w in {"a": 2, "b": 3, "c": 4}.items()
    }
    nets = {}
    for k, (name, spec) in enumerate(specs.items()):
        nets[name] = build(ModelSpec(name=spec.name, arguments={**spec.arguments, "seed": k}))
    return Cascade.from_models(nets, specs=specs, edges=edges)


def on_labels(topology):
    nodes = {(0,): Node(ClassThreshold(0, 1, 0.15)), (0, 1): Node(Agreement((0, 1), 1, 1))}
    nodes[0, 1, 2] = Node(Agreement((0, 2), 3, 2))
    chain = topology.chain(range(len(topology)))
    return Policy(chain, {p: n for p, n in nodes.items() if chain.children(p[-1])})


def skipping(topology):
    """An exit that nobody visits, whose segment runs."""
    rule = Linear([Feature("margin", 0), Feature("entropy", 0)], [1, -0.1], -0.2)
    return Policy(topology.chain([0, 2, 3]), {(0,): Node(rule), (0, 2): Node(rule)})


def stopping(topology):
    drawn = torch.Generator().manual_seed(4)

    def rule(stage):
        sizes = ((6, CLASSES), (2, 6))
        weights = [torch.randn(size, generator=drawn) for size in sizes]
        return Stopping(stage, [(2 * w, torch.zeros(len(w))) for w in weights], log_odds=0.1)

    chain = topology.chain([0, 1, 3])
    return stopping_policy(chain, [rule(0), rule(1)], combine="stopping")


def random_of(combine, seed):
    return lambda topology: random_policy(
        topology, seed=seed, classes=CLASSES, combine=combine, linear=True
    )


@contextmanager
def exported_once():
    """Within, parts of one name and form are exported once: they are of the same networks."""
    memory = {}

    def remembered(module, given, *, name, others=()):
        decides = name.startswith("what decides")
        whose = json.dumps(to_json(module.policy)) if decides else tuple(given.shape)
        key = (name, whose, str(sum(float(p.detach().double().sum()) for p in module.parameters())))
        if key not in memory:
            memory[key] = (to_onnx(module, given, name=name, others=others), module)
        return memory[key][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "to_onnx", remembered)
        yield


def model_of(cascade, policy):
    last = cascade.topology.names[-1]
    candidate = Candidate(policy=policy, method="mine", reference=last)
    costs = Costs.simple("flops", [4.0**k for k in range(len(cascade))])
    return Adaptive(cascade, candidate, costs=costs)
