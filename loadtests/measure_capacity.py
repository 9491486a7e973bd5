"""What a running server can do, measured in place before the load tests: the unit of their rates.

    python -m loadtests.measure_capacity SPEC --port 8000

For each stage a closed loop of rows that leave there at base prices (or behind it, if none leaves there) keeps the stage
busy, and the server's own counters are read when a window opens and when it closes. Knows the server's HTTP face, the
ladder's files and the lean closed-loop client of the benchmarks; nothing of Ray and of scenarios.

Stages that share replicas are all measured at once, by rows that ask for the last of them. Few may get there: a closed loop
comes back the sooner the earlier rows stop, so the policy sees more than the replicas can do, and spends them where a second
is worth most. What follows from the counters is in `loadtests.capacity`.

The rate of stage 0 is the whole way through the server, HTTP and router included. While any other stage is measured, a
second closed loop keeps the last one busy too, since under every load near those capacities it is; where stages share cores,
a stage that has them to itself would promise too much.
"""

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.load import send_all, send_for, status_and_body
from cascade.assembly import read_artefacts
from cascade.calibration.artefact import StageService
from cascade.calibration.judging import judge_table
from cascade.calibration.outcomes import OutcomeTable
from cascade.errors import CascadeError, ConfigError
from cascade.rows import read_rows
from cascade.spec import CascadeSpec, Ladder
from cascade.spec_exits import groups_of
from cascade.wire.client import encode_request
from loadtests.capacity import (
    Counters,
    Measured,
    Window,
    capacity_of,
    counters_of,
    places,
    shared_capacity,
    summarise,
    unit_rate,
)

REPEATS = 3
SECONDS = 8.0
WARM_S = 1.0
ROWS = 512
"""Different rows that are sent, at most."""
BUSY_ROWS = 64
"""Those with most to gain, which keep the last stage busy while another one is measured."""
STAGE0_CONNECTIONS = 16
"""At least, since a small batch is back before the client has asked again."""
MOST_CONNECTIONS = 256
TEST_TABLE = "test-outcomes.npz"
"""Beside the calibration: outcomes of the rows that load tests send."""


def rows_by_exit(ladder: Ladder) -> list[np.ndarray]:
    """Rows of the test data by the stage at which they leave when nothing is scarce.

    Returns:
        Indices for each stage; those of the last one by falling gain, so that no price keeps the first of them away.

    Raises:
        ConfigError: the ladder has no outcomes of its test rows.
    """
    outcomes = OutcomeTable.read(ladder.table_path.with_name(TEST_TABLE))
    judged = judge_table(outcomes, read_artefacts(ladder)[0], ladder.spec.routing)
    exits = judged.exits(ladder.spec.base_prices)
    *cheaper, last = (np.flatnonzero(exits == stage) for stage in range(len(judged.stages)))
    return [*cheaper, last[np.argsort(-judged.gains[last, -2, -1], kind="stable")] if cheaper else last]


