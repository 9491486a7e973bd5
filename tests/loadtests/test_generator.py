import gc
from dataclasses import replace

import gevent
import gevent.event
import numpy as np
import pytest

from loadtests.client_side import NO_ANSWER, Reading, Sheet
from loadtests.generator import BACK_OFF_S, OpenLoop, Share, lag_limit_s, without_pauses
from loadtests.record import merge
from loadtests.scenarios import SCENARIOS, Asker, Run
from tests.loadtests.load_cases import two_phases, write_ladder

INSTANTS = [0.1, 0.2, 0.5, 1.1, 1.6, 1.9]
ROWS = [3, 4, 5, 3, 4, 5]
ZERO = 100.0


class Time:
    """A clock that moves when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = ZERO

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        gevent.sleep(0)  # whoever is due runs first, at its own instant
        self.now = max(self.now, until)


@pytest.fixture
def sheet(tmp_path) -> Sheet:
    return Sheet.read(write_ladder(tmp_path / "ladder"))


@pytest.fixture
def time() -> Time:
    return Time()


def run_of(*, retries: int = 0, askers: tuple[Asker, ...] = (Asker(),)) -> Run:
    scenario = replace(SCENARIOS["step"], askers=askers, retries=retries)
    asker = np.arange(len(INSTANTS)) % len(askers)
    return Run(scenario, "by hand", two_phases(INSTANTS), np.array(ROWS), asker)


def right(sheet: Sheet, run: Run, request: int) -> Reading:
    return Reading(200, 1, "confident", True, 0.25, 10.0, int(sheet.labels[run.row[request]]))


def test_each_request_is_sent_once_at_its_instant(sheet, time):
    run = run_of()
    sent = []

    def ask(request, instant, attempt):
        sent.append((request, instant, attempt, time.now))
        return right(sheet, run, request)

    OpenLoop(run, sheet, Share(), ask, time.clock, time.sleep).go(ZERO)
    expected = [(place, ZERO + instant, 1, pytest.approx(ZERO + instant)) for place, instant in enumerate(INSTANTS)]
    assert sent == expected


def test_the_recording_holds_what_was_asked_and_what_came(sheet, time):
    run = run_of(askers=(Asker(priority=1, deadline_s=0.25), Asker(tenant="polite")))
    loop = OpenLoop(run, sheet, Share(), lambda request, *_: right(sheet, run, request), time.clock, time.sleep)
    loop.go(ZERO)
    recording = loop.recording({"system": "fake"})
    assert recording.scheduled_s.tolist() == INSTANTS
    assert recording.row.tolist() == ROWS
    assert recording.phase.tolist() == [0, 0, 0, 1, 1, 1]
    assert recording.priority.tolist() == [1, 3] * 3
    assert recording.tenant.tolist() == ["", "polite"] * 3
    assert recording.deadline_s.tolist() == [0.25, 0.8] * 3
    assert set(recording.status.tolist()) == {200}
    assert set(recording.reason.tolist()) == {"confident"}
    assert recording.correct.all()
    assert recording.on_time.all()
    assert recording.meta["system"] == "fake"
    assert recording.meta["generator"]["processes"] == 1


def test_a_request_is_sent_though_those_before_it_wait(sheet, time):
    run = run_of()
    answer_all = gevent.event.Event()
    begun = []

    def ask(request, *_):
        begun.append(request)
        if len(begun) == len(INSTANTS):
            answer_all.set()
        answer_all.wait()
        return right(sheet, run, request)

    loop = OpenLoop(run, sheet, Share(), ask, time.clock, time.sleep)
    loop.go(ZERO)
    recording = loop.recording({})
    # All were answered when the last one was sent, and each waited since its own instant.
    np.testing.assert_allclose(recording.latency_s, INSTANTS[-1] - np.array(INSTANTS), atol=1e-9)
    np.testing.assert_allclose(recording.lag_s, 0, atol=1e-9)


def test_a_generator_that_was_held_up_says_so_and_its_delay_counts(sheet, time):
    run = run_of()

    def ask(request, *_):
        if request == 1:
            time.now += 1.0  # nothing else runs meanwhile
        return right(sheet, run, request)

    loop = OpenLoop(run, sheet, Share(), ask, time.clock, time.sleep)
    loop.go(ZERO)
    recording = loop.recording({})
    np.testing.assert_allclose(recording.lag_s, [0, 0, 0.7, 0.1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(recording.latency_s, [0, 1.0, 0.7, 0.1, 0, 0], atol=1e-9)


@pytest.mark.parametrize("status", [503, NO_ANSWER])
def test_a_rude_client_asks_again_soon_and_its_time_goes_on(sheet, time, status):
    run = run_of(retries=3)
    asked = []

    def ask(request, instant, attempt):
        asked.append((request, attempt))
        given_up = request == 5 or (request == 0 and attempt < 3)
        return Reading(status, fault="no") if given_up else right(sheet, run, request)

    loop = OpenLoop(run, sheet, Share(), ask, time.clock, time.sleep)
    loop.go(ZERO)
    recording = loop.recording({})
    assert recording.attempts.tolist() == [3, 1, 1, 1, 1, 4]
    assert recording.status.tolist() == [200, 200, 200, 200, 200, status]
    assert len(asked) == recording.attempts.sum()
    assert recording.latency_s[0] >= 2 * BACK_OFF_S[0]
    assert np.isnan(recording.latency_s[5]) == (status == NO_ANSWER)
    assert loop.faults == {"no": 1}


@pytest.mark.parametrize("status", [400, 500, 504])
def test_other_refusals_are_final(sheet, time, status):
    run = run_of(retries=3)
    loop = OpenLoop(run, sheet, Share(), lambda *_: Reading(status, fault="no"), time.clock, time.sleep)
    loop.go(ZERO)
    recording = loop.recording({})
    assert set(recording.attempts.tolist()) == {1}
    assert not recording.correct.any()
    assert np.isfinite(recording.latency_s).all()


def test_a_wrong_label_is_not_correct(sheet, time):
    run = run_of()
    loop = OpenLoop(run, sheet, Share(), lambda *_: Reading(200, 0, "price", label=0), time.clock, time.sleep)
    loop.go(ZERO)
    assert loop.recording({}).correct.tolist() == [int(sheet.labels[row]) == 0 for row in ROWS]


@pytest.mark.parametrize("of", [1, 2, 4])
def test_the_shares_of_several_processes_are_exactly_the_run(sheet, of):
    run = run_of()
    shards = []
    for place in range(of):
        time = Time()
        share = Share(place, of)
        loop = OpenLoop(run, sheet, share, lambda request, *_: right(sheet, run, request), time.clock, time.sleep)
        loop.go(ZERO)
        shards.append(loop.recording({}))
    merged = merge(shards)
    assert merged.row.tolist() == ROWS
    assert merged.correct.all()


def test_more_processes_than_requests_leave_some_with_nothing_to_do(sheet, time):
    run = run_of()
    loop = OpenLoop(run, sheet, Share(7, 8), lambda request, *_: right(sheet, run, request), time.clock, time.sleep)
    loop.go(ZERO)
    assert len(loop.recording({}).row) == 0


def test_there_is_no_full_collection_during_a_run_and_the_collector_is_as_before_after_it():
    before = gc.get_threshold()
    full = gc.get_stats()[2]["collections"]
    with without_pauses():
        during = gc.get_stats()[2]["collections"]
        kept = [[] for _ in range(300_000)]
        assert gc.get_stats()[2]["collections"] == during == full + 1, "the one before the run"
        del kept
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(("deadline_s", "limit_s"), [(1.0, 0.1), (0.25, 0.025), (0.05, 0.02)])
def test_the_lag_allowed_is_a_tenth_of_the_deadline_but_not_less_than_20_ms(deadline_s, limit_s):
    assert lag_limit_s(deadline_s) == pytest.approx(limit_s)
