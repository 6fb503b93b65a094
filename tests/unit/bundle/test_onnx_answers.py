"""Exported cascades answer as the runtime does, whatever the policy and whoever leaves where.

The stages say what the input holds for them, so any outputs can be injected, broken ones as well.
Each policy is exported once; the one file and the folder are made of the same parts.
"""

import functools
import importlib.util
import sys
from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from offramp._core.topology import RAW_INPUT, Topology
from offramp.backends import to_onnx
from offramp.bundle.onnx import parts as parts_module
from offramp.bundle.onnx.folder import write_parts
from offramp.bundle.onnx.parts import export_parts
from offramp.bundle.onnx.single_file import single_model
from offramp.fitting.stopping.network import stopping_policy
from offramp.policy import (
    Agreement,
    ClassThreshold,
    Constant,
    Feature,
    Linear,
    Node,
    Policy,
    Stopping,
)
from offramp.policy.combination import COMBINES
from offramp.runtime import Adaptive
from offramp.stages import Stage
from offramp.testing import random_policy, random_topology

STAGES, CLASSES = 4, 3
SIZES = (1, 2, 33, 128)
BOUNDARY = 1e-4  # relative change of all logits; who changes by it is near a boundary


class Pick(nn.Module):
    def __init__(self, stage):
        super().__init__()
        self.stage = stage

    def forward(self, x):  # (m, s, c)
        return x[:, self.stage]


@dataclass(frozen=True)
class Injected:
    """Stages whose logits the input holds; each passes it on."""

    topology: Topology
    class_names: tuple[str, ...] = ()

    def stage(self, which):
        source = self.topology.sources[which]
        return Stage(
            self.topology.names[which],
            nn.Identity(),
            head=Pick(which),
            source=None if source == RAW_INPUT else self.topology.names[source],
            group=self.topology.groups[which],
        )


def chain_of(stages):
    return Topology.of([f"stage{k}" for k in range(stages)]).chain(range(stages))


def label_rules():
    nodes = {
        (0,): Node(ClassThreshold(0, 1, 0.3)),
        (0, 1): Node(Agreement((0, 1), depth=2, shared=2)),
    }
    return Policy(chain_of(3), nodes, temperatures=[0.7, 1.0, 2.0])


def features():
    kinds = ["margin", "predicts_1", "entropy"]
    rule = Linear([Feature(kind, 0) for kind in kinds], [1, 0.3, 0.2], -0.6)
    return Policy(chain_of(2), {(0,): Node(rule)}, temperatures=[0.8, 1.0])


def stopping(combine):
    topology = Topology.of([f"stage{k}" for k in range(STAGES)], sources=[-1, 0, 1, 2])
    generator = torch.Generator().manual_seed(4)

    def rule(stage):
        sizes = ((6, CLASSES), (2, 6))
        weights = [torch.randn(size, generator=generator) for size in sizes]
        layers = [(2 * weight, torch.zeros(len(weight))) for weight in weights]
        return Stopping(stage, layers, log_odds=0.4)

    chain = topology.chain([0, 2, 3])  # the second exit is not used
    return stopping_policy(chain, [rule(0), rule(2)], combine=combine)


def random_case(where, seed, combine):
    topology = random_topology(STAGES, seed=where, shared=True)
    return random_policy(topology, seed=seed, classes=CLASSES, combine=combine, linear=True)


CASES = {
    "rules on labels": label_rules,
    "features": features,
    "stopping networks": lambda: stopping("stopping"),
    # several ways to a stage, and a segment that some have run before and some have not
    "a DAG, mean": lambda: random_case(51, 32, "mean"),
    "never": lambda: Policy(chain_of(2), {(0,): Node(Constant(False))}),
}
MORE = {f"{c} {k}": functools.partial(random_case, k, k, c) for k in (17, 25, 27, 43)
        for c in COMBINES}  # fmt: skip


def inputs(n, stages, seed, broken):
    generator = torch.Generator().manual_seed(seed)
    x = 1.5 * torch.randn(n, stages, CLASSES, generator=generator)
    if broken:
        bad = torch.rand(n, stages, generator=generator) < 0.3
        bad[::7] = True  # nothing is finite
        x[..., 0] = torch.where(bad, torch.nan, x[..., 0])
        x[..., 2] = torch.where(bad.roll(1, dims=1), torch.inf, x[..., 2])
    return x


@dataclass(frozen=True)
class Both:
    """One policy in the runtime and exported."""

    policy: Policy
    adaptive: Adaptive
    single: onnxruntime.InferenceSession
    runner: object

    def exported(self, x):
        """What the one file and the folder say, as (logits, label, stage)."""
        return {
            "single file": self.single.run(["log_probs", "label", "stage"], {"input": x.numpy()}),
            "folder": tuple(self.runner(x.numpy())),
        }


