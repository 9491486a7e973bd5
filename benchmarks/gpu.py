"""A ladder on one GPU in one command of less than nine minutes: loops, numerics, serving, overload, energy.

    python -m benchmarks.gpu --out gpu.json      # on a machine with one CUDA GPU
    python -m benchmarks.gpu --smoke             # about a minute, anywhere: the whole script at tiny sizes, the GPU faked

Needs no network, and installed only the package's dependencies, `psutil` and `uvloop`; for energy and idle time
`nvidia-ml-py`. On a machine without a package index, put the wheels that it lacks into a folder, install them from there
(`pip install --no-index --no-deps --target DIR FOLDER/*.whl`), set PYTHONPATH to DIR and the checkout and PATH to DIR/bin,
and start the command in the checkout.

Parts run one after the other in processes of their own, each with a limit of time; one that fails or is cut off is told as
such and the others stand. Prints a table of targets last; exit status 1 if one was missed or a part failed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_setup import FULL, SMOKE, TOP, Settings, derive, machine

ROOT = Path(__file__).resolve().parent.parent
LIMITS_S = {"checks": 60.0, "numerics": 60.0, "loops": 100.0, "top": 120.0, "whole": 170.0}
"""Of each part; together eight and a half minutes."""
SMOKE_LIMIT_S = 120.0
STOP_S = 40.0
"""A part that has not ended so long after it was asked to is killed."""
WANTED_SERVED, WANTED_IDLE = 0.9, 0.1

console = Console(stderr=True)
result_console = Console()


def run_part(name: str, folder: Path, settings: Settings) -> Any:
    """One part, in this process."""
    from benchmarks import gpu_checks, gpu_loops, gpu_served
    from cascade.spec import Ladder

    if name == "checks":
        return gpu_checks.checks(settings)
    if name == "top":
        return gpu_served.top(derive(folder / "top", settings, top_alone=True), settings)
    spec = derive(folder / name, settings)
    if name == "whole":
        return gpu_served.whole(spec, settings)
    parts: dict[str, Callable[[Ladder, Settings], Any]] = {"loops": gpu_loops.loops, "numerics": gpu_loops.numerics}
    return parts[name](Ladder.read(spec), settings)


def in_a_process(name: str, folder: Path, smoke: bool, limit_s: float) -> dict[str, Any]:
    """One part in a process of its own: its result, or what went wrong, and how long it took."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--folder", str(folder)] + ["--smoke"] * smoke
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    began = time.perf_counter()
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # it stops its server
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    seconds = round(time.perf_counter() - began, 1)
    written = folder / f"{name}.json"
    if written.is_file():
        return {**json.loads(written.read_text()), "seconds": seconds}
    tail = (folder / f"{name}.log").read_text(errors="replace")[-2_000:]
    cut = f"cut off after {limit_s:g} s\n" if seconds >= limit_s else ""
    return {"error": cut + tail, "seconds": seconds}


