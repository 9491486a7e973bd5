"""The servers under test: started on this machine one at a time, warmed up, seen to be idle again, and stopped for good.

Knows how each is started, its HTTP face, and its processes; nothing of scenarios and verdicts. Each server is a process of
its own, so that it starts clean and has the environment that Ray reads when it is imported.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.load import header, send_all, status_and_body
from benchmarks.systems import System, SystemFailed
from cascade.errors import ConfigError
from cascade.serving.environment import free_port
from cascade.spec import Ladder
from loadtests.measure_capacity import encoded, rows_by_exit

SYSTEMS = ("cascade", "static", "top")
"""The product, and the two baselines."""
SETTLE_S = 3.0
"""After the first answer HAProxy is replaced once more, to learn of the replicas; the old one closes its connections."""
WARM_REQUESTS, WARM_CONNECTIONS = 96, 4
IDLE_PROBES = 3
"""An idle server answers this many requests in a row, from the dearest stage that they ask for, within half a deadline."""
IDLE_LIMIT_S = 30.0
PROBE_EVERY_S = 0.2


class Server:
    """A running server.

    Attributes:
        name: one of `SYSTEMS`.
        probe: a request that asks for the last stage, alone in a list.

    Args:
        name: see above.
        system: its processes.
        ladder: what it serves.
    """

    def __init__(self, name: str, system: System, ladder: Ladder) -> None:
        self.name = name
        self._system = system
        self._deadline_s = ladder.spec.deadline.default_s
        self._dearest = ladder.spec.stages[-1].name.encode()
        leaving = rows_by_exit(ladder)
        if not len(leaving[-1]):
            raise ConfigError("no test row asks for the last stage at base prices: nothing tells when its queue is empty")
        mixed = [rows[: WARM_REQUESTS // len(leaving)] for rows in leaving]
        self._warm = [message for rows in mixed for message in encoded(ladder, rows)]
        self.probe = encoded(ladder, leaving[-1][:1])

    @property
    def port(self) -> int:
        """Where it listens on this machine."""
        return self._system.port

    @property
    def url(self) -> str:
        """The same as a URL."""
        return f"http://127.0.0.1:{self.port}"

    def warm_up(self) -> None:
        """Let every stage run some rows."""
        send_all(self.port, self._warm, WARM_CONNECTIONS)

    def wait_until_idle(self, limit_s: float = IDLE_LIMIT_S) -> bool:
        """Wait until no queue is left of what was asked before; False if there still is one after ``limit_s``."""
        until = time.perf_counter() + limit_s
        in_a_row = 0
        while in_a_row < IDLE_PROBES:
            if time.perf_counter() > until:
                return False
            answers = send_all(self.port, self.probe, 1)
            status, head, _ = status_and_body(answers.raw[0])
            quick = answers.latencies_s[0] < self._deadline_s / 2
            by_dearest = header(head, b"cascade-stage") == self._dearest
            in_a_row = in_a_row + 1 if status == 200 and quick and by_dearest else 0
            time.sleep(PROBE_EVERY_S)
        return True

    def cpu_s(self) -> Counter[str]:
        """CPU seconds spent so far, by kind of process."""
        self._system.refresh()
        spent: Counter[str] = Counter()
        for pid, seconds in self._system.cpu_s().items():
            # Ray adds the method that an actor is in to the title of its process.
            spent[self._system.kind(pid).partition(".")[0]] += seconds
        return spent


def shares(before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> dict[str, float]:
    """CPU between two readings as a share of one core, by kind of process, largest first, without those that did nothing."""
    spent = Counter({kind: after[kind] - before.get(kind, 0.0) for kind in after})
    return {kind: round(used / seconds, 4) for kind, used in spent.most_common() if used / seconds >= 1e-3}


def command(name: str, spec: Path, port: int) -> list[str]:
    """How to start a system."""
    start = ["cascade.cli", "serve"] if name == "cascade" else ["loadtests", name]
    return [sys.executable, "-m", *start, str(spec), "--port", str(port)]


@contextmanager
def started(name: str, spec: Path, folder: Path, say: Callable[[str], None] = print) -> Iterator[Server]:
    """A server for as long as the context lasts: answering, warm and idle.

    Args:
        name: one of `SYSTEMS`.
        spec: the ladder.
        folder: for its log.
        say: told when it did not stop by itself.

    Raises:
        SystemFailed: it did not start.
    """
    ladder = Ladder.read(spec)
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    system = System(command(name, spec, port), port, folder / "server.log")
    try:
        server = Server(name, system, ladder)
        system.wait_for_answer(server.probe[0])
        time.sleep(SETTLE_S)
        server.warm_up()
        if not server.wait_until_idle():
            raise SystemFailed(f"{name} is not idle {IDLE_LIMIT_S:g} s after it was warmed up")
        yield server
    finally:
        if not system.stop():
            say(f"{name} did not stop by itself; its processes were killed")


def machine() -> dict[str, object]:
    """The machine, without its name, and how busy it is."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    load = [round(value, 2) for value in psutil.getloadavg()]
    return {"cpu": models[0] if models else "unknown", "cores": psutil.cpu_count(), "load_average": load}
