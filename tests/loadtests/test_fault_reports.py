"""What a run of a fault is found to be: good where all is well, and broken by each single thing that must not happen."""

from dataclasses import replace

import numpy as np
import pytest

from loadtests.faults.judge import Hurt, Report, invariants, judge
from loadtests.record import Recording
from tests.loadtests.recorded import blank

BEGAN_S, ENDED_S = 4.0, 8.0
HURT = Hurt(BEGAN_S, ENDED_S, 0.01, 12, 1.0)


@pytest.fixture
def good() -> Recording:
    """Every request answered by stage 1 in a tenth of a second."""
    recording = blank("steady-1", "faults")
    count = len(recording.row)
    return replace(
        recording,
        latency_s=np.full(count, 0.1),
        status=np.full(count, 200, np.int16),
        stage=np.full(count, 1, np.int8),
        correct=np.ones(count, np.bool_),
        meta={"stages": ["a", "b", "c"], "generator": {"faults": {}}},
    )


def report(recording: Recording, folder, label: int = 1, waits: float = 1.0) -> Report:
    """Judge a recording whose answers all have one label; only label 1 is possible at stage 1."""
    count = len(recording.row)
    np.savez(folder / "extra.npz", labels=np.full(count, label), waits=np.full(count, waits))
    possible = np.zeros((recording.row.max() + 1, 3, 2), bool)
    possible[:, 1, 1] = True
    return judge(recording, folder / "extra.npz", possible, "hang-b", 0.7, "b", HURT)


def broken(found: Report, *, loses: float = 0.0, refuses: bool = False) -> set[str]:
    return {finding.name for finding in invariants(found, loses=loses, refuses=refuses) if not finding.kept}


def changed(recording: Recording, place: int, **columns) -> Recording:
    arrays = {}
    for name, value in columns.items():
        arrays[name] = getattr(recording, name).copy()
        arrays[name][place] = value
    return replace(recording, **arrays)


def during(recording: Recording) -> int:
    """A request in the middle of the fault."""
    return int(np.searchsorted(recording.scheduled_s, (BEGAN_S + ENDED_S) / 2))


def test_a_run_in_which_all_is_well(good, tmp_path):
    found = report(good, tmp_path)
    assert broken(found) == set()
    assert (found.answered, found.late, found.recovery_s) == (found.sent, 0, 0.0)
    assert found.during.stages == {"a": 0, "b": found.during.answered, "c": 0}
    assert found.before.sent + found.after.sent < found.sent


def test_one_answer_that_no_way_to_its_stage_gives_is_wrong(good, tmp_path):
    found = report(good, tmp_path, label=0)
    assert (found.wrong, broken(found)) == (found.sent, {"none wrong"})
    # Another stage than the one that it names could not have given it either.
    assert report(changed(good, during(good), stage=2), tmp_path).wrong == 1


@pytest.mark.parametrize(
    ("status", "name"), [(0, "none lost"), (404, "no other status"), (504, "none failed"), (502, "none failed")]
)
def test_one_request_without_an_answer_is_found(good, tmp_path, status, name):
    place = during(good)
    found = report(changed(good, place, status=status, latency_s=np.nan, stage=-1, correct=False), tmp_path)
    assert broken(found) == {name}
    assert found.recovery_s == pytest.approx(good.scheduled_s[place] - BEGAN_S)


def test_what_a_dead_process_took_along_may_be_lost_and_no_more(good, tmp_path):
    found = report(changed(good, during(good), status=0, latency_s=np.nan, stage=-1), tmp_path)
    assert broken(found, loses=1.5 / found.sent) == set()
    assert broken(found, loses=0.5 / found.sent) == {"none lost"}


def test_only_without_stage_0_a_request_may_fail(good, tmp_path):
    found = report(changed(good, during(good), status=502, latency_s=0.1, stage=-1), tmp_path)
    assert broken(found, refuses=True) == set()


def test_a_late_answer_is_an_answer_and_counts_as_late(good, tmp_path):
    found = report(changed(good, during(good), latency_s=1.5), tmp_path)
    assert (found.answered, found.late) == (found.sent, 1)


def test_refusals_are_timed_and_must_say_when_to_come_back(good, tmp_path):
    place = during(good)
    refusing = changed(good, place, status=503, latency_s=0.004, stage=-1)
    told = report(refusing, tmp_path).refusals
    assert (told.count, told.p50_s, told.with_retry_after) == (1, 0.004, 1)
    assert report(refusing, tmp_path, waits=float("nan")).refusals.with_retry_after == 0
    assert report(good, tmp_path).refusals is None
