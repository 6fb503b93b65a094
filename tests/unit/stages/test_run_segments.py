"""Every segment runs once, and what nobody reads any more is let go."""

import gc
import weakref

import torch
from torch import nn

from offramp.stages import Cascade, Stage
from offramp.stages.segments import kept_after, run_segments


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.given, self.gave = [], []

    def forward(self, x):
        found = x * 2
        self.given.append(x)
        self.gave.append(weakref.ref(found))
        return found


def network():
    """Two heads on the first segment; the third stage continues it, the last reads raw input."""
    first, second = Counted(), Counted()
    stages = [
        Stage("a", first, head=nn.Identity(), group="first"),
        Stage("b", first, head=nn.Identity(), group="first"),
        Stage("c", second, head=nn.Identity(), source="a"),
        Stage("d", Counted()),
    ]
    return stages, first, second


def test_a_segment_that_stages_share_runs_once_and_others_read_what_it_gave():
    stages, first, second = network()
    x = torch.ones(2, 3)
    for _ in range(2):  # the first batch is handed out as a copy
        found = [(stage.name, carry) for stage, carry in run_segments(stages, x)]
    assert [name for name, _ in found] == ["a", "b", "c", "d"]
    assert found[0][1] is found[1][1]
    assert len(first.given) == len(second.given) == 2
    assert second.given[-1] is found[0][1]
    assert [float(carry.mean()) for _, carry in found] == [2.0, 2.0, 4.0, 2.0]


def test_what_no_later_stage_reads_is_let_go():
    stages, first, second = network()
    alive = []
    for _, carry in run_segments(stages, torch.ones(2, 3)):
        del carry
        first.given.clear()
        second.given.clear()
        gc.collect()
        alive.append([ref() is not None for ref in (*first.gave, *second.gave)])
    assert alive == [[True], [True], [False, True], [False, False]]


def test_a_part_of_a_cascade_finds_its_sources_by_their_groups():
    stages, _, _ = network()
    cascade = Cascade(stages)
    x = torch.ones(2, 3)
    whole = {stage.name: carry for stage, carry in run_segments(stages, x)}
    some = {s.name: c for s, c in run_segments(stages[1:3], x, cascade.topology)}  # "b" for "a"
    assert torch.equal(some["c"], whole["c"])


def test_kept_is_what_a_later_step_reads():
    assert kept_after([]) == []
    assert kept_after([{"x"}, {"y"}]) == [frozenset({"y"}), frozenset()]
