"""What must hold for every topology, cost table, trace and division into splits."""

import json
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp._core.costs import Costs
from offramp._core.schema import from_json, to_json
from offramp._core.topology import Topology
from offramp._core.types import SPLITS
from offramp.data import arrays
from offramp.testing import random_topology
from offramp.trace import load_trace, make_trace, save_trace
from support.properties import examples

SEEDS = st.integers(0, 2**31 - 1)
STAGES = st.integers(1, 5)


def random_costs(stages, seed):
    rng = np.random.default_rng(seed)
    tables = {name: tuple(rng.exponential(size=stages)) for name in ("segment", "head", "decision")}
    return Costs(unit="flops", **tables)


@given(seed=SEEDS, stages=STAGES, shared=st.booleans())
def test_a_topology_survives_json(seed, stages, shared):
    topology = random_topology(stages, seed=seed, shared=shared)
    again = from_json(Topology, json.loads(json.dumps(to_json(topology))))
    assert again == topology
    assert again.paths() == topology.paths()


@given(seed=SEEDS, stages=STAGES)
def test_costs_survive_json(seed, stages):
    costs = random_costs(stages, seed)
    assert from_json(Costs, json.loads(json.dumps(to_json(costs)))) == costs


@given(seed=SEEDS, stages=STAGES, shared=st.booleans())
def test_going_on_never_makes_a_path_cheaper(seed, stages, shared):
    topology = random_topology(stages, seed=seed, shared=shared)
    costs = random_costs(stages, seed)
    everywhere = range(stages)
    for path in topology.paths():
        price = costs.path(topology, path, everywhere)
        assert price >= costs.path(topology, path, ()) >= 0
        if len(path) > 1:
            assert price >= costs.path(topology, path[:-1], everywhere)


@given(seed=SEEDS, stages=STAGES)
def test_sharing_work_never_costs_more_than_running_every_stage_alone(seed, stages):
    topology = random_topology(stages, seed=seed, shared=True)
    costs = random_costs(stages, seed)
    for path in topology.paths():
        together = costs.path(topology, path, ())
        assert together <= sum(costs.alone(topology, k) for k in path) + 1e-9
        assert together >= costs.alone(topology, path[-1]) - 1e-9


@given(seed=SEEDS, stages=STAGES, shared=st.booleans())
def test_a_path_runs_each_group_once_and_everything_that_its_stages_need(seed, stages, shared):
    topology = random_topology(stages, seed=seed, shared=shared)
    for path in topology.paths():
        ran = [j for i, k in enumerate(path) for j in topology.new_segments(path[:i], k)]
        assert len({topology.groups[j] for j in ran}) == len(ran)
        needed = {topology.groups[j] for k in path for j in topology.lineage(k)}
        assert {topology.groups[j] for j in ran} == needed


WISHES = st.fixed_dictionaries(
    {
        "n": st.integers(1, 12),
        "stages": st.integers(1, 3),
        "classes": st.integers(2, 6),
        "seed": SEEDS,
        "kind": st.sampled_from(["logits", "labels"]),
    }
)
EXTRAS = st.sets(st.sampled_from(["ids", "split", "class_names", "other_costs", "seen"]))


def decorated(wishes, extras):
    """A trace with the fields that it may have besides."""
    trace, n = make_trace(**wishes), wishes["n"]
    rng = np.random.default_rng(wishes["seed"])
    every = {
        "ids": {"ids": np.array([f"image \u00fc {k}" for k in range(n)])},
        "split": {"split": torch.from_numpy(rng.integers(0, 4, n)).to(torch.int8)},
        "class_names": {"class_names": tuple(f"class {k}" for k in range(trace.classes))},
        "other_costs": {"other_costs": (random_costs(len(trace.topology), wishes["seed"]),)},
        "seen": {"seen_in_training": True},
    }
    return replace(trace, **{k: v for extra in extras for k, v in every[extra].items()})


def same(one, other):
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype.kind == other.dtype.kind and np.array_equal(one, other)
    return type(one) is type(other) and one == other


@given(wishes=WISHES, extras=EXTRAS)
@examples(12)
def test_a_trace_survives_saving_and_loading(wishes, extras):
    trace = decorated(wishes, extras)
    with tempfile.TemporaryDirectory() as folder:
        save_trace(trace, Path(folder) / "some.trace")
        again = load_trace(Path(folder) / "some.trace")
        for name in trace.__dataclass_fields__:
            assert same(getattr(again, name), getattr(trace, name)), name


FRACTIONS = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def shares_of(parts):
    return {name: part / sum(parts) for name, part in zip(SPLITS, parts, strict=False)}


def check_division(ids, kept, split, shares):
    """Each example at most once, none invented, each split there and of about its size."""
    assert len(set(kept.tolist())) == len(kept)
    assert set(kept.tolist()) <= set(ids.tolist())
    for name, share in shares.items():
        count = int((split == SPLITS.index(name)).sum())
        assert count >= 1
        assert abs(count - share * len(ids)) <= 1


@given(parts=FRACTIONS, n=st.integers(20, 80), seed=SEEDS, stratified=st.booleans())
@examples(40)
def test_divided_examples_are_disjoint_and_shares_of_one_use_them_all(parts, n, seed, stratified):
    data = arrays(torch.zeros(n, 1), torch.arange(n) % 2)
    shares = shares_of(parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a small split may lack a class, and says so
        divided = data.split_into(shares, seed=seed, stratified=stratified)
    assert len(divided) == n
    check_division(data.ids, divided.ids, divided.split.numpy(), shares)


@given(parts=FRACTIONS, n=st.integers(20, 80), seed=SEEDS)
@examples(40)
def test_divided_traces_are_disjoint_and_shares_of_one_use_them_all(parts, n, seed):
    trace = make_trace(n, stages=2, seed=seed)
    shares = shares_of(parts)
    divided = trace.split_into(shares, seed=seed)
    assert len(divided) == n
    check_division(trace.ids, divided.ids, divided.split.numpy(), shares)


@given(counts=st.lists(st.integers(1, 8), min_size=1, max_size=4), seed=SEEDS)
@examples(25)
def test_numbers_of_examples_are_kept_to_the_letter(counts, seed):
    trace = make_trace(40, stages=1, seed=seed)
    shares = dict(zip(SPLITS, counts, strict=False))
    divided = trace.split_into(shares, seed=seed)
    found = [int((divided.split == SPLITS.index(name)).sum()) for name in shares]
    assert found == counts
    for name in shares:
        for other in set(shares) - {name}:
            divided.subset(name).require_disjoint(divided.subset(other))


def test_another_seed_divides_otherwise_and_the_same_seed_does_not():
    trace = make_trace(60, stages=1)
    first, again, other = (trace.split_into({"fit": 30}, seed=s).ids.tolist() for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_an_example_in_two_parts_is_refused():
    trace = make_trace(10, stages=1)
    with pytest.raises(ValueError, match="1 examples are in both parts"):
        trace.take(torch.arange(5)).require_disjoint(trace.take(torch.arange(4, 10)))
