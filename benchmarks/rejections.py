"""How many requests a second one router can turn away, beside how many it can serve.

`python benchmarks/rejections.py`: starts `cascade serve`, then in turn sends requests that are served and requests that are
shed at the door, as fast as answers come back. A request is shed for certain when it grants less time than the router's own
event loop takes to turn: nothing else about it differs. The router is one process on one core, so what counts is its CPU.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Annotated

import typer
from ladders import derive
from load import send_for, status_and_body
from rich.console import Console
from rich.table import Table
from systems import System

SPEC = Path("deployments/fashion/cascade.yaml")
IMPATIENT = b"grpc-timeout: 1n\r\n"
SETTLE_S = 3.0

console = Console()


@dataclass(frozen=True)
class Point:
    """What was measured in one window.

    Attributes:
        kind: served, or shed.
        per_s: answers of that kind a second.
        router_ms: CPU of the router process, milliseconds an answer.
        all_ms: CPU of every process of the server, milliseconds an answer.
        router_share: CPU of the router process, share of a core.
        other: answers of another kind.
    """

    kind: str
    per_s: float
    router_ms: float
    all_ms: float
    router_share: float
    other: int


def measure(system: System, kind: str, requests: list[bytes], connections: int, seconds: float) -> Point:
    """Send one kind of request for a while."""
    edges: list[tuple[float, dict[str, float]]] = []

    def at_edge() -> None:
        edges.append((perf_counter(), dict(system.cpu_s())))

    system.refresh()
    answers = send_for(system.port, requests, connections, warm_s=1.0, seconds=seconds, at_edge=at_edge)
    (from_s, before), (to_s, after) = edges
    spent = {pid: after[pid] - before.get(pid, 0.0) for pid in after}
    router_s = sum(cpu_s for pid, cpu_s in spent.items() if system.kind(pid).endswith(":router"))
    wanted = 200 if kind == "served" else 503
    right = sum(status_and_body(raw)[0] == wanted for raw in answers.raw)
    took_s = to_s - from_s
    return Point(
        kind,
        right / took_s,
        1e3 * router_s / max(right, 1),
        1e3 * sum(spent.values()) / max(right, 1),
        router_s / took_s,
        len(answers.raw) - right,
    )


def main(
    rounds: Annotated[int, typer.Option(help="Rounds; both kinds are measured in each.", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="Length of a window.", min=1)] = 5.0,
    connections: Annotated[int, typer.Option(help="Requests under way at a time.", min=1)] = 64,
    port: Annotated[int, typer.Option(help="Port for the server.")] = 8160,
    out: Annotated[Path | None, typer.Option(help="Write all points as JSON.")] = None,
) -> None:
    """Measure both kinds in turn and print medians."""
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = derive(SPEC, folder, None, 1000, "shipped ladder")
        served = bench.messages["protocol"]
        kinds = {"served": served, "shed": [request.replace(b"\r\n", b"\r\n" + IMPATIENT, 1) for request in served]}
        command = [str(Path(sys.executable).parent / "cascade"), "serve", str(bench.spec), "--port", str(port)]
        system = System(command, port, folder / "server.log")
        try:
            console.print(f"first answer after {system.wait_for_answer(served[0]):.1f} s")
            sleep(SETTLE_S)
            for number in range(1, rounds + 1):
                for kind, requests in kinds.items():
                    point = measure(system, kind, requests, connections, seconds)
                    points.append(point)
                    console.print(f"round {number}, {kind}: {point.per_s:,.0f}/s, router {point.router_ms:.3f} ms each")
        finally:
            system.stop()
    show(points)
    if out is not None:
        out.write_text(json.dumps([vars(point) for point in points], indent=1))


def show(points: list[Point]) -> None:
    """Medians with the spread, and the ratio of the two kinds."""
    table = Table(title="One router, whole shipped ladder behind it; median (lowest to highest)")
    for column in ("", "a second", "router CPU, ms", "server CPU, ms", "router, of a core", "other answers"):
        table.add_column(column, justify="left" if not column else "right")
    for kind in ("served", "shed"):
        mine = [point for point in points if point.kind == kind]
        cells = []
        for field, digits in (("per_s", 0), ("router_ms", 3), ("all_ms", 3), ("router_share", 2)):
            every = [getattr(point, field) for point in mine]
            cells.append(f"{median(every):,.{digits}f} ({min(every):,.{digits}f} to {max(every):,.{digits}f})")
        table.add_row(kind, *cells, f"{sum(point.other for point in mine):,}")
    console.print(table)
    served, shed = ([p for p in points if p.kind == kind] for kind in ("served", "shed"))
    times = median(p.per_s for p in shed) / median(p.per_s for p in served)
    cheaper = median(p.router_ms for p in served) / median(p.router_ms for p in shed)
    console.print(f"shed x{times:.1f} as many a second; x{cheaper:.1f} less of the router's CPU each")


if __name__ == "__main__":
    typer.run(main)
