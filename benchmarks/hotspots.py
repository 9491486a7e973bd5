"""Where a system's CPU goes under load: its busiest Python processes sampled, everything else by thread and process.

Stacks, from py-spy, say how a thread spends its time, the kernel's counters how much that is; threads without Python, such
as those of gRPC, and processes without it, such as HAProxy, have only the counters. What a frame is for is in `groups`.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks import groups
from benchmarks.systems import System

SAMPLED = 3
"""Processes that are sampled at most, the busiest; py-spy itself takes of the machine."""
RATE_HZ = 100
ATTACH_S = 1.5
"""What py-spy takes at most to attach to a process and to write its file, beside its sampling."""
WAIT_S = 30.0

THREAD = re.compile(r"^thread \((\d+)\)")
FRAME = re.compile(r" \((.*?)(?::\d+)?\)$")
"""The path of a frame such as ``Thread.run (threading.py:982)``."""


class Spent(NamedTuple):
    """CPU seconds of a thread, and how it is called."""

    user_s: float
    kernel_s: float
    name: str


Threads = dict[tuple[int, int], Spent]
"""By process and thread."""


@dataclass(frozen=True)
class Profile:
    """Where the CPU went.

    Attributes:
        shares: share of the system's CPU by group, largest first.
        kernel_share: share of the CPU spent in the kernel.
        cores: CPU in all, as cores.
        missed: why no stacks could be read; None if they could.
    """

    shares: dict[str, float]
    kernel_share: float
    cores: float
    missed: str | None = None


class Sampler:
    """Profiles a system during a window of load.

    Args:
        system: it answers.
        folder: for the stacks.
        seconds: how long to sample.

    Attributes:
        overhead_s: how much longer the window must be.
    """

    overhead_s = ATTACH_S

    def __init__(self, system: System, folder: Path, seconds: float) -> None:
        self._system = system
        self._folder = folder
        self._seconds = seconds
        self._before = system.cpu_s()
        self._program = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
        self._edges: list[Threads] = []
        self._spies: dict[int, subprocess.Popen[bytes]] = {}
        folder.mkdir(exist_ok=True)

    def at_edge(self) -> None:
        """The window opens, or closes."""
        if not self._edges:
            spent = self._system.cpu_s()
            spent.subtract(self._before)
            busiest = [int(pid) for pid, seconds in spent.most_common() if seconds > 0 and runs_python(int(pid))]
            self._spies = {pid: self._spy(pid) for pid in busiest[:SAMPLED]} if self._program else {}
        self._edges.append(threads_of(map(int, self._system.cpu_s())))

    def profile(self) -> Profile:
        """What came of it, once the window has closed."""
        stacks: dict[tuple[int, int], Counter[str]] = {}
        missed = None if self._program else "py-spy is not installed"
        for pid, spy in self._spies.items():
            failure = failure_of(spy)
            path = self._path(pid)
            if failure is None and path.is_file():
                for thread, counts in grouped(path.read_text().splitlines()).items():
                    stacks[pid, thread] = counts
            else:
                missed = failure or "py-spy wrote nothing"
        opened, closed = self._edges
        kinds = {pid: self._system.kind(str(pid)) for pid, _ in closed}
        return summed(opened, closed, stacks, kinds, self._seconds + ATTACH_S, missed)

    def _spy(self, pid: int) -> "subprocess.Popen[bytes]":
        options = ["--format", "raw", "--threads", "--rate", str(RATE_HZ), "--duration", str(int(self._seconds))]
        command = [str(self._program), "record", "--pid", str(pid), *options, "--output", str(self._path(pid))]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def _path(self, pid: int) -> Path:
        return self._folder / f"{pid}.txt"


def failure_of(spy: "subprocess.Popen[bytes]") -> str | None:
    """Why a py-spy failed, None if it did not; one that does not end is killed, as a profile may not end a benchmark."""
    try:
        _, errors = spy.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        spy.kill()
        spy.communicate()
        return f"py-spy did not end within {WAIT_S:g} s"
    if not spy.returncode:
        return None
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"py-spy exited with {spy.returncode}"


def runs_python(pid: int) -> bool:
    """Whether the process has a Python that py-spy could read."""
    with suppress(OSError):
        return "python" in Path(f"/proc/{pid}/exe").readlink().name
    return False


def threads_of(pids: Iterable[int]) -> Threads:
    """CPU so far of every thread of some processes; those that have gone are left out."""
    ticks = os.sysconf("SC_CLK_TCK")
    found: Threads = {}
    for pid in pids:
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with suppress(OSError):
                    head, _, rest = task.joinpath("stat").read_text().rpartition(")")
                    fields = rest.split()
                    name = head.partition("(")[2]
                    found[pid, int(task.name)] = Spent(int(fields[11]) / ticks, int(fields[12]) / ticks, name)
    return found


def grouped(lines: Iterable[str]) -> dict[int, Counter[str]]:
    """Samples by thread and group, from py-spy's raw lines: ``thread (id): name;frame (path:line);... count``."""
    found: dict[int, Counter[str]] = {}
    for line in lines:
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        number = THREAD.match(thread)
        if number is None or not count.isdigit():
            continue
        paths = [path[1] for frame in frames if (path := FRAME.search(frame))]
        found.setdefault(int(number[1]), Counter())[groups.of_stack(paths)] += int(count)
    return found


def summed(
    opened: Threads,
    closed: Threads,
    stacks: dict[tuple[int, int], Counter[str]],
    kinds: dict[int, str],
    seconds: float,
    missed: str | None = None,
) -> Profile:
    """Counters and stacks, put together.

    Args:
        opened: counters when the window opened.
        closed: counters when it closed.
        stacks: samples by group of the threads that have some.
        kinds: kind of each process.
        seconds: length of the window.
        missed: see `Profile`.
    """
    sampled = {pid for pid, _ in stacks}
    spent: Counter[str] = Counter()
    kernel = 0.0
    for (pid, thread), now in closed.items():
        before = opened.get((pid, thread), Spent(0.0, 0.0, now.name))
        user, system = now.user_s - before.user_s, now.kernel_s - before.kernel_s
        cpu = user + system
        kernel += system
        counts = stacks.get((pid, thread))
        if counts is not None:
            for group, count in counts.items():
                spent[group] += cpu * count / counts.total()
        elif pid in sampled:
            spent[groups.of_thread(now.name)] += cpu
        else:
            spent[groups.of_process(kinds[pid])] += cpu
    total = spent.total()
    return Profile(
        shares={group: cpu / total for group, cpu in spent.most_common() if cpu > 0},
        kernel_share=kernel / total if total else 0.0,
        cores=total / seconds,
        missed=missed,
    )
