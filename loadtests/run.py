"""The whole load test with one command: servers, capacity, scenarios, verdict.

    python -m loadtests.run --set short

Starts the product and the two baselines one after the other on free ports of this machine, measures what the product can do,
lets Locust run every scenario as a process of its own, judges all recordings together, prints the verdict and writes it with
the figure. Exit codes: 0 passed, 1 failed, 2 wrong arguments, 3 the load generator could not keep up.
"""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from rich.console import Console

from benchmarks.systems import SystemFailed
from cascade.errors import CascadeError
from cascade.report.style import save
from cascade.spec import Ladder
from loadtests.capacity import Measured, Window
from loadtests.clauses import CLAUSES as ALL_CLAUSES
from loadtests.figure import load_figure
from loadtests.judge import judge_runs
from loadtests.knee import knee
from loadtests.measure_capacity import REPEATS, SECONDS, measure, measure_unit_rate
from loadtests.phases import refused
from loadtests.record import Recording
from loadtests.series import SETS, SMOKE_SCALE, SOME_CLAUSES, Job, Means, Series, carry_out, exit_code, scenarios_by_system
from loadtests.servers import SYSTEMS, Server, machine, shares, started
from loadtests.tables import show
from loadtests.verdict import prepare

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = SYSTEMS[0]
CAPACITY_FILE = "capacity.json"
PROBE, PROBE_S = "steady-1", 8.0
"""A rate is tried by this scenario for so long; the first seconds of it are warm-up."""
STEADY = 0.05
"""Change of the top stage's capacity from before the runs to after them that is not worth a word."""
GENERATOR_NICE = -10
"""Of the generator's process, where the system allows it, since it shares the machine with the server."""
STOP_S = 10.0
"""A generator that has not gone after this is killed."""

console = Console(stderr=True)
result_console = Console()


