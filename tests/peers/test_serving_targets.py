"""What the serving benchmark promises: met, missed, or said not to have been measured."""

import pytest

from benchmarks.targets import Target, targets
from tests.peers.documents import CHEAP, WHOLE, document, point


def target(found: list[Target], *words: str) -> Target:
    (only,) = (each for each in found if all(word in each.what for word in words))
    return only


@pytest.mark.parametrize(("ours", "met"), [(2500.0, True), (2499.0, False)])
def test_throughput_is_compared_with_every_other_system_at_its_own_factor(ours: float, met: bool) -> None:
    points = [point("cascade", "32 connections", ours), point("by-hand", "32 connections", 100.0)]
    found = target(targets(document(points)), "over by-hand,", "32 connections")
    assert found.met is met
    assert found.wanted == "x25 or more"


def test_a_peer_that_is_as_fast_has_not_been_left_behind() -> None:
    points = [point("cascade", "32 connections", 100.0), point("mosec", "32 connections", 100.0)]
    found = target(targets(document(points)), "over mosec", "32 connections")
    assert (found.met, found.measured) == (False, "x1.0")


def test_medians_of_the_rounds_decide() -> None:
    points = [point("cascade", "32 connections", each, round=number) for number, each in enumerate((10.0, 200.0, 210.0))]
    points += [point("mosec", "32 connections", each, round=number) for number, each in enumerate((100.0, 150.0, 900.0))]
    assert target(targets(document(points)), "over mosec", "32 connections").met


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    found = targets(document([point("cascade", "32 connections", 100.0)]))
    assert target(found, "over litserve", "32 connections").met is None
    assert target(found, "first-stage answers").met is None
    assert target(found, "rows a second").met is None


@pytest.mark.parametrize(("ours", "met"), [(1.9, True), (2.1, True), (2.3, False)])
def test_the_first_stage_is_compared_with_the_bare_server_alone(ours: float, met: bool) -> None:
    points = [
        point("cascade", "1 connection", 100.0, p50_ms=50.0, first_p50_ms=ours),
        point("http-floor", "1 connection", 100.0, p50_ms=1.2),
    ]
    assert target(targets(document(points)), "first-stage answers").met is met


@pytest.mark.parametrize(("requests", "met"), [(90.0, True), (89.0, False)])
def test_requests_of_many_rows_are_counted_in_rows_and_compared_with_batches_as_large(requests: float, met: bool) -> None:
    points = [point("cascade", "32-row requests", requests)]
    floors = [
        {"ladder": CHEAP, "round": 0, "batch": batch, "throughput": rows}
        for batch, rows in ((1, 10.0), (32, 3200.0), (128, 9e9))
    ]
    assert target(targets(document(points, floors=floors)), "rows a second").met is met


def test_the_tail_is_judged_at_half_load_on_each_ladder() -> None:
    points = [
        point("cascade", "half load", 50.0, p50_ms=4.0, p99_ms=8.0),
        point("cascade", "half load", 50.0, p50_ms=4.0, p99_ms=8.1, ladder=WHOLE),
        point("cascade", "32 connections", 50.0, p50_ms=1.0, p99_ms=100.0),
    ]
    found = targets(document(points))
    assert target(found, "p99", CHEAP).met is True
    assert target(found, "p99", WHOLE).met is False


def test_one_different_answer_from_one_system_misses_its_target() -> None:
    made = document([point("cascade", "1 connection", 100.0, wrong=0)])
    made["ladders"][0]["same_answers"] = {"cascade": 10, "mosec": 9}
    found = target(targets(made), "same label", CHEAP)
    assert (found.met, found.measured) == (False, "mosec 9")
    assert target(targets(made), "same label", WHOLE).met is True


def test_a_failed_answer_of_anyone_misses_its_target() -> None:
    points = [point("cascade", "1 connection", 100.0), point("bentoml", "1 connection", 100.0, wrong=1)]
    assert target(targets(document(points)), "failed").met is False


def test_the_slowest_start_counts() -> None:
    starts = [{"ladder": CHEAP, "system": "cascade", "seconds": seconds} for seconds in (9.0, 26.0)]
    found = target(targets(document([point("cascade", "1 connection", 1.0)], starts=starts)), "start")
    assert (found.met, found.measured) == (False, "26.0 s")


def test_memory_is_a_target_where_it_was_measured() -> None:
    memory = {"requests": 1000, "bytes_a_request": 101.0, "samples": []}
    found = targets(document([point("cascade", "1 connection", 1.0)], memory=memory))
    assert target(found, "memory").met is False
