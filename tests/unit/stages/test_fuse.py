import itertools

import pytest
import torch
from torch import nn

from offramp._core.errors import InputError, UnknownNameError
from offramp._core.topology import Topology
from offramp.backends import with_backend
from offramp.policy import Constant, Feature, Linear, Node, Policy
from offramp.runtime import Adaptive, StageTimes
from offramp.stages import Cascade, Stage, fuse
from offramp.testing import random_policy
from offramp.tuning import fuse_for
from offramp.tuning.fuse_for import best_blocks, reached

STAGES, CLASSES, WIDTH = 5, 4, 6
BLOCKS = ([], [range(STAGES)], [(0, 1), (2, 3, 4)], [(1, 2, 3)], [(3, 4)], [(0, 1), (2, 3)])


def linear(inputs, outputs, generator):
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=generator))
        layer.bias.copy_(torch.randn(outputs, generator=generator))
    return layer.eval()


class Counted(nn.Module):
    """Counts the examples that a segment runs on."""

    def __init__(self, module):
        super().__init__()
        self.module, self.rows = module, 0

    def forward(self, x):
        self.rows += len(x)
        return self.module(x)


def exits(stages=STAGES, wrapped=nn.Sequential):
    """Segments of a network with an exit after each but the last, which answers itself."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for k in range(stages):
        last = k == stages - 1
        body = nn.Sequential(linear(WIDTH, CLASSES if last else WIDTH, generator), nn.Tanh())
        head = None if last else linear(WIDTH, CLASSES, generator)
        source = made[-1].name if made else None
        made.append(Stage(f"s{k}", wrapped(body), head=head, source=source))
    return Cascade(made, edges="chain")


def inputs(n, seed=1):
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))


def joined(cascade, blocks, **options):
    return fuse(cascade, [[f"s{k}" for k in block] for block in blocks], **options)


def policies(cascade):
    chain = cascade.topology.chain(cascade.topology.names)
    for seed, combine in enumerate(["last", "mean", "log_linear", "last"]):
        yield random_policy(chain, seed=seed, classes=CLASSES, combine=combine)
    for some in (["s0", "s2", "s4"], ["s1", "s3"], ["s2", "s3", "s4"]):
        part = cascade.topology.chain(some)
        yield random_policy(part, seed=7, classes=CLASSES, combine="mean", linear=True)


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("size", [1, 2, 9])
def test_stages_in_one_piece_answer_as_stages_apart(blocks, size):
    cascade = exits()
    for policy in policies(cascade):
        apart, together = Adaptive(cascade, policy), Adaptive(joined(cascade, blocks), policy)
        for batch in inputs(9).split(size):
            want, have = apart(batch), together(batch)
            assert torch.equal(want.stage, have.stage)
            assert torch.allclose(want.log_probs, have.log_probs, atol=1e-5)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_streams_and_measured_times_change_no_answer(blocks):
    cascade = exits()
    policy = next(policies(cascade))
    want = Adaptive(cascade, policy)(inputs(20))
    made = joined(cascade, blocks)
    row = ((1e-3, 1e-2),) * STAGES
    times = StageTimes(
        stages=made.topology.names, sizes=(1, 8), segment=row, head=row, carry=row,
        raw=(1e-4, 1e-4), where="here",
    )  # fmt: skip
    for model in (Adaptive(made, policy), Adaptive(made, policy, times=times)):
        found = {}
        for ids, answer in model.stream(inputs(20).split(3), batch_size=4):
            found |= dict(zip(ids.tolist(), answer.stage.tolist(), strict=True))
        assert [found[k] for k in range(20)] == want.stage.tolist()
        assert torch.equal(model(inputs(20)).stage, want.stage)


def test_a_block_runs_once_and_on_everybody_who_gets_there():
    cascade = exits(wrapped=Counted)
    never = {p: Node(Constant(False)) for p in cascade.topology.chain(range(STAGES)).paths()[:-1]}
    blocks = joined(cascade, [(0, 1, 2), (3, 4)])
    for stage in blocks:
        stage.keeps_company = True  # as after recording, so that nothing runs to find it out
    made = Adaptive(blocks, Policy(cascade.topology.chain(range(STAGES)), never))
    for size in (1, 8):
        for stage in cascade:
            stage.module.rows = 0
        made(inputs(size))
        assert [stage.module.rows for stage in cascade] == [size] * STAGES


def test_a_broken_output_in_a_block_is_answered_by_the_last_finite_stage():
    cascade = exits()
    policy = next(policies(cascade))
    batch = inputs(3)
    with torch.no_grad():
        cascade.stage(1).head.bias[0] = torch.nan
    for part in (batch, *batch.split(1)):
        want = Adaptive(cascade, policy)(part)
        have = Adaptive(joined(cascade, [range(STAGES)]), policy)(part)
        assert torch.equal(want.stage, have.stage)
        assert torch.equal(want.nonfinite, have.nonfinite)
        assert torch.allclose(want.log_probs, have.log_probs, atol=1e-5)


def test_heads_that_nobody_asks_do_not_run():
    cascade = exits()
    made = joined(cascade, [(0, 1, 2)], asked=["s0", "s2", "s3", "s4"])
    assert made.stage(0).run(inputs(2))[1].logits.shape == (2, 2, CLASSES)
    with pytest.raises(InputError, match=r"'s1' was joined .* not among those"):
        made.stage(1).answer(made.stage(0).segment(inputs(2)))


def test_blocks_must_be_runs_of_segments():
    cascade = exits()
    with pytest.raises(InputError, match=r"got the text 's0'\. One block is a list in a list"):
        fuse(cascade, ["s0", "s1"])
    with pytest.raises(UnknownNameError, match="s9"):
        fuse(cascade, [["s0", "s9"]])
    with pytest.raises(InputError, match=r"'s2' reads 's1', not 's0'"):
        joined(cascade, [(0, 2)])
    with pytest.raises(InputError, match=r"share stages, got \['s1'\]"):
        joined(cascade, [(0, 1), (1, 2)])
    with pytest.raises(InputError, match="a stage of each block"):
        joined(cascade, [(0, 1)], asked=["s4"])


def test_a_stage_that_others_continue_is_not_in_the_middle_of_a_block():
    layers = [linear(WIDTH, WIDTH, torch.Generator().manual_seed(k)) for k in range(3)]
    stages = [
        Stage("a", layers[0], head=nn.Identity()),
        Stage("b", layers[1], head=nn.Identity(), source="a"),
        Stage("c", layers[2], head=nn.Identity(), source="a"),
    ]
    cascade = Cascade(stages, edges=[("a", "b"), ("b", "c")])
    with pytest.raises(InputError, match="'c' continues it"):
        fuse(cascade, [["a", "b"]])


def every_division(n):
    for cuts in itertools.product([False, True], repeat=n - 1):
        blocks, start = [], 0
        for k, cut in enumerate(cuts, 1):
            if cut:
                blocks.append(tuple(range(start, k)))
                start = k
        yield (*blocks, tuple(range(start, n)))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_best_blocks_are_the_best_of_all(seed, batch_size):
    draw = torch.Generator().manual_seed(seed)
    reach = [1.0, *torch.rand(5, generator=draw).sort(descending=True).values.tolist()]
    seconds = torch.rand(6, generator=draw).tolist()
    border = float(torch.rand(1, generator=draw)) * 0.5

    def taken(blocks):
        total = 0.0
        for block in blocks:
            total += reach[block[0]] * sum(seconds[k] for k in block)
            total += border * (1 - (1 - reach[block[0]]) ** batch_size) if block[0] else 0.0
        return total

    found = best_blocks(reach, seconds, border, batch_size=batch_size)
    assert taken(found) == pytest.approx(min(map(taken, every_division(6))))


def test_calls_that_cost_nothing_divide_and_stages_that_nobody_leaves_do_not():
    assert best_blocks([1.0, 0.9, 0.8], [1.0] * 3, 0.0) == ((0,), (1,), (2,))
    assert best_blocks([1.0, 1.0, 1.0], [1.0] * 3, 1e-9) == ((0, 1, 2),)
    topology = Topology.of(["a", "b", "c"], sources=[-1, 0, 1]).chain(["b", "c"])
    assert reached([1, 2], topology) == [1.0, 1.0, 0.5]


def test_joining_for_a_policy_measures_and_answers_the_same():
    cascade = exits()
    chain = cascade.topology.chain(range(STAGES))
    nodes = {
        p: Node(Linear.threshold(Feature("max_prob", p[-1]), 0.99)) for p in chain.paths()[:-1]
    }
    policy = Policy(chain, nodes)
    made = fuse_for(cascade, policy, inputs(16), backend="folded", rounds=1)
    have, want = Adaptive(made, policy)(inputs(9)), Adaptive(cascade, policy)(inputs(9))
    assert torch.equal(have.stage, want.stage)
    with pytest.raises(InputError, match="at least one example"):
        fuse_for(cascade, policy, inputs(0), backend="folded")
    with pytest.raises(InputError, match=r"to rounding, got 'onnxruntime-int8'"):
        fuse_for(cascade, policy, inputs(2), backend="onnxruntime-int8")
    models = Cascade.from_models({name: nn.Linear(WIDTH, CLASSES) for name in "abc"})
    full = random_policy(models.topology, seed=0, classes=CLASSES)
    with pytest.raises(InputError, match="must be a chain"):
        fuse_for(models, full, inputs(2), backend="folded")


def test_a_block_is_one_model_of_onnxruntime():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    cascade = exits(4)
    blocks = [(0, 1), (2, 3)]
    made = with_backend(joined(cascade, blocks), "onnxruntime", example=inputs(2))
    policy = random_policy(cascade.topology.chain(range(4)), seed=2, classes=CLASSES, linear=True)
    for size in (1, 7):
        have, want = Adaptive(made, policy)(inputs(size)), Adaptive(cascade, policy)(inputs(size))
        assert torch.equal(have.stage, want.stage)
        assert torch.allclose(have.log_probs, want.log_probs, atol=1e-5)
