"""Topology: paths, lineage and legality against slow obvious twins."""

import time
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp._core.errors import InputError, TopologyError, UnknownNameError
from offramp._core.schema import from_json, to_json
from offramp._core.topology import Topology


def exits(*, edges="chain", groups=None):
    """Three segments of one network, each continuing the one before."""
    return Topology.of(["a", "b", "c"], edges=edges, sources=[-1, 0, 1], groups=groups)


@st.composite
def topologies(draw):
    s = draw(st.integers(1, 5))
    pairs = list(combinations(range(s), 2))
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    sources = [draw(st.integers(-1, k - 1)) for k in range(s)]
    groups = draw(st.lists(st.sampled_from("xyz"), min_size=s, max_size=s))
    return {  # the test builds it: run-time type checks draw random numbers of their own
        "names": tuple("abcde"[:s]),
        "sources": tuple(sources),
        "groups": tuple(groups),
        "edges": tuple(edges),
    }


@given(topologies())
def test_paths_are_all_increasing_tuples_whose_steps_are_edges(parts):
    topology = Topology(**parts)
    s = len(topology)
    slow = {
        path
        for size in range(1, s + 1)
        for path in combinations(range(s), size)
        if path[0] == topology.root and all(step in topology.edges for step in pairwise(path))
    }
    paths = topology.paths()
    assert len(paths) == len(slow)
    assert set(paths) == slow
    assert all(p[:-1] in paths[:i] for i, p in enumerate(paths) if len(p) > 1)


@given(topologies())
def test_active_stages_are_those_that_some_path_visits(parts):
    topology = Topology(**parts)
    assert set(topology.active) == {k for path in topology.paths() for k in path}


@given(topologies())
def test_new_segments_are_the_groups_of_the_lineage_that_have_not_run(parts):
    topology = Topology(**parts)
    for path in topology.paths():
        ran = set()
        for visited in path:
            k = visited
            while k != -1:
                ran.add(topology.groups[k])
                k = topology.sources[k]
        for stage in topology.children(path[-1]):
            needed, k = [], stage
            while k != -1:
                needed.insert(0, k)
                k = topology.sources[k]
            expected = [j for j in needed if topology.groups[j] not in ran]
            assert list(topology.new_segments(path, stage)) == expected


@given(topologies())
@settings(deadline=None)  # the first of all reads loads pydantic
def test_a_topology_survives_json(parts):
    topology = Topology(**parts)
    assert from_json(Topology, to_json(topology)) == topology


def test_full_edges_skip_pairs_within_one_group():
    topology = Topology.of(["a", "b1", "b2"], groups=["a", "b", "b"])
    assert topology.edges == ((0, 1), (0, 2))


def test_a_skipped_exit_costs_its_segment_but_not_its_head():
    assert exits().new_segments((0,), 2) == (1, 2)


def test_alternative_heads_share_one_segment():
    topology = Topology.of(
        ["a", "b1", "b2", "c"],
        groups=["a", "b", "b", "c"],
        sources=[-1, 0, 0, 1],
        edges=[("a", "b1"), ("a", "b2"), ("b1", "c"), ("b2", "c")],
    )
    topology.check_cascade()  # after b2 the segment of b1, which c continues, has run as well
    assert topology.new_segments((0, 2), 3) == (3,)


def test_an_edge_past_the_source_is_illegal_and_named():
    topology = exits(edges="full")
    with pytest.raises(TopologyError, match=r"edge 'a' -> 'c' is illegal: 'c' continues 'b'"):
        topology.check_cascade()


@st.composite
def exits_at_random(draw):
    """Stages as a cascade has them: those of one group continue the same earlier stage."""
    groups, sources = [], []
    for k in range(draw(st.integers(1, 6))):
        group = draw(st.sampled_from(["own", *groups]))
        new = group == "own"
        groups.append(str(k) if new else group)
        sources.append(draw(st.integers(-1, k - 1)) if new else sources[groups.index(group)])
    pairs = list(combinations(range(len(groups)), 2))
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return {
        "names": tuple(f"stage{k}" for k in range(len(groups))),
        "sources": tuple(sources),
        "groups": tuple(groups),
        "edges": tuple(edges),
    }


def illegal_by_enumeration(topology):
    """(edge, path) of each step that leads to a stage whose source has not run on the path."""
    found = set()
    for path in topology.paths():
        for k in topology.children(path[-1]):
            wanting = [j for j in topology.new_segments(path, k) if j != k]
            if wanting and topology.groups[wanting[-1]] != topology.groups[k]:
                found.add((path[-1], k, path))
    return found