def load_runner(folder):
    spec = importlib.util.spec_from_file_location("offramp_exported_runner", folder / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.Cascade(folder, threads=1)


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Exports a policy once; the stages' own parts, which never change, are exported once."""
    held, memory = {}, {}

    def remembered(module, given, *, name, others=()):
        if name.startswith("what decides"):
            return to_onnx(module, given, name=name, others=others)
        key = (name, tuple(given.shape))
        if key not in memory:
            memory[key] = to_onnx(module, given, name=name, others=others)
        return memory[key]

    def make(name):
        if name not in held:
            policy = {**CASES, **MORE}[name]()
            stages = Injected(policy.topology)
            example = torch.zeros(1, len(policy.topology), CLASSES)
            parts = export_parts(stages, policy, example, transform=True)
            folder = tmp_path_factory.mktemp("exported")
            write_parts(folder, parts, ())
            held[name] = Both(
                policy, Adaptive(stages, policy), session(single_model(parts, ())),
                load_runner(folder),
            )  # fmt: skip
        return held[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "to_onnx", remembered)
        yield make


def near_a_boundary(adaptive, x):
    """Examples that are answered otherwise when all logits change a little."""
    here = adaptive(x)
    near = torch.zeros(len(x), dtype=torch.bool)
    for factor in (1 - BOUNDARY, 1 + BOUNDARY):
        there = adaptive(x * factor)
        near |= (here.stage != there.stage) | (here.labels != there.labels)
    return near.numpy()


def check_same(both, x):
    """Raise unless all say the same; return the number of examples that left at each stage."""
    expected, near = both.adaptive(x), near_a_boundary(both.adaptive, x)
    assert near.sum() <= max(1, 0.02 * len(x))
    for logits, label, stage in both.exported(x).values():
        same = ~near
        assert logits.dtype == np.float32
        assert label.dtype == stage.dtype == np.int64
        np.testing.assert_array_equal(stage[same], expected.stage.numpy()[same])
        np.testing.assert_array_equal(label[same], expected.labels.numpy()[same])
        np.testing.assert_allclose(
            logits[same], expected.log_probs.numpy()[same], rtol=1e-5, atol=1e-5
        )
    return np.bincount(expected.stage.numpy(), minlength=len(both.policy.topology))


def check_case(both):
    stages = len(both.policy.topology)
    return sum(
        check_same(both, inputs(n, stages, seed=n + 7 * broken, broken=broken))
        for n in SIZES
        for broken in (False, True)
    )


@pytest.mark.parametrize("name", CASES)
def test_one_file_and_folder_answer_as_the_runtime_does(made, name):
    both = made(name)
    left = check_case(both)
    assert (left[list(both.policy.topology.active)] > 0).all() == (name != "never"), left


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_random_policies_on_random_topologies_answer_as_the_runtime_does(made, name):
    check_case(made(name))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("factor", "stage"), [(30.0, 0), (0.01, 1)])
def test_where_all_leave_and_where_none_does_everybody_is_at_one_stage(made, n, factor, stage):
    both = made("features")
    labels = torch.arange(n)[:, None].expand(n, 2) % CLASSES
    x = factor * nn.functional.one_hot(labels, CLASSES).float()
    check_same(both, x)
    assert {tuple(set(found[2])) for found in both.exported(x).values()} == {(stage,)}


def test_examples_without_any_finite_logits_have_no_label(made):
    x = inputs(14, 3, seed=3, broken=True)
    for logits, label, _ in made("rules on labels").exported(x).values():
        assert label[0] == label[7] == -1
        assert np.isnan(logits[0]).all()
        assert not np.isnan(logits[label >= 0]).any()


def test_answers_do_not_depend_on_the_rest_of_the_batch_or_its_order(made):
    both = made("rules on labels")
    x = inputs(33, 3, seed=5, broken=True)
    backwards = both.exported(x.flip(0))
    for name, (_, label, stage) in both.exported(x).items():
        np.testing.assert_array_equal(backwards[name][1][::-1], label)
        np.testing.assert_array_equal(backwards[name][2][::-1], stage)


def test_an_empty_batch_has_empty_answers(made):
    x = inputs(0, STAGES, seed=0, broken=False)
    for logits, label, stage in made("stopping networks").exported(x).values():
        assert logits.shape == (0, CLASSES)
        assert label.shape == stage.shape == (0,)


def test_the_comparison_would_find_another_threshold(made):
    both = made("rules on labels")
    other = label_rules()
    other.node((0,)).leave.log_odds -= 0.5
    changed = Both(other, Adaptive(Injected(other.topology), other), both.single, both.runner)
    with pytest.raises(AssertionError):
        check_case(changed)
