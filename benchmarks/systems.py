"""A server under measurement: start it as a process of its own, count the CPU of everything it started, stop it for good.

Knows processes and ports; nothing of cascades. Whatever a server starts belongs to it, daemons of Ray and a proxy included:
its descendants, and processes that carry its mark in their environment after their parent has gone.
"""

import http.client
import os
import secrets
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

import psutil

MARK = "CASCADE_BENCHMARK_MARK"
STOP_S = 30.0
"""A server that has not gone after this is killed, and the benchmark says so."""


class SystemFailed(Exception):
    """A server did not start, or did not stop."""


class System:
    """A server process and everything it started.

    Args:
        command: how to start it.
        port: where it will listen, on this machine.
        log: file for what it prints.
        environ: variables to add to its environment.
    """

    def __init__(self, command: Sequence[str], port: int, log: Path, environ: Mapping[str, str] | None = None) -> None:
        self.port = port
        self._log = log
        self._mark = uuid.uuid4().hex
        # No system gets a setting of Ray from the caller's shell; the fast path is cascade's own to set.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        # A token of its own keeps Ray from writing one into the home directory.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        inherited |= {MARK: self._mark, "RAY_USAGE_STATS_ENABLED": "0", **token, **(environ or {})}
        self._family: dict[int, psutil.Process] = {}
        self._spent_s: dict[int, float] = {}
        self.started_s = time.perf_counter()
        with log.open("wb") as output:
            self._server = subprocess.Popen(
                command, env=inherited, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_for_answer(self, request: bytes, timeout_s: float = 180.0) -> float:
        """Ask until the server answers with 200; seconds since it was started."""
        path, headers, body = _split(request)
        last = "nothing listened"
        while time.perf_counter() - self.started_s < timeout_s:
            if self._server.poll() is not None:
                raise SystemFailed(f"the server exited with {self._server.returncode}:\n{self._log_end()}")
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            with suppress(OSError, http.client.HTTPException), closing(connection):
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                content = response.read()
                last = f"{response.status} {content[:500]!r}"
                if response.status == 200:
                    return time.perf_counter() - self.started_s
            time.sleep(0.1)
        raise SystemFailed(f"no answer after {timeout_s:g} s, last came {last}:\n{self._log_end()}")

    def refresh(self) -> None:
        """Look for processes that belong to it."""
        processes = {process.pid: process for process in psutil.process_iter()}
        parents = {pid: parent for pid, process in processes.items() if (parent := _quiet(process.ppid)) is not None}
        for pid, process in processes.items():
            if pid not in self._family and (self._descends(pid, parents) or self._is_marked(process)):
                self._family[pid] = process

    def _descends(self, pid: int, parents: dict[int, int]) -> bool:
        while pid in parents:
            if pid == self._server.pid:
                return True
            pid = parents[pid]
        return False

    def _is_marked(self, process: psutil.Process) -> bool:
        environ = _quiet(process.environ)
        return environ is not None and environ.get(MARK) == self._mark

    def cpu_s(self) -> Counter[str]:
        """User and system seconds spent so far, by kind of process; what processes spent that have ended stays counted."""
        spent: Counter[str] = Counter()
        for pid, process in self._family.items():
            times = _quiet(process.cpu_times)
            if times is not None:
                self._spent_s[pid] = times.user + times.system
            spent[str(pid)] = self._spent_s.get(pid, 0.0)
        return spent

    def kind(self, pid: str) -> str:
        """What a process of it is for: as Ray titles it, or the module that a Python was started with, or its program."""
        process = self._family[int(pid)]
        words = _quiet(process.cmdline) or [_quiet(process.name) or "?"]
        title = words[0].split(" ")[0]
        if title.startswith("ray::"):
            return title.split("#")[0]
        name = Path(title).name
        if name.startswith("python") and "-m" in words[:-1]:
            return f"python {words[words.index('-m') + 1].rpartition('.')[2]}"
        return "python worker" if "--multiprocessing-fork" in words else name

    def router_rss_bytes(self) -> int:
        """Resident memory of the router replica."""
        for pid, process in self._family.items():
            if self.kind(str(pid)).endswith(":router"):
                return process.memory_info().rss
        raise SystemFailed("there is no router process")

    def stop(self) -> bool:
        """Interrupt it as Ctrl-C would and wait until every process has gone; False if some had to be killed."""
        self.refresh()
        self._server.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self._server.wait(STOP_S)
        self.refresh()
        _, left = psutil.wait_procs(self._family.values(), timeout=STOP_S)
        for process in left:
            _quiet(process.kill)
        psutil.wait_procs(left, timeout=STOP_S)
        self._server.wait(STOP_S)
        return not left

    def _log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])


T = TypeVar("T")


def _quiet(read: Callable[[], T]) -> T | None:
    """What ``read`` returns, None if the process has gone or is not ours to look at."""
    try:
        return read()
    except psutil.Error:
        return None


def _split(request: bytes) -> tuple[str, dict[str, str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return first.split(" ")[1], dict(line.split(": ", 1) for line in lines), body
