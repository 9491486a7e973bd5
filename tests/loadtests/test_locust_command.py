"""Locust itself, as a person starts it, against `fake_server`. All runs of this file go on at the same time."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cascade.errors import ConfigError
from loadtests.record import Recording
from loadtests.scenarios import SCENARIOS, draw_run
from tests.loadtests.fake_server import STALL_AFTER, STALL_S, is_garbled, is_right, stage_of
from tests.loadtests.load_cases import ROWS, write_ladder

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120
"""Nothing here takes that long."""

NOBODY = "nobody"
RUNS: dict[str, tuple[str, str, Sequence[str]]] = {
    # name: how the server behaves, scenario, further options
    "classes": ("plain", "classes", ["--json", "--seconds", "0.8", "--unit-rate", "20", "--stage0-rate", "60"]),
    "stalls": ("stalls", "steady-1", ["--seconds", "1.5", "--unit-rate", "60"]),
    "storm": (
        "sheds",
        "storm",
        ["--seconds-scale", "0.1", "--stage0-rate", "80", "--processes", "2", "--csv", "out", "--html", "out.html"],
    ),
    "garbles": ("garbles", "steady-2", ["--seconds", "1", "--unit-rate", "40", "--lag-limit-ms", "0.000001"]),
    "nobody there": (NOBODY, "step", ["--seconds", "0.5", "--unit-rate", "60"]),
    "impossible": ("plain", "step", ["--seconds-scale", "0", "--processes", "2"]),
}


@dataclass
class Finished:
    code: int
    out: str
    err: str
    folder: Path

    def recording(self) -> Recording:
        return Recording.load(self.folder / "run.npz")


class Locust:
    """A load test in a process of its own."""

    def __init__(self, folder: Path, host: str, scenario: str, options: Sequence[str]) -> None:
        folder.mkdir()
        spec = write_ladder(folder / "ladder")
        command = [
            *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests" / "locustfile.py")),
            *("--host", host, "--scenario", scenario, "--spec", str(spec), "--record", "run.npz"),
            *("--lag-limit-ms", "60000", *options),
        ]
        self.folder = folder
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(self) -> Finished:
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return Finished(self.process.returncode, out, err, self.folder)


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.loadtests.fake_server"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    process.communicate("", timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def started(server, tmp_path_factory) -> Iterator[dict[str, Locust]]:
    folder = tmp_path_factory.mktemp("runs")
    runs = {}
    for name, (mood, scenario, options) in RUNS.items():
        port = free_port()
        ports = ["--master-bind-port", port, "--master-port", port] if "--processes" in options else []
        host = f"http://127.0.0.1:{port}" if mood == NOBODY else f"{server}/{mood}"
        runs[name] = Locust(folder / name, host, scenario, ["--headless", "--only-summary", *ports, *options])
    yield runs
    for run in runs.values():
        if not run.process.stdout.closed:  # no test has asked for it
            run.process.terminate()
            run.process.communicate(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def run(started) -> Callable[[str], Finished]:
    finished: dict[str, Finished] = {}

    def get(name: str) -> Finished:
        if name not in finished:
            finished[name] = started[name].finish()
        return finished[name]

    return get


@pytest.fixture
def seen(server) -> Callable[[str], list[dict[str, object]]]:
    def get(mood: str) -> list[dict[str, object]]:
        with urllib.request.urlopen(f"{server}/{mood}/seen", timeout=PATIENCE_S) as response:
            return json.load(response)

    return get


def assert_holds_the_arrivals(recording: Recording, **given: float) -> None:
    """Each arrival is one row, of the row of the data that was drawn for it."""
    scenario = SCENARIOS[recording.meta["scenario"]]
    rates = {"unit_rate": recording.meta["unit_rate"], "stage0_rate": recording.meta["stage0_rate"]}
    drawn = draw_run(scenario, **rates, seed=recording.meta["seed"], rows=ROWS, **given)
    np.testing.assert_array_equal(recording.scheduled_s, drawn.arrivals.instants)
    np.testing.assert_array_equal(recording.row, drawn.row)
    assert recording.arrivals.phases == drawn.arrivals.phases
    assert (recording.lag_s >= 0).all()


def test_every_arrival_is_asked_once_and_scored_by_its_label(run, seen):
    finished = run("classes")
    assert finished.code == 0, finished.err
    recording = finished.recording()
    assert_holds_the_arrivals(recording, seconds=0.8)
    rows = recording.row.tolist()
    assert Counter(message["row"] for message in seen("plain")) == Counter(rows)
    assert set(recording.status.tolist()) == {200}
    assert recording.correct.tolist() == [is_right(row) for row in rows]
    assert recording.stage.tolist() == [stage_of(row) for row in rows]
    assert recording.degraded.tolist() == [stage_of(row) == 0 for row in rows]
    assert recording.reason.tolist() == [("price", "last_stage")[stage_of(row)] for row in rows]
    assert recording.price.tolist() == [(0.25, 0.0)[stage_of(row)] for row in rows]
    assert recording.cost.tolist() == [(1.0, 10.0)[stage_of(row)] for row in rows]
    assert set(recording.attempts.tolist()) == {1}
    assert (recording.latency_s > recording.lag_s).all()


def test_the_recording_says_what_was_run(run, server):
    meta = run("classes").recording().meta
    assert (meta["system"], meta["scenario"], meta["seed"]) == ("cascade", "classes", 0)
    assert (meta["unit_rate"], meta["stage0_rate"], meta["stages"]) == (20, 60, ["small", "large"])
    assert meta["host"] == f"{server}/plain"
    assert meta["workload"] == "step:120@3,120@12,78@8"
    generator = meta["generator"]
    assert generator["processes"] == len(generator["cpu_share"]) == 1
    assert generator["valid"]
    assert generator["lag_limit_s"] == 60
    assert generator["faults"] == {}


def test_priorities_go_over_the_wire(run, seen):
    recording = run("classes").recording()
    sent = Counter((message["row"], message["priority"]) for message in seen("plain"))
    assert sent == Counter(zip(recording.row.tolist(), recording.priority.tolist(), strict=True))
    assert set(recording.priority.tolist()) == {1, 2, 3, 4}


def test_with_json_standard_output_is_one_document_and_names_the_stages(run):
    finished = run("classes")
    entries = {entry["name"]: entry["num_requests"] for entry in json.loads(finished.out)}
    stages = finished.recording().stage
    assert entries == {"stage 0 small": int((stages == 0).sum()), "stage 1 large": int((stages == 1).sum())}
    assert "requests, seed 0" in finished.err


def test_a_stall_is_felt_by_all_who_would_have_come_meanwhile(run):
    recording = run("stalls").recording()
    assert_holds_the_arrivals(recording, seconds=1.5)
    # The server saw at most so many before it stalled; all others who came until shortly before it went on had to wait. A
    # client that waits for its answer before it asks again would have met the stall once.
    earlier = recording.scheduled_s < recording.scheduled_s[STALL_AFTER - 1] + 0.6 * STALL_S
    assert earlier.sum() > STALL_AFTER + 10
    assert (recording.latency_s[earlier] > 0.3 * STALL_S).sum() > earlier.sum() - STALL_AFTER


def test_no_pool_of_connections_closes_the_loop(run, seen):
    run("stalls")
    # Locust's own bound is 10.
    assert max(message["waiting"] for message in seen("stalls")) > 15


def test_two_processes_send_one_run_and_count_retries(run, seen):
    finished = run("storm")
    assert finished.code == 0, finished.err
    recording = finished.recording()
    assert_holds_the_arrivals(recording, seconds_scale=0.1)
    assert recording.meta["generator"]["processes"] == len(recording.meta["generator"]["cpu_share"]) == 2
    assert recording.meta["retries"] == 3
    messages = Counter(message["row"] for message in seen("sheds"))
    assert messages == Counter(dict(zip(*_attempts_by_row(recording), strict=True)))
    shed = recording.status == 503
    assert (recording.attempts[shed] == 4).all()
    assert (recording.attempts > 1).any()
    assert set(recording.status[~shed].tolist()) == {200}
    assert set(recording.stage[shed].tolist()) <= {-1}


def _attempts_by_row(recording: Recording) -> tuple[list[int], list[int]]:
    rows = np.unique(recording.row)
    return rows.tolist(), [int(recording.attempts[recording.row == row].sum()) for row in rows]


def test_locusts_own_reports_show_the_stage_mix(run):
    finished = run("storm")
    stats = (finished.folder / "out_stats.csv").read_text()
    answered = {name: int(count) for name, count in re.findall(r"^POST,(stage [^,]*),(\d+)", stats, re.MULTILINE)}
    stage = finished.recording().stage
    assert answered == {"stage 0 small": int((stage == 0).sum()), "stage 1 large": int((stage == 1).sum())}
    assert "shed" in stats
    assert "stage 1 large" in (finished.folder / "out.html").read_text()


def test_an_answer_that_cannot_be_read_is_no_answer(run):
    recording = run("garbles").recording()
    garbled = np.array([is_garbled(row) for row in recording.row.tolist()])
    assert garbled.any()
    np.testing.assert_array_equal(recording.status, np.where(garbled, 0, 200))
    assert np.isnan(recording.latency_s[garbled]).all()
    ((fault, count),) = recording.meta["generator"]["faults"].items()
    assert count == garbled.sum()
    assert "label" in fault
    assert fault in run("garbles").out


def test_a_generator_that_sends_too_late_is_declared_invalid(run):
    finished = run("garbles")
    assert finished.code == 3
    assert "INVALID" in finished.out
    assert not finished.recording().meta["generator"]["valid"]


def test_without_a_server_the_run_fails_and_says_what_happened(run):
    finished = run("nobody there")
    assert finished.code == 1, finished.err
    assert "not one request got an answer" in finished.out
    recording = finished.recording()
    assert recording.meta["generator"]["faults"] == {"no answer: ConnectionRefusedError": len(recording.row)}
    assert np.isnan(recording.latency_s).all()


def test_a_run_that_cannot_be_carried_out_says_why_and_fails(run):
    finished = run("impossible")
    assert finished.code == 1, finished.err
    assert "the seconds scale must be above 0, got 0" in finished.out
    assert "Traceback" not in finished.err
    assert not (finished.folder / "run.npz").exists()


def test_the_web_interface_starts_it_again(server, tmp_path):
    port = free_port()
    host = f"{server}/web"
    options = ["--web-host", "127.0.0.1", "--web-port", port, "--seconds", "0.5", "--unit-rate", "20"]
    locust = Locust(tmp_path / "web", host, "steady-1", options)
    page = f"http://127.0.0.1:{port}"
    try:
        until(lambda: get(f"{page}/stats/requests")["state"] == "ready")
        for seed in (1, 2):
            form = urllib.parse.urlencode({"host": host, "seed": seed}).encode()
            with urllib.request.urlopen(f"{page}/swarm", form, timeout=PATIENCE_S) as response:
                assert json.load(response)["success"]
            until(lambda: Recording.load(tmp_path / "web" / "run.npz").meta["seed"] == seed)  # noqa: B023
            until(lambda: get(f"{page}/stats/requests")["state"] == "stopped")
            assert_holds_the_arrivals(Recording.load(tmp_path / "web" / "run.npz"), seconds=0.5)
    finally:
        locust.process.terminate()
        finished = locust.finish()
    assert finished.code == 0, finished.err


def get(url: str) -> dict[str, object]:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        return json.load(response)


def until(condition: Callable[[], bool]) -> None:
    """Ask again and again; a page or file that is not there yet is a no."""
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError, ConfigError):
            if condition():
                return
        time.sleep(0.05)
    raise AssertionError("it did not come")
