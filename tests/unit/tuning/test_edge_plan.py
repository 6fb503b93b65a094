"""Cuts of a cascade over places: costs are those of every path, and what cannot be is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from offramp._core.costs import Costs
from offramp._core.cut import Cut
from offramp._core.errors import InputError
from offramp._core.link import Link, Toll
from offramp._core.topology import Topology
from offramp.evaluation import replay
from offramp.recording import record
from offramp.stages import Cascade
from offramp.trace.testing import make_trace
from offramp.tuning import plan_edge, rounded, sizes_of
from offramp.tuning.edge import offline_of

SLOW, FAST = Link.parse("1 Mbit/s, 10 ms"), Link.parse("10 Gbit/s, 0 ms")


def cascade_of(stages, classes=10):
    nets = {f"stage{k}": nn.Linear(4, classes) for k in range(stages)}
    return Cascade.from_models(nets)


def trace_of(stages=2):
    trace = make_trace(n=3000, stages=stages, seed=0)
    return trace.split_into({"fit": 0.5, "calibrate": 0.5}, seed=0)


def places_of(device, cloud, unit="seconds"):
    return {"device": Costs.simple(unit, device), "cloud": Costs.simple(unit, cloud)}


def plan(link=SLOW, device=(0.01, 0.16), cloud=(0.001, 0.016), raw=12_000.0, **others):
    trace = trace_of(len(device))
    options = {"max_drop": 0.05, "policy": "threshold", "combines": ["last"], **others}
    places = options.pop("places", places_of(device, cloud))
    return plan_edge(
        trace, cascade_of(len(device)), places, link, sizes={"": raw}, **options
    ), trace


def test_the_cost_of_an_example_is_that_of_its_way_with_the_link():
    found, trace = plan()
    part = trace.subset("calibrate")
    went = replay(part, found.choice.candidate.policy)
    link = SLOW.seconds(12_000 + 4 * trace.classes)
    cost = {(0,): 0.01, (0, 1): 0.01 + link + 0.016}
    mean = np.mean([cost[went.paths[k]] for k in went.path])
    assert found.cost == pytest.approx(mean)
    assert found.device == ("stage0",)
    assert found.alone == pytest.approx({"device": 0.16, "cloud": SLOW.seconds(12_000) + 0.016})
    assert found.worth
    assert found.choice.guarantee.limits[0].at_most == 0.05
    share = np.mean([went.paths[k] != (0,) for k in went.path])
    assert found.bytes == pytest.approx(share * (12_000 + 4 * trace.classes))


def test_three_places_are_the_same_object():
    topology = Topology.of(["a", "b", "c"])
    costs = Costs(
        unit="seconds", segment=(1.0, 2.0, 4.0), head=(0.0,) * 3, decision=(0.5,) * 3,
        places=(0, 1, 2), links=(10.0, 100.0),
    )  # fmt: skip
    ways = {(0,): 1, (0, 1): 1 + 10 + 2, (0, 2): 1 + 110 + 4, (0, 1, 2): 1 + 10 + 2 + 100 + 4}
    for path, cost in ways.items():
        assert costs.path(topology, path, ()) == cost
    assert costs.alone(topology, 2) == 114
    assert costs.relative_to(topology, 2).path(topology, (0, 2), ()) == pytest.approx(115 / 114)
    tables = {"device": [1.0, 9, 9], "gateway": [0.5, 1, 5], "cloud": [0.1, 0.2, 0.4]}
    three = {name: Costs.simple("seconds", row) for name, row in tables.items()}
    found = plan_edge(
        trace_of(3), cascade_of(3), three, [SLOW, SLOW], sizes={"": 1000.0}, max_drop=0.05,
        combines=["last"],
    )  # fmt: skip
    assert list(found.places.values()) == [("stage0",), ("stage1",), ("stage2",)]
    assert found.gateway_offline is not None
    assert found.gateway_offline.accuracy >= found.offline.accuracy


@pytest.mark.parametrize(
    ("places", "links", "named"),
    [((0, 1), (), "places"), ((0,), (1.0,), "places"), ((0, 1), (-1.0,), "links")],
)
def test_places_that_cannot_be_are_refused(places, links, named):
    with pytest.raises(InputError, match=named):
        Costs(
            unit="s", segment=(1.0, 2.0), head=(0.0, 0.0), decision=(0.0, 0.0),
            places=places, links=links,
        )  # fmt: skip


def test_where_the_cloud_is_near_it_is_used_alone():
    found, _ = plan(FAST, device=(1.0, 16.0))
    assert not found.worth
    assert "Use the cloud alone" in found.sentence


def test_other_units_have_tolls():
    found, _ = plan(
        Toll(unit="usd", per_call=1.0), places=places_of([1e-3, 2.0], [1e-3, 0.1], "usd")
    )
    assert found.costs.unit == "usd"
    assert found.costs.links == (1.0,)
    with pytest.raises(InputError, match="one unit"):
        plan(Toll(unit="usd", per_call=1.0))


def test_the_limit_of_the_device_alone_holds_as_often_as_it_says():
    trace = make_trace(n=40_000, stages=2, seed=1)
    policy = plan()[0].choice.candidate.policy
    here, right, rng = frozenset({0}), trace.accuracy(0), np.random.default_rng(0)
    wrong = 0
    for _ in range(100):
        rows = torch.from_numpy(rng.choice(len(trace), 200, replace=False))
        found = offline_of(trace.take(rows), policy, here, 0.1)
        assert found.at_least <= found.accuracy
        wrong += found.at_least > right
    assert wrong <= 18  # 10 expected


@pytest.mark.parametrize("text", ["0 Mbit/s, 5 ms", "20, 50", "20 Mbit/s", "1 Mbit/s, -5 ms", ""])
def test_a_link_that_is_none_is_refused(text):
    with pytest.raises(InputError, match=r"link|bandwidth"):
        Link.parse(text)


def test_what_is_too_large_for_the_link_names_the_better_cut():
    device, cloud = (0.01, 0.02, 2.0), (0.001, 0.002, 0.02)
    trace, cascade, places = trace_of(3), cascade_of(3), places_of(device, cloud)
    link = Link.parse("8 kbit/s, 0 ms")
    options = {"sizes": {"": 8000.0}, "max_drop": 0.05, "combines": ["last"]}
    best = plan_edge(trace, cascade, places, link, **options)
    assert best.device == ("stage0", "stage1")
    assert best.worth
    with pytest.raises(InputError, match="too large for the link") as refused:
        plan_edge(trace, cascade, places, link, device=["stage0"], **options)
    assert "device=['stage0', 'stage1'], send='raw'" in str(refused.value)
    with pytest.raises(InputError, match="a cut of"):
        plan_edge(trace, cascade, places, link, device=["stage1"], **options)


def exits():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    return Cascade.from_network(net, 1, head="vector_linear", example=torch.zeros(1, 4))


def test_rounded_carries_are_recorded_as_they_arrive():
    cascade, x = exits(), torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    data = [(x, torch.zeros(50, dtype=torch.int64))]
    device = [cascade.topology.names[0]]
    exact = record(cascade, data, progress=False).logits
    for packing, near in (("float32", 0.0), ("float16", 5e-3), ("int8", 0.1)):
        made = record(rounded(cascade, device, packing), data, progress=False).logits
        assert torch.equal(made[:, 0], exact[:, 0])  # the device's own exit reads what is exact
        error = (made[:, 1] - exact[:, 1]).abs().max()
        assert error <= near
        assert (error > 0) == (packing != "float32")


def test_sizes_are_those_of_what_is_sent():
    cascade = exits()
    found = sizes_of(cascade, torch.zeros(2, 4), raw=[b"12345", b"123"])
    assert found[""] == 4.0
    ((count, width, dtype),) = found[cascade.topology.groups[0]]
    assert (count, width, dtype) == (8, 4, torch.float32)


TOPOLOGY = Topology.of(["a", "b", "c"])
CHAIN = Topology.of(["a", "b", "c"], sources=[-1, 0, 1], edges="chain")


@pytest.mark.parametrize(
    ("topology", "device", "send", "named"),
    [
        (TOPOLOGY, ["b"], "raw", "Use the cloud alone"),
        (TOPOLOGY, [], "raw", "Use the cloud alone"),
        (TOPOLOGY, ["a", "b", "c"], "raw", "device alone"),
        (TOPOLOGY, ["a", "c"], "raw", "nobody comes back"),
        (TOPOLOGY, ["a"], "float32", "send must be 'raw'"),
        (TOPOLOGY, ["a"], "zip", "send must be one of"),
        (CHAIN.part([(0, 2)]), ["a", "b"], "float32", None),
        (CHAIN, ["a", "nobody"], "raw", "nobody"),
    ],
)
def test_cuts_that_cannot_be_are_refused_in_words(topology, device, send, named):
    if named is None:
        assert Cut.of(topology, device, send, reference="c").goes_on() == {2: (0, 1)}
        return
    with pytest.raises(Exception, match=named):
        Cut.of(topology, device, send, reference="c")
