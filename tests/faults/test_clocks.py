"""Processes with a clock of their own, as the nodes of the clusters have on which faults are tried."""

import subprocess
import sys
import time

import pytest

from loadtests.faults.clocks import ClockIsShared, clock_ahead


def ahead_s() -> float:
    """How far the monotonic clock of a process that is started now is ahead of this one's."""
    command = [sys.executable, "-c", "import time; print(time.monotonic())"]
    return float(subprocess.run(command, capture_output=True, check=True).stdout) - time.monotonic()


def test_what_is_started_meanwhile_has_a_clock_that_is_ahead_and_nothing_else_has():
    before_s = time.monotonic()
    try:
        with clock_ahead(86_400):
            inside_s = ahead_s()
        with clock_ahead(8_640_000):
            further_s = ahead_s()
    except ClockIsShared as error:
        pytest.skip(f"no clock of its own here: {error}")
    assert 86_000 < inside_s < 87_000
    assert 8_600_000 < further_s < 8_700_000
    assert abs(ahead_s()) < 600
    assert time.monotonic() - before_s < 600
