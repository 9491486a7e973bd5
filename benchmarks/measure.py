"""One measurement: a running system, a load, a window; and whether it gives the answers it should.

Knows the systems' messages, the load clients and the processes of a system; not which systems are compared, nor why.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import orjson
import psutil
from numpy.typing import NDArray

from benchmarks.load import Answers, LoadError, header, send_all, send_for, status_and_body
from benchmarks.open_loop import send_at_rate
from benchmarks.systems import System
from cascade.wire.client import decode_answer

CHECK_CONNECTIONS = 32
YARDSTICK_STEPS = 3_000_000
"""About 0.1 s on a core of 2024."""
FAILED = -1
"""Label of a row that was not answered."""


class Given(NamedTuple):
    """What a system answered for one row, or for the rows of one request; the rung that it names for all of them."""

    labels: tuple[int, ...]
    stage: str


@dataclass(frozen=True)
class Load:
    """What a system is put under.

    Attributes:
        name: what to call it in the document.
        connections: of a closed loop; None for an open one.
        rate: requests a second of an open loop; None for a closed one.
        rows: rows of each request.
    """

    name: str
    connections: int | None = None
    rate: float | None = None
    rows: int = 1


@dataclass(frozen=True)
class Point:
    """What was measured under one load.

    Attributes:
        load: its name.
        connections: of a closed loop.
        rate: that an open loop offered, requests a second.
        rows: rows of each request.
        seconds: length of the window.
        answered: answers to requests of the window.
        wrong: of them, those that are no answer or another one than the row's own in the check; and what was not answered.
        throughput: answered requests a second.
        p50_ms: median latency.
        p99_ms: 99th percentile of latency.
        first_p50_ms: median latency of the requests that leave at the first rung; None if there are none.
        cpu_ms: CPU of all processes of the system, milliseconds a request.
        cpu_ms_by_process: the same by process, the busiest first.
        client_share: CPU of the load client, share of one core.
        late_ms: open loop only, 99th percentile of how late the client sent a request.
        other_share: CPU of everything else on the machine, share of one core: load that should not be there.
        yardstick_ms: CPU that a fixed piece of work took just before, to see whether the machine itself changes its speed.
    """

    load: str
    connections: int | None
    rate: float | None
    rows: int
    seconds: float
    answered: int
    wrong: int
    throughput: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float | None
    cpu_ms: float
    cpu_ms_by_process: dict[str, float]
    client_share: float
    late_ms: float | None
    other_share: float
    yardstick_ms: float


class _Edge(NamedTuple):
    system: Counter[str]
    client_s: float
    machine_s: float


def given(raw: bytes, stages: Sequence[str]) -> Given | None:
    """The answer in a raw HTTP message of any system; None if it is not a 200."""
    status, head, body = status_and_body(raw)
    if status != 200:
        return None
    json_length = header(head, b"inference-header-content-length")
    if json_length is not None:
        answer = decode_answer(body, json_length.decode())
        return Given(tuple(answer.outputs["label"].tolist()), answer.parameters["cascade_stage"])
    document = orjson.loads(body)
    # A system that takes batches from its clients answers with a list.
    document = document[0] if isinstance(document, list) else document
    return Given((document["label"],), stages[document["stage"]])


def check(system: System, requests: Sequence[bytes], stages: Sequence[str]) -> list[Given | None]:
    """Send every request once; what was answered, in the order of the requests."""
    answers = send_all(system.port, requests, CHECK_CONNECTIONS)
    found: list[Given | None] = [None] * len(requests)
    for request, raw in zip(answers.rows, answers.raw, strict=True):
        found[request] = given(raw, stages)
    return found


def accuracy(found: Sequence[Given | None], labels: NDArray[np.int64]) -> float:
    """Share of rows answered with their true label."""
    answered = [FAILED if answer is None else answer.labels[0] for answer in found]
    return float(np.mean(np.array(answered) == labels))


def measure(
    system: System,
    requests: Sequence[bytes],
    expected: Sequence[Given | None],
    stages: Sequence[str],
    load: Load,
    *,
    warm_s: float,
    seconds: float,
    seed: int = 0,
    at_edge: Callable[[], None] | None = None,
) -> Point:
    """Keep a system under load for a while.

    Args:
        system: it answers.
        requests: to send in turn.
        expected: what it answers to each.
        stages: names of the rungs.
        load: how much.
        warm_s: seconds before the window.
        seconds: length of the window.
        seed: of an open loop's arrivals.
        at_edge: called when the window has opened and when it closes.
    """
    edges: list[_Edge] = []

    def edge() -> None:
        if edges and at_edge:
            at_edge()
        edges.append(_Edge(system.cpu_s(), time.process_time(), _busy_s()))
        if len(edges) == 1 and at_edge:
            at_edge()

    system.refresh()
    yardstick_ms = _yardstick_ms()
    if load.rate is None:
        assert load.connections is not None
        answers = send_for(system.port, requests, load.connections, warm_s=warm_s, seconds=seconds, at_edge=edge)
    else:
        answers = send_at_rate(system.port, requests, load.rate, warm_s=warm_s, seconds=seconds, seed=seed, at_edge=edge)
    return _point(system, answers, expected, stages, load, edges, yardstick_ms)


def _point(
    system: System,
    answers: Answers,
    expected: Sequence[Given | None],
    stages: Sequence[str],
    load: Load,
    edges: Sequence[_Edge],
    yardstick_ms: float,
) -> Point:
    opened, closed = edges
    spent = closed.system
    spent.subtract(opened.system)
    by_process: dict[str, float] = {}
    for pid, spent_s in spent.most_common():
        # Workers that were forked have one title: the busiest is called by it, the next "title 2".
        kind = system.kind(pid)
        alike = sum(name.rpartition(" ")[0] == kind or name == kind for name in by_process)
        by_process[f"{kind} {alike + 1}" if alike else kind] = spent_s
    system_s = sum(spent.values())
    client_s = closed.client_s - opened.client_s
    answered = len(answers.rows)
    if not answered:
        raise LoadError(f"not one answer in {answers.seconds:.1f} s under {load.name}")
    latencies_ms = np.asarray(answers.latencies_s) * 1e3
    p50_ms, p99_ms = np.quantile(latencies_ms, (0.5, 0.99))
    at_first = [expected[row] is not None and expected[row].stage == stages[0] for row in answers.rows]
    wrong = sum(given(raw, stages) != expected[row] for row, raw in zip(answers.rows, answers.raw, strict=True))
    return Point(
        load=load.name,
        connections=load.connections,
        rate=load.rate,
        rows=load.rows,
        seconds=answers.seconds,
        answered=answered,
        wrong=wrong + answers.unanswered,
        throughput=answered / answers.seconds,
        p50_ms=float(p50_ms),
        p99_ms=float(p99_ms),
        first_p50_ms=float(np.median(latencies_ms[at_first])) if any(at_first) else None,
        cpu_ms=1e3 * system_s / answered,
        cpu_ms_by_process={kind: round(1e3 * s / answered, 4) for kind, s in by_process.items() if s > 0},
        client_share=client_s / answers.seconds,
        late_ms=float(np.quantile(answers.late_s, 0.99)) * 1e3 if len(answers.late_s) else None,
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
