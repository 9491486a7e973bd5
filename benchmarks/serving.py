"""The shipped server against the same cascade written by hand on Ray Serve: one command, one machine, the same answers.

    python benchmarks/serving.py

Measures throughput, latency and CPU of both at 1, 32 and 128 connections, on the two cheapest rungs (where serving is
compared, not arithmetic) and on the whole ladder; prints the table, and writes it into docs/results.md.
"""

import os
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import sleep
from typing import Annotated, Any, NamedTuple

import numpy as np
import orjson
import typer
from ladders import Bench, derive
from measure import Given, accuracy, check, measure, router_memory
from rich.console import Console
from systems import System, SystemFailed
from tables import show, show_settings, targets, write_section

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parent / "deployments" / "fashion" / "cascade.yaml"
RESULTS = HERE.parent / "docs" / "results.md"
CONNECTIONS = (1, 32, 128)
SETTLE_S = 3.0
"""After the first answer HAProxy is replaced once more, to learn of the router; the old one closes its connections."""
MEMORY_REQUESTS = 50_000
MEMORY_WARM = 10_000
"""Requests after which the router's buffers and pools have their size."""


class Setting(NamedTuple):
    """What a user may tune in the stages of the hand-written cascade.

    Attributes:
        max_ongoing_requests: calls that Serve lets into a replica.
        batch_wait_timeout_s: how long `@serve.batch` waits for a batch to fill.
    """

    max_ongoing_requests: int
    batch_wait_timeout_s: float

    def __str__(self) -> str:
        return f"max_ongoing_requests={self.max_ongoing_requests}, batch_wait_timeout_s={self.batch_wait_timeout_s:g}"


TRIED = (
    Setting(128, 0.0),
    Setting(128, 0.002),
    Setting(128, 0.005),
    Setting(32, 0.0),
    Setting(32, 0.005),
    Setting(32, 0.01),
)
BY_HAND = TRIED[0]
"""Under load no other was better by more than the noise, see README.md."""

console = Console(stderr=True)
result_console = Console()


class Bencher:
    """Runs systems one after the other and collects what is measured.

    Args:
        folder: for logs.
        port: first of the two ports to use.
        warm_s: seconds of load before each window.
        seconds: length of each window.
    """

    def __init__(self, folder: Path, port: int, warm_s: float, seconds: float) -> None:
        self._folder = folder
        self._port = port
        self._warm_s = warm_s
        self._seconds = seconds
        self.points: list[dict[str, Any]] = []
        self.starts: list[dict[str, Any]] = []
        self.found: dict[tuple[str, str], list[Given | None]] = {}

    @contextmanager
    def running(self, bench: Bench, name: str, setting: Setting = BY_HAND) -> Iterator[System]:
        """One system, started, answering and settled."""
        if name == "by hand":
            command = [sys.executable, str(HERE / "handwritten.py"), str(bench.spec)]
            command += ["--stage-ongoing", str(setting.max_ongoing_requests)]
            command += ["--wait-s", str(setting.batch_wait_timeout_s)]
        else:
            command = [str(Path(sys.executable).parent / "cascade"), "serve", str(bench.spec)]
        port = self._port + (name == "cascade")
        system = System([*command, "--port", str(port)], port, self._folder / f"{name}.log")
        try:
            seconds = system.wait_for_answer(self.requests(bench, name)[0])
            self.starts.append({"ladder": bench.title, "system": name, "seconds": seconds})
            console.print(f"{bench.title}, {name}: first answer after {seconds:.1f} s")
            sleep(SETTLE_S)
            yield system
        finally:
            if not system.stop():
                console.print(f"[red]{name} did not stop by itself; its processes were killed[/red]")

    def round(self, bench: Bench, name: str, number: int, setting: Setting = BY_HAND) -> None:
        """All measurements of one system on one ladder, once."""
        requests = self.requests(bench, name)
        stages = [stage.name for stage in bench.ladder.spec.stages]
        with self.running(bench, name, setting) as system:
            found = check(system, requests, stages)
            if None in found:
                raise SystemFailed(
                    f"{name} left {found.count(None)} of {len(found)} rows of {bench.title} without an answer"
                )
            self.found[bench.title, name] = found
            for connections in CONNECTIONS:
                point = measure(
                    system,
                    requests,
                    found,
                    stages,
                    connections=connections,
                    warm_s=self._warm_s,
                    seconds=self._seconds,
                )
                facts = {"ladder": bench.title, "system": name, "setting": list(setting), "round": number}
                self.points.append(facts | asdict(point))
                console.print(
                    f"{bench.title}, {name}, {connections} connections: {point.throughput:,.0f} requests/s, "
                    f"p50 {point.p50_ms:.2f} ms, {point.cpu_ms:.3f} CPU-ms a request; client {point.client_share:.2f} "
                    f"and others {point.other_share:.2f} of a core"
                )

    def memory(self, bench: Bench) -> dict[str, Any]:
        """Resident memory of the router of cascade over many requests, and what each request adds."""
        every = MEMORY_WARM // 2
        with self.running(bench, "cascade") as system:
            samples = router_memory(system, bench.ours, MEMORY_REQUESTS, every)
        settled = [sample for sample in samples if sample[0] >= MEMORY_WARM]
        slope = float(np.polyfit([sent for sent, _ in settled], [size for _, size in settled], 1)[0])
        console.print(f"router memory: {[round(size / 2**20, 1) for _, size in samples]} MiB, each {every:,} requests")
        return {"requests": MEMORY_REQUESTS, "bytes_a_request": slope, "samples": samples}

    @staticmethod
    def requests(bench: Bench, name: str) -> list[bytes]:
        """What a system is sent."""
        return bench.ours if name == "cascade" else bench.theirs


