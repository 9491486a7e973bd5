from dataclasses import fields, replace

import numpy as np
import pytest

from cascade.errors import ConfigError
from cascade.simulation.workload import Arrivals
from loadtests.record import COLUMNS, Recording, merge
from tests.loadtests.load_cases import recording_of, two_phases

INSTANTS = [0.1, 0.2, 0.5, 1.1, 1.1, 1.9]


def assert_same(left: Recording, right: Recording) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), strict=True)
    for field in fields(Arrivals):
        np.testing.assert_array_equal(getattr(left.arrivals, field.name), getattr(right.arrivals, field.name))
    assert left.meta == right.meta


def test_what_is_saved_is_what_is_loaded(tmp_path):
    recording = recording_of(two_phases(INSTANTS))
    recording.save(tmp_path / "new" / "run.npz")
    assert_same(Recording.load(tmp_path / "new" / "run.npz"), recording)


def test_a_recording_travels_as_bytes():
    recording = recording_of(two_phases(INSTANTS))
    assert_same(Recording.from_bytes(recording.to_bytes()), recording)


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_another_file_is_no_recording(tmp_path, content):
    path = tmp_path / "run.npz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a recording"):
        Recording.load(path)


def test_an_archive_of_something_else_is_no_recording(tmp_path):
    np.savez(tmp_path / "run.npz", image=np.zeros(3))
    with pytest.raises(ConfigError, match="not a recording"):
        Recording.load(tmp_path / "run.npz")


def test_a_column_of_another_length_is_refused():
    recording = recording_of(two_phases(INSTANTS))
    with pytest.raises(ConfigError, match=r"'stage' must be \[6\]"):
        replace(recording, stage=recording.stage[:3])


def test_a_column_of_another_type_is_refused():
    recording = recording_of(two_phases(INSTANTS))
    with pytest.raises(ConfigError, match="'stage' must be int8"):
        replace(recording, stage=recording.stage.astype(np.float64))


def test_shards_of_several_processes_make_up_the_run():
    arrivals = two_phases(INSTANTS)
    shards = [recording_of(arrivals, slice(place, None, 3)) for place in (2, 0, 1)]
    assert_same(merge(shards), recording_of(arrivals))


@pytest.mark.parametrize("places", [(0, 1), (0, 1, 2, 2)], ids=["one missing", "one twice"])
def test_shards_must_hold_each_arrival_once(places):
    arrivals = two_phases(INSTANTS)
    with pytest.raises(ConfigError, match="6 arrivals"):
        merge([recording_of(arrivals, slice(place, None, 3)) for place in places])


def test_shards_of_different_runs_are_not_merged():
    with pytest.raises(ConfigError, match="different arrivals"):
        merge([recording_of(two_phases(INSTANTS)), recording_of(two_phases(INSTANTS[1:]))])


def test_nothing_cannot_be_merged():
    with pytest.raises(ConfigError, match="nothing to merge"):
        merge([])


def test_only_answers_within_the_deadline_are_on_time():
    recording = recording_of(two_phases([0.1, 0.2, 0.3, 0.4]))
    seen = replace(
        recording,
        status=np.array([200, 200, 503, 0], dtype=np.int16),
        latency_s=np.array([0.5, 0.6, 0.1, np.nan]),
        deadline_s=np.full(4, 0.5),
    )
    assert seen.on_time.tolist() == [True, False, False, False]
    assert seen.answered.tolist() == [True, True, False, False]