def targets(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target: what was wanted, what came, and whether it was met; None where that could not be measured."""

    def result(name: str) -> Any:
        return parts.get(name, {}).get("result")

    found: list[dict[str, Any]] = []

    def add(target: str, wanted: str, measured: str, met: bool | None) -> None:
        found.append({"target": target, "wanted": wanted, "measured": measured, "met": met})

    if result("checks") is not None:
        failed = [each["check"] for each in result("checks") if not each["passed"]]
        add("checks on the device", "all pass", ", ".join(failed) or "all pass", not failed)
    points = (result("top") or {}).get("points", [])
    served = max(points, key=lambda point: point["rows_per_s"], default=None)
    bare = [row for row in result("loops") or [] if row["stage"] == TOP and row["batch"] >= 32]
    if served is not None and bare:
        share = served["rows_per_s"] / max(row["bare"] for row in bare)
        add("top served, of the bare loop", f"{WANTED_SERVED:.0%} or more", f"{share:.0%}", share >= WANTED_SERVED)
    if served is not None:
        idle = served["idle_share"]
        met, measured = (None, "not measured") if idle is None else (idle < WANTED_IDLE, f"{idle:.0%}")
        add("GPU idle while the top is saturated", f"below {WANTED_IDLE:.0%}", measured, met)
    return found


def show(document: dict[str, Any]) -> None:
    """Print what was measured, the targets last."""
    parts = document["parts"]
    for name, part in parts.items():
        if "error" in part:
            console.print(f"[red]{name} failed after {part['seconds']:g} s:[/red]", part["error"], markup=True)
    _table("checks", parts, ("check", "passed", "says"))
    _table("numerics", parts, ("stage", "how", "rms_u", "most_u", "same_label", "graphs"))
    _table("loops", parts, ("stage", "batch", "naive", "bare", "device", "ours", "limit", "of_limit"))
    columns = ("rows_a_request", "connections", "rows_per_s", "p50_ms", "p99_ms", "idle_share", "joules_a_row")
    _table("top", parts, columns, lambda result: result["points"])
    _table("whole", parts, columns, lambda result: [result["single"]])
    overload = ("multiple", "offered_per_s", "answered", "on_time", "right", "p99_ms", "lag_p99_ms", "joules_a_row")
    _table("whole", parts, overload, lambda result: result["loads"])
    _table("whole", parts, ("load", "stage", "joules_per_row", "idle_energy"), energies)
    table = Table(title=f"targets, {document['machine']['device']}", title_justify="left")
    for column in ("target", "wanted", "measured", ""):
        table.add_column(column)
    for target in document["targets"]:
        met = {True: "met", False: "MISSED", None: "unknown"}[target["met"]]
        table.add_row(target["target"], target["wanted"], target["measured"], met)
    result_console.print(table)


def energies(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the server says of each stage's energy, at each load."""
    loads = {"single rows": result["single"], **{f"x{load['multiple']:g}": load for load in result["loads"]}}
    return [
        {"load": load, "stage": stage, "joules_per_row": joules, "idle_energy": point["live"]["idle_energy"][stage]}
        for load, point in loads.items()
        for stage, joules in point["live"]["joules_per_row"].items()
        if joules is not None
    ]


def _table(
    name: str,
    parts: dict[str, Any],
    columns: tuple[str, ...],
    rows: Callable[[Any], list[dict[str, Any]]] = lambda result: result,
) -> None:
    result = parts.get(name, {}).get("result")
    lines = [] if result is None else rows(result)
    if not lines:
        return
    table = Table(title=name, title_justify="left")
    for column in columns:
        table.add_column(column.replace("_", " "))
    for row in lines:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    result_console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main(
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny, on the CPU, with the GPU faked.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file for everything that was measured.")] = None,
    only: Annotated[str, typer.Option(help="Which parts, with commas.")] = ",".join(LIMITS_S),
    part: Annotated[str, typer.Option(hidden=True)] = "",
    folder: Annotated[Path, typer.Option(hidden=True)] = Path(),
) -> None:
    """Measure a ladder on one GPU."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if part:
        found = {"result": run_part(part, folder, SMOKE if smoke else FULL)}
        (folder / f"{part}.json").write_text(json.dumps(found))
        return
    described = machine()
    if not smoke and described["cuda"] is None:
        raise typer.BadParameter("there is no CUDA GPU here; --smoke runs without one")
    document: dict[str, Any] = {"smoke": smoke, "machine": described, "parts": {}}
    with tempfile.TemporaryDirectory(prefix="cascade-gpu-") as name:
        for each in only.split(","):
            console.print(f"{each} ...")
            document["parts"][each] = in_a_process(each, Path(name), smoke, SMOKE_LIMIT_S if smoke else LIMITS_S[each])
            document["targets"] = targets(document["parts"])
            if out is not None:
                out.write_text(json.dumps(document, indent=1), encoding="utf-8")
    show(document)
    failed = any("error" in each for each in document["parts"].values())
    if failed or any(target["met"] is False for target in document["targets"]):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
