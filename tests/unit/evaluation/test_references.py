"""Overlap, reference points and the share of the gap closed."""

import itertools

import numpy as np
import pytest

from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp.evaluation import ReferencePoint, overlap, references, share_of_gap_closed
from offramp.evaluation.gap import cost_at
from offramp.fitting.thresholds import fit_threshold
from offramp.trace import make_trace


def test_overlap_counts_each_subset_as_a_loop_does():
    trace = make_trace(150, stages=3, seed=2)
    found = overlap(trace)
    right = [~trace.wrong(k) for k in range(3)]
    for size in range(4):
        for subset in itertools.combinations(range(3), size):
            count = sum(all(right[k][row] == (k in subset) for k in range(3)) for row in range(150))
            assert found.share(*[trace.stages[k] for k in subset]) == pytest.approx(count / 150)
    assert sum(found.shares) == pytest.approx(1)
    assert list(found.shares) == sorted(found.shares, reverse=True)


def test_overlap_of_top_m_has_fewer_misses():
    trace = make_trace(300, stages=2, seed=0)
    assert overlap(trace, top=2).share() < overlap(trace).share()


def test_references_hold_every_kind_and_the_oracles_dominate():
    trace = make_trace(1000, stages=3, seed=1)
    threshold = fit_threshold(trace, reference="stage2", combines=["last"], confidences=["margin"])
    found = references(trace, "stage2", threshold=threshold[:3])
    kinds = [p.kind for p in found]
    assert kinds.count("static") == 3
    assert kinds.count("oracle") == 3
    assert kinds.count("threshold") == 3
    by_name = {p.name: p for p in found}
    assert by_name["stage2 alone"].cost_ratio == 1
    paper, neutral, free = (by_name[f"{k} oracle"] for k in ("paper", "neutral", "free"))
    assert neutral.cost_ratio <= paper.cost_ratio
    assert free.accuracy >= neutral.accuracy
    assert paper.negative_flips == neutral.negative_flips == 0
    assert neutral.accuracy == pytest.approx(trace.accuracy(2))


def test_the_uniform_curve_runs_from_the_root_to_the_whole_chain():
    trace = make_trace(3000, stages=2, seed=1)
    curve = [p for p in references(trace, "stage1") if p.kind == "random"]
    ends = {p.name: p.cost_ratio for p in curve}
    assert ends["random, 1"] == pytest.approx(0.25)
    assert ends["random, 0"] == pytest.approx(1.25)
    for p in curve:  # a random mix of the two networks, up to the draw
        rate = float(p.name.split(", ")[1])
        assert p.cost_ratio == pytest.approx(0.25 + (1 - rate), abs=0.04)
        mixed = rate * trace.accuracy(0) + (1 - rate) * trace.accuracy(1)
        assert p.accuracy == pytest.approx(mixed, abs=0.02)


def test_references_where_f_is_the_root_or_heads_share_a_cut():
    trace = make_trace(100, accuracies=[0.95, 0.6])
    kinds = {p.kind for p in references(trace, "stage0")}
    assert kinds == {"static", "oracle"}
    grouped = Topology.of(["a", "b", "f"], groups=["cut", "cut", "end"], sources=[-1, -1, -1])
    found = references(make_trace(100, topology=grouped), "f")
    assert {p.kind for p in found} == {"static", "random", "oracle"}


def at(cost: float, accuracy: float, kind: str = "random") -> ReferencePoint:
    return ReferencePoint(
        name="",
        kind=kind,
        cost_ratio=cost,
        accuracy=accuracy,
        accuracy_drop=0.0,
        negative_flips=0.0,
    )


CURVE = [at(0.2, 0.80), at(0.7, 0.85), at(1.2, 0.90)]
ORACLE = at(0.4, 0.90, "oracle")


@pytest.mark.parametrize(
    ("cost", "accuracy", "share"),
    [
        (1.2, 0.90, 0.0),
        (0.4, 0.90, 1.0),
        (0.8, 0.90, 0.5),
        (0.2, 0.90, 1.25),  # beyond the oracle
        (1.6, 0.90, -0.5),  # more expensive than leaving at random
        (0.5, 0.85, 0.5),  # the oracle followed on half of the examples costs 0.3
        (0.4, 0.95, 1.0),  # more accurate than both: charged at their best
    ],
)
def test_share_of_the_gap_at_equal_accuracy(cost, accuracy, share):
    assert share_of_gap_closed(at(cost, accuracy), CURVE, ORACLE) == pytest.approx(share)


def test_there_is_no_gap_where_the_oracle_saves_nothing():
    assert share_of_gap_closed(at(0.2, 0.80), CURVE, ORACLE) is None


def test_a_curve_without_points_is_refused():
    with pytest.raises(InputError, match="at least one point"):
        share_of_gap_closed(at(0.2, 0.8), [], ORACLE)


def test_a_dominated_point_of_the_curve_does_not_raise_its_cost():
    curve = [(0.2, 0.8), (1.0, 0.85), (1.2, 0.9)]
    assert cost_at(curve, 0.85) == pytest.approx(0.7)
    assert cost_at(curve, 0.7) == 0.2
    assert np.isclose(cost_at(curve, 0.99), 1.2)
