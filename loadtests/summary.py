"""What a person wants to see at the end of one run, and the exit code. Judges nothing but the generator itself."""

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from loadtests.conductor import Conductor, State
from loadtests.record import Recording

WIDTH = 120
EXIT_OK, EXIT_FAILED, EXIT_INVALID = 0, 1, 3


def exit_code(conductor: Conductor) -> int:
    """0 if the run was carried out, 3 if it was but the generator could not keep up, 1 if it was not."""
    if conductor.state is not State.DONE or conductor.recording is None:
        return EXIT_FAILED
    return EXIT_OK if conductor.recording.meta["generator"]["valid"] else EXIT_INVALID


def show(conductor: Conductor, stderr: bool) -> None:
    """Print what came of the latest run, on standard output or standard error."""
    console = Console(stderr=stderr)
    if not console.is_terminal:
        # A file or a pipe has no width, and a cut table helps nobody.
        console.width = WIDTH
    recording = conductor.recording
    if recording is not None:
        _show_recording(recording, console)
    if conductor.state is State.FAILED:
        console.print(f"FAILED: {conductor.fault}", style="bold red", markup=False, highlight=False)


def _show_recording(recording: Recording, console: Console) -> None:
    generator = recording.meta["generator"]
    console.print(phase_table(recording))
    for fault, count in generator["faults"].items():
        console.print(f"{count:,} x {fault}", markup=False, highlight=False)
    lag, limit = generator["lag_p99_s"] * 1e3, generator["lag_limit_s"] * 1e3
    if generator["valid"]:
        console.print(f"generator: send lag p99 {lag:.1f} ms of at most {limit:.0f} ms", highlight=False)
    else:
        message = f"INVALID: the generator could not keep up, send lag p99 {lag:.1f} ms is over {limit:.0f} ms"
        console.print(message, style="bold white on red", highlight=False)


def phase_table(recording: Recording) -> Table:
    """One line for each phase, one for the whole."""
    meta, arrivals = recording.meta, recording.arrivals
    who = f"{meta['scenario']} against {meta['system']}"
    title = f"{who}: {len(recording.row):,} requests, seed {meta['seed']}; rates per second, times in ms"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    mix = "/".join(meta["stages"])
    for heading in ("phase", "offered", "answered", "lag", "p50", "p99", "on time", "right", "shed", "error", mix):
        table.add_column(heading, justify="left" if heading == "phase" else "right", no_wrap=True)
    parts = [(name, recording.phase == place, arrivals.phase_seconds[place]) for place, name in enumerate(arrivals.phases)]
    whole = ("all", np.ones(len(recording.row), dtype=np.bool_), arrivals.seconds)
    for name, chosen, seconds in [*parts, whole]:
        table.add_row(name, *_cells(recording, chosen, float(seconds)))
    return table


def _cells(recording: Recording, chosen: NDArray[np.bool_], seconds: float) -> list[str]:
    offered = int(chosen.sum())
    if not offered:
        return ["0"]
    answered = chosen & recording.answered
    on_time = chosen & recording.on_time
    shed = chosen & (recording.status == 503)
    errors = offered - int(answered.sum()) - int(shed.sum())
    latency_ms = recording.latency_s[answered] * 1e3
    p50, p99 = np.quantile(latency_ms, (0.5, 0.99)) if len(latency_ms) else (np.nan, np.nan)
    stages = recording.stage[answered]
    return [
        f"{offered / seconds:,.1f}",
        f"{answered.sum() / seconds:,.1f}",
        f"{np.quantile(recording.lag_s[chosen], 0.99) * 1e3:.1f}",
        f"{p50:.0f}",
        f"{p99:.0f}",
        f"{on_time.sum() / offered:.1%}",
        f"{recording.correct[on_time].mean():.1%}" if on_time.any() else "-",
        f"{shed.sum() / offered:.1%}",
        f"{errors / offered:.1%}",
        "/".join(f"{100 * np.mean(stages == stage):.0f}" for stage in range(len(recording.meta["stages"])) if len(stages)),
    ]
