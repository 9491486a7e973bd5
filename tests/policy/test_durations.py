"""Histograms of seconds: every duration in the bucket of the least bound that is not below it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.policy.durations import BOUNDS_S, LE, Durations


@given(st.lists(st.tuples(st.floats(0, 60), st.integers(1, 100)), max_size=30))
def test_the_buckets_up_to_a_bound_count_what_took_no_longer(added):
    durations = Durations()
    for seconds, times in added:
        durations.add(seconds, times)
    for place, bound in enumerate(LE):
        assert sum(durations.counts[: place + 1]) == sum(times for seconds, times in added if seconds <= bound)
    assert durations.seconds == pytest.approx(sum(seconds * times for seconds, times in added))


def test_bounds_rise():
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S))