def main(
    chosen: Annotated[str, typer.Option("--set", help="smoke, short or full, or names of scenarios with commas.")] = "short",
    spec: Annotated[Path, typer.Option(help="The ladder.")] = ROOT / "deployments" / "loadtest" / "cascade.yaml",
    systems: Annotated[str, typer.Option(help="Which servers, with commas.")] = ",".join(SYSTEMS),
    candidate: Annotated[str, typer.Option(help="The one that the verdict is about.")] = PRODUCT,
    out: Annotated[Path | None, typer.Option(help="Folder for what is written.", show_default="runs/DATE")] = None,
    seconds_scale: Annotated[float, typer.Option(help="Stretches the times of all scenarios.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of arrivals, rows and who asks.")] = 0,
    capacity: Annotated[Path | None, typer.Option(help="capacity.json of an earlier run, instead of measuring.")] = None,
) -> None:
    """Prove that a ladder degrades gracefully, or fail."""
    # Ending it by SIGTERM must stop servers and generators as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Servers and their replicas import the baselines from here.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    folder = out or Path("runs") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    scale = seconds_scale * (SMOKE_SCALE if chosen == "smoke" else 1.0)
    try:
        names = [name.strip() for name in systems.split(",")]
        if unknown := [name for name in names if name not in SYSTEMS]:
            raise typer.BadParameter(f"--systems: choose from {', '.join(SYSTEMS)}, got {', '.join(unknown)}")
        plan = scenarios_by_system(chosen, names, candidate)
        ladder = Ladder.read(spec)
        header = describe(chosen, spec, seed, scale)
        folder.mkdir(parents=True, exist_ok=True)
        console.print(*(f"[dim]{key}[/dim] {value}" for key, value in header.items()), sep="\n", highlight=False)
        means = Means(
            start=lambda name: starting(name, spec, folder / name),
            gauge=partial(gauge, ladder, spec, seed, scale, folder),
            gauge_again=lambda server: measure_unit_rate(ladder, server.port, SECONDS * min(scale, 1.0)),
            play=partial(play, spec, seed, scale),
            say=console.print,
        )
        before = None if capacity is None else Measured.read(capacity)
        series = carry_out(plan, means, folder, PRODUCT, before)
        asked = clauses_for(chosen, names)
        passed = conclude(series, spec, candidate, asked, header, folder, capacity or folder / CAPACITY_FILE)
    except CascadeError as error:
        console.print(f"[red]error:[/red] {error.detail}", highlight=False)
        raise typer.Exit(2) from error
    except SystemFailed as error:
        console.print(f"[red]error:[/red] {error}", highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print("[red]stopped[/red]: servers and generators have gone")
        raise typer.Exit(130) from None
    raise typer.Exit(exit_code(series, passed))


def describe(chosen: str, spec: Path, seed: int, scale: float) -> dict[str, Any]:
    """What a reader must know to trust the numbers."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "set": chosen,
        "spec": spec.parent.name + "/" + spec.name,
        "seed": seed,
        "seconds_scale": scale,
        **machine(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("ray", "torch", "numpy", "locust")},
    }


@contextmanager
def starting(name: str, spec: Path, folder: Path) -> Iterator[Server]:
    """A server, and what a person wants to see of its start and its end."""
    began = time.perf_counter()
    with started(name, spec, folder, console.print) as server:
        console.print(
            f"[green]{name}[/green] is ready after {time.perf_counter() - began:.0f} s, log {folder / 'server.log'}"
        )
        yield server
        console.print(f"stopping {name}")


def gauge(ladder: Ladder, spec: Path, seed: int, scale: float, folder: Path, server: Server) -> Measured:
    """Measure what the product can do, and keep it beside the recordings."""

    def progress(window: Window) -> None:
        console.print(
            f"  {window.stage}: {window.capacity:,.0f} rows/s, {window.rate:,.0f} of them came, "
            f"batches of {window.batch:.1f}, busy {window.occupancy:.0%}, client {window.client_share:.0%} of a core"
        )

    console.print("measuring what it can do")
    repeats = 1 if scale < 1 else REPEATS
    measured = measure(ladder, server.port, seconds=SECONDS * min(scale, 1.0), repeats=repeats, progress=progress)
    console.print(f"in a closed loop: top stage {measured.unit_rate:.1f}/s, stage 0 {measured.stage0_rate:.0f}/s")

    def good_share(rate: float) -> float:
        job = Job(PRODUCT, PROBE, folder / "probes")
        job.folder.mkdir(exist_ok=True)
        console.print(f"stage 0 at {rate:.0f}/s in an open loop")
        play(spec, seed, 1.0, job, server, replace(measured, unit_rate=rate), seconds=PROBE_S)
        if not job.record.is_file():
            return 0.0
        recording = Recording.load(job.record)
        steady = recording.phase == recording.arrivals.phases.index("steady")
        server.wait_until_idle()
        return float(recording.on_time[steady].mean())

    rate = knee(good_share, measured.stage0_rate)
    first = next(iter(measured.rows_per_s))
    measured = replace(measured, stage0_rate=rate, rows_per_s={**measured.rows_per_s, first: rate})
    console.print(f"top stage {measured.unit_rate:.1f} requests/s, stage 0 {measured.stage0_rate:.0f} requests/s")
    if not measured.saturated:
        console.print("[yellow]the top stage was never full while it was measured: its capacity is an estimate[/yellow]")
    (folder / CAPACITY_FILE).write_bytes(orjson.dumps(measured.document(), option=orjson.OPT_INDENT_2))
    server.wait_until_idle()
    return measured


def play(
    spec: Path, seed: int, scale: float, job: Job, server: Server, measured: Measured, seconds: float | None = None
) -> int:
    """Let Locust carry one run out; its exit code. What the server's processes used goes into the recording."""
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests" / "locustfile.py")]
    command += ["--headless", "--only-summary"]
    options = {
        "host": server.url,
        "scenario": job.scenario,
        "unit-rate": measured.unit_rate,
        "stage0-rate": measured.stage0_rate,
        "seed": seed,
        "spec": spec,
        "record": job.record,
        "seconds-scale": scale,
        "system": job.system,
    }
    if seconds is not None:
        options["seconds"] = seconds
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    job.record.unlink(missing_ok=True)
    before = server.cpu_s()
    with console.status("under load"):
        code = _wait_for(command, job.folder / f"{job.scenario}.log")
    if job.record.is_file():
        console.print("  " + note(job.record, before, server.cpu_s(), job.attempt), highlight=False)
    return code


def _go_first() -> None:
    """A generator that waits for the CPU sends late, and measures itself; what it takes it takes from the server."""
    with suppress(OSError):
        os.nice(GENERATOR_NICE)
        # Where Linux groups tasks by session, a process's own niceness counts only within its group.
        Path("/proc/self/autogroup").write_text(str(GENERATOR_NICE), encoding="ascii")


def _wait_for(command: list[str], log: Path) -> int:
    """Run a process in a group of its own; the group goes when this one is interrupted."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_go_first
        )
    try:
        return process.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_S)


def note(path: Path, before: Mapping[str, float], after: Mapping[str, float], attempt: int) -> str:
    """Add what only this side knows to a recording, and say in a line what is in it.

    Args:
        path: the recording.
        before: CPU seconds of the server before the run, by kind of process.
        after: the same after it.
        attempt: 1, or more after invalid runs.
    """
    recording = Recording.load(path)
    used = shares(before, after, recording.arrivals.seconds)
    recording.meta["cpu_shares"] = used
    recording.meta["attempt"] = attempt
    recording.save(path)
    on_time, count = recording.on_time, len(recording.row)
    accuracy = f"{recording.correct[on_time].mean():.1%}" if on_time.any() else "none"
    busiest = ", ".join(f"{kind.rpartition(':')[2]} {share:.0%}" for kind, share in list(used.items())[:4])
    return (
        f"{count:,} requests, on time {on_time.mean():.1%}, accuracy {accuracy}, turned away "
        f"{refused(recording).mean():.1%}, send lag p99 {1e3 * np.quantile(recording.lag_s, 0.99):.1f} ms; CPU: {busiest}"
    )


def clauses_for(chosen: str, systems: Sequence[str]) -> str:
    """Letters of the clauses that such a run can be judged by; the comparison only where there is something to compare."""
    letters = "".join(ALL_CLAUSES) if chosen in SETS and chosen != "smoke" else SOME_CLAUSES
    return letters if len(systems) > 1 else letters.replace("h", "")


def conclude(
    series: Series, spec: Path, candidate: str, clauses: str, header: dict[str, Any], folder: Path, capacity: Path
) -> bool:
    """Judge everything that was recorded, show it and write it; whether it passed."""
    limits, simulator = prepare(spec, capacity)
    runs = {system: [Recording.load(path) for path in paths] for system, paths in series.records.items()}
    verdict = judge_runs(runs, limits, candidate=candidate, clauses=clauses, predict=simulator.predict)
    show(verdict, result_console)
    if series.unit_rate_after is not None:
        console.print(drift(series.measured.unit_rate, series.unit_rate_after), highlight=False)
    document = {**header, "unit_rate_after": series.unit_rate_after, **verdict.document()}
    (folder / "verdict.json").write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    save(load_figure(verdict), folder / "verdict")
    console.print(f"everything is in {folder}", highlight=False)
    return verdict.passed


def drift(before: float, after: float) -> str:
    """What the machine's speed did during the runs, in requests a second through the top stage."""
    change = after / before - 1
    text = f"top stage {before:.1f} requests/s before the runs, {after:.1f} after them ({change:+.0%})"
    if abs(change) <= STEADY:
        return text
    return (
        f"[yellow]{text}: this machine's speed changes; multiples of load, A* and E are by what was measured before[/yellow]"
    )


if __name__ == "__main__":
    typer.run(main)
