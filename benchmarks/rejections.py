"""How many requests a second one router can turn away, beside how many it can serve.

`python -m benchmarks.rejections`: serves the ladder of the load tests, whose first stage takes two rows a call, and keeps as
many connections asking as it can serve, then many times as many, which come back at once whatever they are told. Most of
those are turned away at the door. The router is one process on one core, so what counts is its CPU. With s served, r refused

    CPU of a window = a s + b r,    a from the windows in which nobody is refused,

and 1 / a, 1 / b are what a router can serve, or refuse, when it has a core and does nothing else.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.load import send_for, status_and_body
from benchmarks.systems import System
from cascade.spec import Ladder
from loadtests.measure_capacity import encoded

SPEC = Path(__file__).resolve().parent.parent / "deployments" / "loadtest" / "cascade.yaml"
CONNECTIONS = {"calm": 32, "flood": 1024}
ROWS = 1000

console = Console()


@dataclass(frozen=True)
class Window:
    """What was measured while so many connections kept asking.

    Attributes:
        kind: calm or flood.
        served: answers a second.
        refused: 503s a second.
        other: answers of another kind a second.
        router_s: CPU seconds of the router process, a second.
    """

    kind: str
    served: float
    refused: float
    other: float
    router_s: float


def measure(system: System, kind: str, requests: Sequence[bytes], seconds: float) -> Window:
    """Keep the connections of one kind asking for a while."""
    edges: list[tuple[float, float]] = []

    def at_edge() -> None:
        spent = system.cpu_s()
        # Ray adds the method that an actor is in to the title of its process.
        routers = [pid for pid in spent if system.kind(pid).partition(".")[0].endswith(":router")]
        edges.append((perf_counter(), sum(spent[pid] for pid in routers)))

    system.refresh()
    answers = send_for(system.port, requests, CONNECTIONS[kind], warm_s=2.0, seconds=seconds, at_edge=at_edge)
    took_s = edges[1][0] - edges[0][0]
    statuses = [status_and_body(raw)[0] for raw in answers.raw]
    served, refused = statuses.count(200) / took_s, statuses.count(503) / took_s
    return Window(kind, served, refused, len(statuses) / took_s - served - refused, (edges[1][1] - edges[0][1]) / took_s)


def costs_s(windows: Sequence[Window]) -> tuple[float, float]:
    """CPU seconds of the router for a request that it serves, and for one that it refuses: a and b above."""
    serving = median(window.router_s / window.served for window in windows if window.kind == "calm")
    flood = [window for window in windows if window.kind == "flood"]
    return serving, median((window.router_s - serving * window.served) / window.refused for window in flood)


def main(
    rounds: Annotated[int, typer.Option(help="Rounds; both kinds are measured in each.", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="Length of a window.", min=1)] = 5.0,
    port: Annotated[int, typer.Option(help="Port for the server.")] = 8160,
    out: Annotated[Path | None, typer.Option(help="Write all windows as JSON.")] = None,
) -> None:
    """Measure both kinds in turn; print the windows, and what a request of each kind costs."""
    ladder = Ladder.read(SPEC)
    requests = encoded(ladder, np.arange(ROWS))
    windows: list[Window] = []
    with tempfile.TemporaryDirectory() as name:
        command = [str(Path(sys.executable).parent / "cascade"), "serve", str(SPEC), "--port", str(port)]
        system = System(command, port, Path(name) / "server.log")
        try:
            console.print(f"first answer after {system.wait_for_answer(requests[0]):.1f} s")
            for _ in range(rounds):
                for kind in CONNECTIONS:
                    windows.append(measure(system, kind, requests, seconds))
                    sleep(1.0)  # what waits from a flood is answered before the next window
        finally:
            system.stop()
    show(windows)
    if out is not None:
        out.write_text(json.dumps([asdict(window) for window in windows], indent=1))


def show(windows: Sequence[Window]) -> None:
    """The windows, and what they come to."""
    table = Table("connections", "served/s", "refused/s", "other/s", "router, of a core")
    for window in windows:
        figures = (window.served, window.refused, window.other)
        table.add_row(str(CONNECTIONS[window.kind]), *(f"{each:,.0f}" for each in figures), f"{window.router_s:.2f}")
    console.print(table)
    serving, refusing = costs_s(windows)
    console.print(
        f"router CPU: {1e3 * serving:.3f} ms a request served, {1e3 * refusing:.3f} ms a request refused: with a core of "
        f"its own it serves {1 / serving:,.0f} or refuses {1 / refusing:,.0f} a second, x{serving / refusing:.1f}"
    )


if __name__ == "__main__":
    typer.run(main)