@given(exits_at_random())
def test_an_edge_is_legal_if_its_source_has_run_on_every_path(parts):
    topology = Topology(**parts)
    wanted = illegal_by_enumeration(topology)
    beside = {k for k in range(len(topology)) if topology.groups[k] == topology.groups[0]}
    if set(range(len(topology))) - set(topology.active) - beside:
        with pytest.raises(TopologyError, match="reachable"):
            topology.check_cascade()
    elif wanted:
        with pytest.raises(TopologyError, match="illegal") as caught:
            topology.check_cascade()
        said = {
            (
                f"The edge 'stage{j}' -> 'stage{k}' is illegal: 'stage{k}' continues",
                f"has not run on the path {[f'stage{i}' for i in path]}.",
            )
            for j, k, path in wanted
        }
        message = str(caught.value)
        assert any(message.startswith(one) and message.endswith(other) for one, other in said)
    else:
        topology.check_cascade()


def test_one_path_without_the_source_is_enough_and_is_named():
    topology = Topology.of(
        ["a", "b", "c", "d"],
        sources=[-1, 0, 0, 1],
        edges=[("a", "b"), ("b", "c"), ("a", "c"), ("c", "d")],
    )
    with pytest.raises(TopologyError, match=r"'c' -> 'd'.*'b'.*on the path \['a', 'c'\]"):
        topology.check_cascade()


def test_forty_exits_with_two_heads_each_are_checked_at_once():
    names = [f"{k}/{head}" for k in range(40) for head in ("linear", "deep")]
    pairs = [(a, b) for a, b in combinations(names, 2) if a.split("/")[0] != b.split("/")[0]]
    sources = [-1 if k < 2 else k // 2 * 2 - 2 for k in range(80)]
    groups = [name.split("/")[0] for name in names]
    skipping = Topology.of(names, edges=pairs, sources=sources, groups=groups)
    neighbors = [(a, b) for a, b in pairs if int(b.split("/")[0]) - int(a.split("/")[0]) == 1]
    chained = Topology.of(names, edges=neighbors, sources=sources, groups=groups)
    free = Topology.of(names, edges=pairs, groups=groups)
    start = time.perf_counter()
    with pytest.raises(TopologyError, match=r"'0/linear' -> '2/linear'.*continues '1/linear'"):
        skipping.check_cascade()
    chained.check_cascade()  # 2 ** 40 paths
    free.check_cascade()
    assert time.perf_counter() - start < 1


def test_a_stage_that_cannot_be_reached_is_named():
    topology = Topology.of(["a", "b", "c"], edges=[("a", "b")])
    with pytest.raises(TopologyError, match=r"reachable from 'a'; \['c'\] are not"):
        topology.check_cascade()


def test_a_whole_network_may_be_reached_from_anywhere():
    Topology.of(["a", "b", "c"]).check_cascade()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": []}, "at least one stage"),
        ({"names": ["a", "a"]}, r"unique, got \['a', 'a'\]"),
        ({"names": ["a", "b"], "edges": [("b", "a")]}, r"got \(1, 0\)"),
        ({"names": ["a", "b"], "edges": [("a", "a")]}, r"got \(0, 0\)"),
        ({"names": ["a", "b"], "edges": "ring"}, "got 'ring'"),
        ({"names": ["a", "b"], "sources": [-1, 1]}, "source of stage 'b'.*got 1"),
        ({"names": ["a", "b"], "sources": [-2, 0]}, "source of stage 'a'.*got -2"),
        ({"names": ["a", "b"], "sources": [-1]}, "one entry per stage"),
    ],
)
def test_an_impossible_topology_is_refused_with_its_value(arguments, message):
    with pytest.raises(TopologyError, match=message):
        Topology.of(**arguments)


def test_an_unknown_stage_in_an_edge_suggests_the_near_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'small'"):
        Topology.of(["small", "large"], edges=[("smal", "large")])


def test_too_many_paths_are_refused_instead_of_enumerated():
    with pytest.raises(InputError, match="more than 4096 visit paths"):
        Topology.of([str(k) for k in range(20)]).paths()


def test_a_chain_of_many_stages_has_few_paths():
    assert len(Topology.of([str(k) for k in range(200)], edges="chain").paths()) == 200


def test_chain_takes_names_or_positions_in_order_only():
    topology = Topology.of(["a", "b", "c"])
    assert topology.chain(["b", 2]).paths() == ((1,), (1, 2))
    with pytest.raises(TopologyError, match="topological order"):
        topology.chain(["c", "a"])


def test_describe_is_an_arrow_for_chains_and_a_list_of_edges_otherwise():
    topology = Topology.of(["a", "b", "c"])
    assert topology.chain(["a", "c"]).describe() == "a -> c"
    assert topology.part([(0, 1), (0, 2)]).describe() == "a -> b, a -> c"