def reaching(leaving: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Rows for each stage that leave there, or else at the first stage behind it at which any leaves: they pass it too."""
    return [next((rows for rows in leaving[stage:] if len(rows)), leaving[-1]) for stage in range(len(leaving))]


def encoded(ladder: Ladder, rows: np.ndarray, path: str | None = None) -> list[bytes]:
    """Whole HTTP messages of single rows, which ask for the label and have as long as the server allows.

    Args:
        ladder: the ladder.
        rows: indices into its test data.
        path: target; the model's infer route if None.
    """
    spec = ladder.spec
    inputs, _ = read_rows(ladder, ladder.path(spec.data.test))
    target = path or f"/v2/models/{spec.name}/infer"
    messages = []
    for row in rows.tolist():
        tensors = [(field.tensor, inputs[field.name][row : row + 1]) for field in spec.inputs]
        body, headers = encode_request(
            tensors, outputs=["label"], parameters={"timeout": int(spec.deadline.max_s * 1e6), "priority": 1}
        )
        fields = {"host": "127.0.0.1", **headers, "content-length": str(len(body))}
        head = f"POST {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        messages.append(head.encode() + b"\r\n" + body)
    return messages


def read_statistics(port: int, model: str) -> dict[str, Any]:
    """The statistics document of a server on this machine.

    Raises:
        ConfigError: it gives none.
    """
    url = f"http://127.0.0.1:{port}/v2/models/{model}/stats"
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            document: dict[str, Any] = json.load(response)
            return document
    except (OSError, ValueError) as error:
        raise ConfigError(f"{url}: no statistics: {error}") from error


def measure(
    ladder: Ladder,
    port: int,
    *,
    seconds: float = SECONDS,
    repeats: int = REPEATS,
    progress: Callable[[Window], None] = lambda _: None,
) -> Measured:
    """Measure a server on this machine that has nothing else to do.

    Args:
        ladder: what it serves.
        port: where it listens.
        seconds: length of a window.
        repeats: windows for each stage.
        progress: told of each window.

    Raises:
        ConfigError: no row leaves at the first or at the last stage, or the server gives no statistics.
    """
    spec = ladder.spec
    profile = read_artefacts(ladder)[1]
    names = [stage.name for stage in spec.stages]
    leaving = rows_by_exit(ladder)
    for end in (0, -1):
        if not len(leaving[end]):
            raise ConfigError(f"no test row leaves at stage {names[end]!r} at base prices, so it cannot be kept busy")
    requests = [encoded(ladder, rows[:ROWS]) for rows in reaching(leaving)]
    windows = []
    for _ in range(repeats):
        for index, messages in enumerate(requests):
            group = _beside(spec, index)
            if index and index in group[:-1]:
                continue  # measured with the last of them
            if index < len(names) - 1:
                with _kept_busy(port, requests[-1][:BUSY_ROWS], _busy(spec, len(names) - 1)):
                    found = _windows(ladder, port, index, messages, profile.stages, seconds)
            else:
                found = _windows(ladder, port, index, messages, profile.stages, seconds)
            for window in found:
                progress(window)
            windows += found
    return summarise(windows, names, _beside(spec, len(names) - 1))


def measure_unit_rate(ladder: Ladder, port: int, seconds: float = SECONDS) -> float:
    """Requests a second through the top stage once more, from one window: a machine's speed changes while it is under load.

    Args:
        ladder: what is served.
        port: where.
        seconds: length of the window.
    """
    last = len(ladder.spec.stages) - 1
    messages = encoded(ladder, reaching(rows_by_exit(ladder))[-1][:ROWS])
    windows = _windows(ladder, port, last, messages, read_artefacts(ladder)[1].stages, seconds)
    return unit_rate([window.capacity for window in windows])


@contextmanager
def _kept_busy(port: int, requests: Sequence[bytes], connections: int) -> Iterator[None]:
    """A second closed loop for as long as the context lasts, in a thread of its own."""
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            send_all(port, requests, connections)

    with ThreadPoolExecutor(max_workers=1) as thread:
        running = thread.submit(load)
        try:
            yield
        finally:
            over.set()
        running.result()


def _beside(spec: CascadeSpec, index: int) -> tuple[int, ...]:
    """The stages on the same replicas as one, itself among them; empty if it has its own."""
    return next((group for group in groups_of(spec.stages) if index in group), ())


def _busy(spec: CascadeSpec, index: int) -> int:
    """Rows that fill a stage's replicas: every place, or, where stages share them, every replica once."""
    stage = spec.placed[index]
    return (stage.replicas if _beside(spec, index) else places(stage)) * stage.max_batch_size


def _windows(
    ladder: Ladder, port: int, index: int, requests: Sequence[bytes], profiled: Sequence[StageService], seconds: float
) -> list[Window]:
    """Of a stage, or of all stages on the replicas of the stage if it is the last of them."""
    spec = ladder.spec
    names = [stage.name for stage in spec.stages]
    # As many again as the stage can hold may wait for it: more, and the policy would evict some.
    connections = min(2 * _busy(spec, index), MOST_CONNECTIONS)
    if index == 0:
        connections = max(connections, STAGE0_CONNECTIONS)
    edges: list[tuple[float, float, list[Counters]]] = []

    def at_edge() -> None:
        began_s = time.perf_counter()
        done = counters_of(read_statistics(port, spec.name), spec.name, names)
        # The counters are of some instant while the request was under way.
        edges.append(((began_s + time.perf_counter()) / 2, time.process_time(), done))

    answers = send_for(port, requests, connections, warm_s=WARM_S, seconds=seconds, at_edge=at_edge)
    (opened_s, client_before_s, before), (closed_s, client_after_s, after) = edges
    length_s, done = closed_s - opened_s, [now.since(then) for now, then in zip(after, before, strict=True)]
    answered = sum(status_and_body(raw)[0] == 200 for raw in answers.raw)
    group = _beside(spec, index)
    found = []
    for k in group if group and index == group[-1] else (index,):
        if group:
            shared = [done[each] for each in group], length_s, [spec.placed[each] for each in group]
            capacity, occupancy = shared_capacity(*shared, [profiled[each] for each in group], group.index(k))
        else:
            capacity, occupancy = capacity_of(done[k], length_s, spec.placed[k], profiled[k])
        found.append(
            Window(
                stage=names[k],
                seconds=seconds,
                answered_per_s=answered / answers.seconds,
                refused=len(answers.raw) - answered,
                rate=done[k].rows / length_s,
                batch=done[k].rows / done[k].batches,
                occupancy=occupancy,
                capacity=capacity,
                client_share=(client_after_s - client_before_s) / length_s,
            )
        )
    return found


def main(
    spec: Annotated[Path, typer.Argument(help="The ladder that the server serves.", show_default=False)],
    port: Annotated[int, typer.Option(help="Where the server listens on this machine.")] = 8000,
    seconds: Annotated[float, typer.Option(help="Length of each window.")] = SECONDS,
    repeats: Annotated[int, typer.Option(help="Windows for each stage.", min=1)] = REPEATS,
) -> None:
    """Measure what a running server can do, and print it as JSON."""
    try:
        measured = measure(Ladder.read(spec), port, seconds=seconds, repeats=repeats)
    except CascadeError as error:
        typer.echo(f"error: {error.detail}", err=True)
        raise typer.Exit(2) from error
    typer.echo(json.dumps(measured.document(), indent=2))


if __name__ == "__main__":
    typer.run(main)
