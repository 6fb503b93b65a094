import pytest

from offramp._core.errors import InputError
from offramp._core.topology import Topology
from offramp.fitting.search import sub_chains, sub_topologies, without


def described(topologies):
    return [t.describe() for t in topologies]


def test_every_sub_chain_of_four_networks_is_found_once():
    chains = sub_chains(Topology.of(list("abcd")))
    assert len(chains) == 11
    assert len(set(described(chains))) == 11


def test_a_chain_of_exits_may_leave_exits_out():
    assert "a -> c" in described(sub_chains(Topology.of(list("abc"), edges="chain")))


def test_only_steps_that_the_edges_allow_are_taken():
    fork = Topology.of(list("abc"), edges=[("a", "b"), ("a", "c")])
    assert described(sub_chains(fork)) == ["a -> b", "a -> c"]


def test_a_chain_takes_one_head_of_a_group():
    t = Topology.of(["e1", "e1deep", "end"], groups=["e1", "e1", "end"], sources=[-1, -1, 0])
    assert described(sub_chains(t)) == ["e1 -> end", "e1deep -> end"]


def test_the_whole_is_added_only_where_it_branches():
    assert len(sub_topologies(Topology.of(list("abc"), edges="chain"))) == 4
    assert len(sub_topologies(Topology.of(list("abc")))) == 5


def test_too_many_chains_are_refused_with_the_repair():
    many = Topology.of([f"s{k}" for k in range(14)], edges="chain")
    with pytest.raises(InputError, match="set longest below 14"):
        sub_chains(many)
    assert len(sub_chains(many, longest=2)) == 91


def test_a_bypassed_stage_hands_its_followers_on():
    whole = Topology.of(list("abc"))
    assert described([without(whole, 0), without(whole, 1)]) == ["b -> c", "a -> c"]
    diamond = Topology.of(list("abcd"), edges=[("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    assert without(diamond, 1).children(0) == (2, 3)
