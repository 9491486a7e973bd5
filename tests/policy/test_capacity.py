"""What a stage can do, and how the profile is corrected by what is seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.policy.capacity import CORRECTION_RANGE, FADE_RATE, ServiceTime, StageCapacity


def test_before_anything_was_seen_the_profile_holds():
    service = ServiceTime(a_s=0.5, b_s=0.25)
    assert [service.predict(rows) for rows in (1, 2, 4)] == [0.75, 1.0, 1.5]


def test_batches_as_long_as_profiled_change_nothing():
    service = ServiceTime(0.5, 0.25)
    for rows in (1, 4, 2, 8):
        service.observe(rows, 0.5 + 0.25 * rows)
    assert service.correction == 1.0


@pytest.mark.parametrize("ratio", [0.25, 0.5, 2.0, 5.0])
def test_a_wrong_profile_is_corrected_by_observation(ratio: float):
    service = ServiceTime(0.5, 0.25)
    for _ in range(60):
        service.observe(4, 1.5 * ratio)
    assert service.correction == pytest.approx(ratio, rel=0.02)


def test_the_first_observations_weigh_most():
    service = ServiceTime(0.5, 0.25)
    service.observe(2, 3.0)
    assert service.correction == pytest.approx(2.0)  # halfway from 1 to 3
    for _ in range(100):
        service.observe(2, 1.0)
    before = service.correction
    service.observe(2, 3.0)
    assert service.correction == pytest.approx(before + 0.1 * (3.0 - before))


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(-1.0, 1e6)), max_size=30))
def test_no_observation_makes_a_stage_look_free_or_dead(seen):
    service = ServiceTime(0.001, 0.0001)
    for rows, seconds in seen:
        service.observe(rows, seconds)
        assert CORRECTION_RANGE[0] <= service.correction <= CORRECTION_RANGE[1]
        assert service.predict(rows) > 0


def test_a_refusal_takes_trust_away_only_where_the_profile_would_have_let_the_row_in():
    service = ServiceTime(0.5, 0.25, correction=4.0)
    service.refused(0.5)  # shorter than the profile itself
    assert service.correction == 4.0
    service.refused(0.75)
    assert service.correction == pytest.approx(4.0 * (1 - FADE_RATE))


def test_free_slots_are_never_negative():
    capacity = StageCapacity(slots=3, max_batch_size=4, service=ServiceTime(0.5, 0.25), busy=2)
    assert capacity.free == 1
    capacity.slots = 1
    assert capacity.free == 0


def test_throughput_is_that_of_full_batches_on_every_slot():
    capacity = StageCapacity(slots=3, max_batch_size=4, service=ServiceTime(0.5, 0.25, correction=2.0))
    assert capacity.rows_per_s == pytest.approx(3 * 4 / 3.0)


def test_work_is_learned_from_what_the_replica_says_and_else_from_the_call():
    stage = StageCapacity(slots=4, max_batch_size=8, service=ServiceTime(0.5, 0.0625))
    assert stage.full_rows_per_s(2) == 16.0
    for _ in range(200):
        stage.observe(8, call_s=2.0, run_s=0.5)
    assert stage.service.predict(8) == pytest.approx(2.0)
    assert stage.full_rows_per_s(2) == pytest.approx(32.0)
    assert stage.rows_per_s == pytest.approx(16.0)
    for _ in range(200):
        stage.observe(8, call_s=2.0)
    assert stage.full_rows_per_s(3) == pytest.approx(12.0)
