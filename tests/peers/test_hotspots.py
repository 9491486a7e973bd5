"""Profiles put into groups: whose time a stack is, and what becomes of threads and processes that run no Python."""

import subprocess
import sys
from collections import Counter

import pytest

from benchmarks import groups
from benchmarks.hotspots import Spent, failure_of, grouped, summed

START = "Thread._bootstrap (threading.py:1002);Thread.run (threading.py:982)"


def test_a_stack_belongs_to_its_innermost_frame_that_is_known() -> None:
    inside = "Replica.call (ray/serve/_private/replica.py:10);Ingress.__call__ (cascade/serving/ingress.py:100)"
    lines = [
        f"thread (7): AsyncIO Thread;{START};{inside} 3",
        f"thread (7): AsyncIO Thread;{START};{inside};dumps (json/encoder.py:2);<lambda> (<string>:1) 2",
        f"thread (7): AsyncIO Thread;{START};Replica.call (ray/serve/_private/replica.py:10);wait (asyncio/tasks.py:427) 1",
    ]
    assert grouped(lines) == {7: Counter({groups.CODEC: 5, groups.LOOP: 1})}


def test_a_call_that_only_the_standard_library_makes_is_its_callers() -> None:
    line = f"thread (7): x;{START};Replica.call (ray/serve/_private/replica.py:10);uuid4 (uuid.py:1);str (uuid.py:2) 4"
    assert grouped([line]) == {7: Counter({groups.WRAPPER: 4})}


def test_threads_are_kept_apart() -> None:
    lines = ["thread (7): a;run (torch/nn/linear.py:1) 1", "thread (8): b;run (uvicorn/server.py:1) 2"]
    assert grouped(lines) == {7: Counter({groups.TORCH: 1}), 8: Counter({groups.HTTP: 2})}


@pytest.mark.parametrize("line", ["", "py-spy says something", "thread (7): a;run (x.py:1) many"])
def test_a_line_that_is_no_sample_is_left_out(line: str) -> None:
    assert grouped([line]) == {}


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("cascade/policy/gain.py", groups.RULE),
        ("cascade/policy/queue.py", groups.POLICY),
        ("cascade/serving/ingress.py", groups.CODEC),
        ("cascade/serving/router.py", groups.ROUTER),
        ("site-packages/ray/serve/_private/replica.py", groups.WRAPPER),
        ("ray/serve/_private/router.py", groups.HANDLES),
        ("ray/_private/worker.py", groups.RPC),
        ("benchmarks/handwritten.py", "its own code"),
        ("somewhere/else.py", groups.OTHER),
    ],
)
def test_a_path_has_a_group(path: str, group: str) -> None:
    assert groups.of_stack([path]) == group


def test_the_counters_say_how_much_and_the_stacks_how() -> None:
    opened = {(1, 10): Spent(1.0, 0.0, "loop"), (1, 11): Spent(0.0, 0.0, "grpc_thread"), (2, 20): Spent(5.0, 1.0, "haproxy")}
    closed = {(1, 10): Spent(3.0, 1.0, "loop"), (1, 11): Spent(0.5, 0.5, "grpc_thread"), (2, 20): Spent(5.5, 1.5, "haproxy")}
    stacks = {(1, 10): Counter({groups.HTTP: 2, groups.TORCH: 1})}
    made = summed(opened, closed, stacks, {1: "ray::ServeReplica:cascade:router", 2: "haproxy"}, seconds=5.0)
    assert made.shares == pytest.approx({groups.HTTP: 0.4, groups.TORCH: 0.2, groups.RPC: 0.2, "HAProxy": 0.2})
    assert made.kernel_share == pytest.approx(2 / 5)
    assert made.cores == pytest.approx(1.0)


def test_a_thread_that_began_in_the_window_counts_from_nothing() -> None:
    made = summed({}, {(1, 10): Spent(1.0, 0.0, "python")}, {}, {1: "python"}, seconds=1.0)
    assert made.cores == pytest.approx(1.0)


def test_nothing_spent_is_no_profile() -> None:
    assert summed({}, {}, {}, {}, seconds=1.0).shares == {}


def test_a_sampler_that_fails_says_why_and_one_that_does_not_has_nothing_to_say() -> None:
    def ran(code: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)

    assert failure_of(ran("")) is None
    assert failure_of(ran("import sys; sys.exit('first\\nPermission denied')")) == "Permission denied"
    assert failure_of(ran("import sys; sys.exit(3)")) == "py-spy exited with 3"
