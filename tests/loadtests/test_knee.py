"""The highest rate that is answered on time is found by trying, within the last step of the bisection."""

import pytest

from loadtests.knee import GOOD, PROBES, SPAN, knee


@pytest.mark.parametrize("limit", [60.0, 150.0, 399.0])
def test_the_knee_is_found_from_below(limit):
    tried = []

    def good_share(rate: float) -> float:
        tried.append(rate)
        return 1.0 if rate <= limit else 0.9

    found = knee(good_share, 400.0)
    assert found <= limit
    assert found * SPAN ** (1 / 2 ** (PROBES - 1)) > limit
    assert len(set(tried)) == PROBES


def test_a_rate_that_was_disturbed_once_is_tried_again():
    tried = []

    def good_share(rate: float) -> float:
        tried.append(rate)
        return 1.0 if len(tried) != 3 and rate <= 150.0 else 0.9

    assert knee(good_share, 400.0) == knee(lambda rate: 1.0 if rate <= 150.0 else 0.9, 400.0)


def test_a_server_that_is_never_good_gets_the_lowest_rate():
    assert knee(lambda _: GOOD - 0.01, 800.0) == pytest.approx(800.0 / SPAN)


def test_no_rate_beyond_the_closed_loop_is_tried():
    tried = []
    knee(lambda rate: tried.append(rate) or 1.0, 100.0)
    assert max(tried) < 100.0
