"""One measurement: a running system, a number of connections, a window; and whether it gives the answers it should.

Knows both systems' messages, the load client and the processes of a system; not which systems are compared, nor why.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import orjson
import psutil
from load import header, send_all, send_for, status_and_body
from numpy.typing import NDArray
from systems import System

from cascade.wire.client import decode_answer

CHECK_CONNECTIONS = 32
YARDSTICK_STEPS = 3_000_000
"""About 0.1 s on a core of 2024."""


class Given(NamedTuple):
    """What a system answered for one row."""

    label: int
    stage: str


@dataclass(frozen=True)
class Point:
    """What was measured at one number of connections.

    Attributes:
        connections: requests under way at any time.
        seconds: length of the window.
        answered: answers that came in it.
        wrong: of them, those that are no answer or another one than the row's own in the check.
        throughput: answers a second.
        p50_ms: median latency.
        p99_ms: 99th percentile of latency.
        cpu_ms: CPU of all processes of the system, milliseconds a request.
        cpu_ms_by_process: the same by kind of process.
        client_share: CPU of the load client, share of one core.
        other_share: CPU of everything else on the machine, share of one core: load that should not be there.
        yardstick_ms: CPU that a fixed piece of work took just before, to see whether the machine itself changes its speed.
    """

    connections: int
    seconds: float
    answered: int
    wrong: int
    throughput: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    cpu_ms_by_process: dict[str, float]
    client_share: float
    other_share: float
    yardstick_ms: float


class _Edge(NamedTuple):
    at_s: float
    system: Counter[str]
    client_s: float
    machine_s: float


def given(raw: bytes, stages: Sequence[str]) -> Given | None:
    """The answer in a raw HTTP message of either system; None if it is not a 200."""
    status, head, body = status_and_body(raw)
    if status != 200:
        return None
    json_length = header(head, b"inference-header-content-length")
    if json_length is not None:
        answer = decode_answer(body, json_length.decode())
        return Given(int(answer.outputs["label"][0]), answer.parameters["cascade_stage"])
    document = orjson.loads(body)
    return Given(document["label"], stages[document["stage"]])


def check(system: System, requests: Sequence[bytes], stages: Sequence[str]) -> list[Given | None]:
    """Send every row once; what was answered, in the order of the rows."""
    answers = send_all(system.port, requests, CHECK_CONNECTIONS)
    found: list[Given | None] = [None] * len(requests)
    for row, raw in zip(answers.rows, answers.raw, strict=True):
        found[row] = given(raw, stages)
    return found


def accuracy(found: Sequence[Given | None], labels: NDArray[np.int64]) -> float:
    """Share of rows answered with their true label."""
    return float(
        np.mean([answer is not None and answer.label == label for answer, label in zip(found, labels, strict=True)])
    )


def measure(
    system: System,
    requests: Sequence[bytes],
    expected: Sequence[Given | None],
    stages: Sequence[str],
    *,
    connections: int,
    warm_s: float,
    seconds: float,
) -> Point:
    """Keep a system under load for a while.

    Args:
        system: it answers.
        requests: one of each row.
        expected: what it answers for each row.
        stages: names of the rungs.
        connections: requests under way at any time.
        warm_s: seconds before the window.
        seconds: length of the window.
    """
    edges: list[_Edge] = []

    def at_edge() -> None:
        edges.append(_Edge(time.perf_counter(), system.cpu_s(), time.process_time(), _busy_s()))

    system.refresh()
    yardstick_ms = _yardstick_ms()
    answers = send_for(system.port, requests, connections, warm_s=warm_s, seconds=seconds, at_edge=at_edge)
    opened, closed = edges
    spent = closed.system
    spent.subtract(opened.system)
    by_process: Counter[str] = Counter()
    for pid, spent_s in spent.items():
        by_process[system.kind(pid)] += spent_s
    system_s = sum(spent.values())
    client_s = closed.client_s - opened.client_s
    answered = len(answers.rows)
    p50_ms, p99_ms = np.quantile(answers.latencies_s, (0.5, 0.99)) * 1e3
    return Point(
        connections=connections,
        seconds=answers.seconds,
        answered=answered,
        wrong=sum(given(raw, stages) != expected[row] for row, raw in zip(answers.rows, answers.raw, strict=True)),
        throughput=answered / answers.seconds,
        p50_ms=float(p50_ms),
        p99_ms=float(p99_ms),
        cpu_ms=1e3 * system_s / answered,
        cpu_ms_by_process={kind: round(1e3 * s / answered, 4) for kind, s in by_process.most_common() if s > 0},
        client_share=client_s / answers.seconds,
        other_share=max(0.0, closed.machine_s - opened.machine_s - system_s - client_s) / answers.seconds,
        yardstick_ms=yardstick_ms,
    )


def _yardstick_ms() -> float:
    started = time.process_time()
    total = 0
    for step in range(YARDSTICK_STEPS):
        total += step
    return 1e3 * (time.process_time() - started)


def _busy_s() -> float:
    """CPU seconds that the whole machine has spent since it was started."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq + times.steal


def router_memory(system: System, requests: Sequence[bytes], total: int, every: int) -> list[tuple[int, int]]:
    """Resident bytes of the router after each ``every`` of ``total`` requests, from the first ``every`` on."""
    system.refresh()
    samples = []
    for sent in range(every, total + 1, every):
        send_all(system.port, requests, CHECK_CONNECTIONS, every)
        samples.append((sent, system.router_rss_bytes()))
    return samples
