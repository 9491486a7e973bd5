"""What `cascade demo` shows: real rows through HTTP, and one table of what came back. Knows HTTP, not Ray."""

import asyncio
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from cascade.cli.console import console, progress_bar
from cascade.errors import CascadeError
from cascade.rows import read_rows
from cascade.spec import Ladder
from cascade.wire.client import decode_answer, encode_request


@dataclass
class Tally:
    """What came back, row by row.

    Attributes:
        right: rows answered with the label of the file.
        latencies_s: seconds of each request.
        stages: rows answered by each stage.
        degraded: rows answered below the unloaded rule.
        cost: cost of all answers.
        failed: requests without an answer, by status.
    """

    right: int = 0
    latencies_s: list[float] = field(default_factory=list)
    stages: Counter[str] = field(default_factory=Counter)
    degraded: int = 0
    cost: float = 0.0
    failed: Counter[int] = field(default_factory=Counter)


def show(ladder: Ladder, url: str, rows: int, connections: int, stop: threading.Event) -> None:
    """Send test rows, one a request, and print accuracy, latency, stages and cost.

    Args:
        ladder: the ladder that is served.
        url: where.
        rows: how many rows of the test split, at most all of them.
        connections: requests in flight at a time.
        stop: set when the user has had enough.
    """
    inputs, labels = read_rows(ladder, ladder.path(ladder.spec.data.test))
    rows = min(rows, len(labels))
    started = time.perf_counter()
    tally = asyncio.run(_send(ladder, url, inputs, labels[:rows], connections, stop))
    seconds = time.perf_counter() - started
    if not tally.latencies_s:
        raise CascadeError(f"no request was answered; statuses {dict(tally.failed)}")
    _print(ladder, tally, rows, seconds, connections)
    _print_lines_to_try(ladder, url)


async def _send(
    ladder: Ladder,
    url: str,
    inputs: dict[str, NDArray[np.generic]],
    labels: NDArray[np.int64],
    connections: int,
    stop: threading.Event,
) -> Tally:
    fields = [(spec.tensor, inputs[spec.name]) for spec in ladder.spec.inputs]
    target = f"{url}/v2/models/{ladder.spec.name}/infer"
    tally = Tally()
    numbers = iter(range(len(labels)))
    with progress_bar() as bar:
        task = bar.add_task(f"{len(labels):,} rows over HTTP", total=len(labels))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:

            async def worker() -> None:
                for number in numbers:
                    if stop.is_set():
                        return
                    row = [(spec, array[number : number + 1]) for spec, array in fields]
                    body, headers = encode_request(row, outputs=["label"])
                    sent = time.perf_counter()
                    async with session.post(target, data=body, headers=headers) as response:
                        content = await response.read()
                    bar.advance(task)
                    if response.status != 200:
                        tally.failed[response.status] += 1
                        continue
                    tally.latencies_s.append(time.perf_counter() - sent)
                    answer = decode_answer(content, response.headers.get("inference-header-content-length"))
                    tally.right += int(answer.outputs["label"][0]) == int(labels[number])
                    tally.stages[answer.parameters["cascade_stage"]] += 1
                    tally.degraded += answer.parameters["cascade_degraded"]
                    tally.cost += answer.parameters["cascade_cost"]

            await asyncio.gather(*(worker() for _ in range(connections)))
    return tally


def _print(ladder: Ladder, tally: Tally, rows: int, seconds: float, connections: int) -> None:
    spec = ladder.spec
    answered = len(tally.latencies_s)
    top, alone = spec.stages[-1], spec.costs_alone[-1]
    p50, p99 = np.quantile(tally.latencies_s, (0.5, 0.99)) * 1e3
    table = Table(title=f"{spec.name}: {answered:,} of {rows:,} test rows answered", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("accuracy", f"{tally.right / answered:.2%}")
    table.add_row("latency p50 / p99", f"{p50:.1f} / {p99:.1f} ms")
    table.add_row(f"throughput, {connections} connections", f"{answered / seconds:,.0f} requests/s")
    table.add_section()
    for stage in spec.stages:
        table.add_row(f"answered by {stage.name}", f"{tally.stages[stage.name] / answered:.1%}")
    table.add_section()
    mean_cost = tally.cost / answered
    table.add_row(f"mean cost ({spec.cost_unit})", f"{mean_cost:,.0f}")
    table.add_row(f"always using {top.name}", f"{alone:,.0f}")
    table.add_row("cost saved", f"x{alone / mean_cost:.1f}")
    table.add_row("degraded by load", f"{tally.degraded / answered:.2%}")
    for status, count in sorted(tally.failed.items()):
        table.add_row(f"refused with {status}", f"{count:,}")
    console.print(table)


def _print_lines_to_try(ladder: Ladder, url: str) -> None:
    name = ladder.spec.name
    field = ladder.spec.inputs[0]
    rows = os.path.relpath(ladder.path(ladder.spec.data.test))
    shape = ", ".join(map(str, (1, *field.shape)))
    lines = (
        f"curl {url}/v2/models/{name}",
        f"import numpy, tritonclient.http as triton; row = numpy.load('{rows}')['{field.name}'][:1]; "
        f"i = triton.InferInput('{field.name}', [{shape}], '{field.datatype}'); i.set_data_from_numpy(row); "
        f"print(triton.InferenceServerClient('{url.removeprefix('http://')}').infer('{name}', [i]).get_response())",
    )
    console.print("to try against `cascade serve`, in a shell and in Python with tritonclient:")
    for line in lines:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
