"""Open-loop sending: each request goes out at its instant, whatever became of the ones before. Knows gevent, not Locust.

A closed loop asks again when it was answered, so a slow server is asked less and its worst moments go unmeasured
(coordinated omission; Schroeder, Wierman and Harchol-Balter 2006). Here instants are drawn before, and latency counts from
them: time that a request spent waiting for a generator or a socket is part of what the client felt.
"""

import gc
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gevent
import numpy as np
from gevent.pool import Group
from numpy.typing import NDArray

from loadtests.client_side import NO_ANSWER, Reading, Sheet
from loadtests.record import ANSWERED, COLUMNS, Recording
from loadtests.scenarios import Run

RETRIED = frozenset({NO_ANSWER, 503})
"""What makes a client ask again, if it is of that kind."""
BACK_OFF_S = (0.01, 0.1)
"""It waits for a random time between these, and does not care for ``Retry-After``: the server must survive the rude too."""
LEAST_LAG_S = 0.02
LAG_SHARE = 0.1
"""Of the shortest deadline: a generator that sends later than this (and `LEAST_LAG_S`) measures itself."""
YOUNG_ONLY = (1000, 20, 1_000_000)
"""Thresholds of the garbage collector while the loop is on: young garbage goes in pauses of a fraction of a millisecond;
full collections, which would stop the loop for tens of them, do not happen."""

Ask = Callable[[int, float, int], Reading]
"""(request, scheduled instant on the clock, attempt) to what came back; blocks its greenlet, never raises."""


@dataclass(frozen=True)
class Share:
    """The part of a run that one process sends: every ``of``-th request, from number ``place``.

    The shares of all processes together are exactly the arrivals. That the share of a Poisson stream is more regular than
    Poisson does not matter: the server sees their sum.
    """

    place: int = 0
    of: int = 1

    def indices(self, count: int) -> NDArray[np.intp]:
        """Which of ``count`` requests."""
        return np.arange(self.place, count, self.of, dtype=np.intp)


class OpenLoop:
    """Sends one share of a run, and records what happened to it.

    Attributes:
        faults: what went wrong, how often.

    Args:
        run: what to send.
        sheet: the rows, for who is right.
        share: which part of it.
        ask: sends one request.
        clock: seconds, from anywhere.
        sleep: lets others run for so many seconds.
    """

    def __init__(
        self,
        run: Run,
        sheet: Sheet,
        share: Share,
        ask: Ask,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = gevent.sleep,
    ) -> None:
        self.faults: Counter[str] = Counter()
        self._run = run
        self._sheet = sheet
        self._index = share.indices(len(run.arrivals.instants))
        self._ask = ask
        self._clock = clock
        self._sleep = sleep
        self._jitter = random.Random(share.place)
        self._columns = {name: np.zeros(len(self._index), dtype=dtype) for name, dtype in COLUMNS.items()}
        self._cpu_share = 0.0

    def go(self, zero: float) -> None:
        """Send everything and wait for all answers.

        Args:
            zero: instant on the clock at which the run begins.
        """
        sent: list[float] = (zero + self._run.arrivals.instants[self._index]).tolist()
        requests: list[int] = self._index.tolist()
        group = Group()
        started, cpu_s = self._clock(), time.process_time()
        with without_pauses():
            try:
                for place, (request, instant) in enumerate(zip(requests, sent, strict=True)):
                    # Also when it is late: requests that are due must get their turn to be sent.
                    self._sleep(max(instant - self._clock(), 0.0))
                    group.spawn(self._one, place, request, instant)
                group.join()
            finally:
                group.kill()
        self._cpu_share = (time.process_time() - cpu_s) / max(self._clock() - started, 1e-9)

    def _one(self, place: int, request: int, instant: float) -> None:
        columns = self._columns
        columns["lag_s"][place] = self._clock() - instant
        attempt, retries = 1, self._run.scenario.retries
        reading = self._ask(request, instant, attempt)
        while reading.status in RETRIED and attempt <= retries:
            self._sleep(self._jitter.uniform(*BACK_OFF_S))
            attempt += 1
            reading = self._ask(request, instant, attempt)
        columns["latency_s"][place] = self._clock() - instant if reading.status != NO_ANSWER else np.nan
        columns["attempts"][place] = attempt
        columns["status"][place] = reading.status
        columns["stage"][place] = reading.stage
        columns["reason"][place] = reading.reason
        columns["degraded"][place] = reading.degraded
        columns["price"][place] = reading.price
        columns["cost"][place] = reading.cost
        right = self._sheet.labels[self._run.row[request]]
        columns["correct"][place] = reading.status == ANSWERED and reading.label == right
        if reading.fault:
            self.faults[reading.fault] += 1

    def recording(self, meta: dict[str, Any]) -> Recording:
        """What happened, after `go`; of the share only, so it does not hold all arrivals.

        Args:
            meta: description of the run; ``generator`` is added.
        """
        run, sheet, index = self._run, self._sheet, self._index
        askers = run.scenario.askers
        asker = run.asker[index]
        given: dict[str, Sequence[Any] | NDArray[Any]] = {
            "scheduled_s": run.arrivals.instants[index],
            "row": run.row[index],
            "phase": run.arrivals.phase[index],
            "priority": np.array([one.priority or sheet.priority for one in askers])[asker],
            "tenant": np.array([one.tenant for one in askers])[asker],
            "deadline_s": np.array([one.deadline_s or sheet.deadline_s for one in askers])[asker],
        }
        columns = self._columns | {name: np.asarray(given[name], dtype=COLUMNS[name]) for name in given}
        generator = {
            "processes": 1,
            "gc": "young only",
            "cpu_share": [round(self._cpu_share, 4)],
            "faults": dict(self.faults),
        }
        return Recording(**columns, arrivals=run.arrivals, meta={**meta, "generator": generator})


@contextmanager
def without_pauses() -> Iterator[None]:
    """No full garbage collection inside: it walks everything that was ever loaded, and nothing is sent meanwhile."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*YOUNG_ONLY)
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def lag_limit_s(deadline_s: float) -> float:
    """The send lag whose 99th percentile may not be exceeded: max(20 ms, a tenth of the shortest deadline)."""
    return max(LEAST_LAG_S, LAG_SHARE * deadline_s)