def main(
    quick: Annotated[bool, typer.Option("--quick", help="One short round, for trying it out; docs are left alone.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; in each, both systems run on both ladders.")] = 3,
    memory: Annotated[bool, typer.Option("--memory", help="Also the router's memory over 50,000 requests.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file for everything that was measured.")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Only compare settings of the hand-written one.")] = False,
    docs: Annotated[
        Path, typer.Option(help="Markdown file whose section is replaced.", show_default="docs/results.md")
    ] = RESULTS,
    spec: Annotated[
        Path, typer.Option(help="Ladder to derive from; its input is called image.", show_default="the shipped one")
    ] = SHIPPED,
    port: Annotated[int, typer.Option(help="First of two free ports.")] = 8200,
) -> None:
    """Compare `cascade serve` with the cascade that a Ray Serve user would write by hand."""
    # Ending it by SIGTERM must stop the server under measurement as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rounds = 1 if quick else rounds
    rows = 300 if quick else 1000
    warm_s, seconds = (1.0, 2.0) if quick else (2.0, 6.0)
    with tempfile.TemporaryDirectory(prefix="cascade-benchmark-") as name:
        folder = Path(name)
        benches = []
        for title, rungs in (("two cheapest rungs", 2), ("whole ladder", None)):
            (folder / title).mkdir()
            benches.append(derive(spec.resolve(), folder / title, rungs, rows, title))
        bencher = Bencher(folder, port, warm_s, seconds)
        if tune:
            for number in range(rounds):
                for setting in TRIED:
                    bencher.round(benches[0], "by hand", number, setting)
            if out is not None:
                out.write_bytes(orjson.dumps(bencher.points, option=orjson.OPT_INDENT_2))
            show_settings(bencher.points, result_console)
            return
        for number in range(rounds):
            for bench in benches:
                for system in ("by hand", "cascade"):
                    bencher.round(bench, system, number)
        kept = bencher.memory(benches[0]) if memory else None
    arguments = [*(["--quick"] if quick else ["--rounds", str(rounds)]), *(["--memory"] if memory else [])]
    document = {
        "command": " ".join(["python benchmarks/serving.py", *arguments]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "rounds": rounds,
        "seconds": seconds,
        "by_hand": str(BY_HAND),
        "ladders": [facts(bench, bencher.found) for bench in benches],
        "starts": bencher.starts,
        "points": bencher.points,
        "memory": kept,
    }
    document["targets"] = [asdict(target) for target in targets(document)]
    if out is not None:
        out.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    if not quick:
        write_section(document, docs)
    show(document, result_console)


def facts(bench: Bench, found: dict[tuple[str, str], list[Given | None]]) -> dict[str, Any]:
    """What a reader must know of a ladder to trust its numbers."""
    by_hand, ours = found[bench.title, "by hand"], found[bench.title, "cascade"]
    spec = bench.ladder.spec
    return {
        "title": bench.title,
        "stages": [stage.name for stage in spec.stages],
        "base_prices": spec.base_prices,
        "rows": len(ours),
        "accuracy": {"by hand": accuracy(by_hand, bench.labels), "cascade": accuracy(ours, bench.labels)},
        "escalated": float(np.mean([answer is not None and answer.stage != spec.stages[0].name for answer in ours])),
        "same_answers": sum(theirs == mine for theirs, mine in zip(by_hand, ours, strict=True)),
    }


def machine() -> dict[str, Any]:
    """The machine, without its name."""
    model = platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    versions = {package: version(package) for package in ("ray", "torch", "numpy")}
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


if __name__ == "__main__":
    typer.run(main)
