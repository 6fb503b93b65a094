"""The exact choice of a cut, against every cut tried one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.fitting.cuts import Ranking, best_cut_reference, falling
from support.properties import examples


@examples(200)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.floats(-1, 1, allow_subnormal=False)),
        min_size=1,
        max_size=12,
    )
)
def test_the_cut_is_as_good_as_every_cut_tried_one_by_one(pairs):
    scores = np.array([s for s, _ in pairs], dtype=np.float32) / 4
    gains = np.array([g for _, g in pairs])
    ranking = Ranking(scores)
    cut = ranking.best(gains)
    assert cut.total == pytest.approx(best_cut_reference(scores, gains), abs=1e-9)
    value = ranking.value(cut)
    assert gains[scores >= value].sum() == pytest.approx(cut.total, abs=1e-9)
    assert (scores >= value).sum() == cut.taken
    np.testing.assert_array_equal(ranking.above(value), scores >= value)


@examples(200)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.floats(-1, 1, allow_subnormal=False), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_examples_that_do_not_count_change_no_cut(triples):
    scores = np.array([s for s, _, _ in triples], dtype=np.float32) / 4
    gains = np.array([g for _, g, _ in triples])
    rows = np.array([r for _, _, r in triples])
    every, few = Ranking(scores), Ranking(scores[rows])
    cut, alone = every.best(np.where(rows, gains, 0.0)), few.best(gains[rows])
    assert cut.total == pytest.approx(alone.total, abs=1e-12)
    assert every.value(cut, rows) == few.value(alone)


def test_a_cut_that_is_of_no_use_takes_nobody():
    ranking, gains = Ranking(np.array([2.0, 1.0], dtype=np.float32)), np.array([-1.0, 0.5])
    assert ranking.best(gains, below=-1.0).taken == 1
    assert ranking.best(gains, below=-1.1).taken == 0


@examples(100)
@given(st.lists(st.floats(width=32, allow_nan=False) | st.just(-0.0) | st.just(0.0), max_size=20))
def test_the_order_is_that_of_a_stable_sort(numbers):
    scores = np.array(numbers, dtype=np.float32)
    order, found = falling(scores)
    np.testing.assert_array_equal(order, np.argsort(-scores, kind="stable"))
    np.testing.assert_array_equal(found, scores[order])


def test_equal_sums_take_the_most_examples():
    ranking = Ranking(np.array([3.0, 2.0, 1.0], dtype=np.float32))
    assert ranking.value(ranking.best(np.array([-1.0, 0.0, 0.0]))) == -np.inf


def test_a_cut_between_neighboring_floats_separates_them():
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2))
    ranking = Ranking(np.array([low, high], dtype=np.float32))
    bias = np.float32(-ranking.value(ranking.best(np.array([1.0, -1.0]))))
    assert (high + bias >= 0, low + bias >= 0) == (True, False)
