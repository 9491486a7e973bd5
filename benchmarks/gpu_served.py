"""The served ladder on one GPU: what its top gets through, latency of single rows, 1 to 10 times too much, and the energy.

Drives `cascade serve` from outside, over HTTP. Idle share and energy of the GPU come from NVML, over the same window as the
answers; without NVML they are not known.
"""

import contextlib
import importlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_setup import TOP, Settings
from benchmarks.load import send_for, status_and_body
from benchmarks.routers_live import messages, offered
from benchmarks.systems import System
from cascade.serving.environment import free_port
from cascade.spec import Ladder

SETTLE_S = 3.0
"""After the first answer HAProxy is replaced once more, to learn of all routers."""
START_S = 150.0
SAMPLE_S = 0.05


def prepare(spec: Path) -> dict[str, Any]:
    """Profile and calibrate a derived ladder with the commands that a user types; what `cascade profile` printed."""
    printed: dict[str, Any] = json.loads(_cascade("profile", str(spec), "--json"))
    _cascade("calibrate", str(spec))
    return printed


def _cascade(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "cascade.cli", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cascade {arguments[0]}: {done.stdout[-500:]}{done.stderr[-1500:]}")
    return done.stdout


@contextlib.contextmanager
def serving(spec: Path) -> Iterator[int]:
    """`cascade serve`, answering and settled; its port."""
    port = free_port()
    command = [sys.executable, "-m", "cascade.cli", "serve", str(spec), "--port", str(port)]
    system = System(command, port, spec.parent / "server.log")
    try:
        system.wait_for_answer(messages(Ladder.read(spec), port)[0][0], START_S)
        time.sleep(SETTLE_S)
        yield port
    finally:
        system.stop()


class GpuWatch:
    """Energy and utilisation of the first GPU for as long as the context lasts.

    Attributes:
        joules: taken; None if it cannot be measured.
        idle_share: share of the time in which no kernel ran, by NVML's samples; None if it cannot be measured.
    """

    def __init__(self) -> None:
        self.joules: float | None = None
        self.idle_share: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "GpuWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        with contextlib.suppress(Exception):  # no package, no driver, no such counter: not measured
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            device = nvml.nvmlDeviceGetHandleByIndex(0)
            busy: list[float] = []
            before = nvml.nvmlDeviceGetTotalEnergyConsumption(device)
            while not self._over.wait(SAMPLE_S):
                busy.append(nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100)
            self.joules = (nvml.nvmlDeviceGetTotalEnergyConsumption(device) - before) / 1e3
            self.idle_share = 1 - float(np.mean(busy))


def closed_loop(spec: Path, port: int, rows: int, connections: int, seconds: float) -> dict[str, Any]:
    """Requests of ``rows`` rows, as fast as answers come."""
    ladder = Ladder.read(spec)
    requests, _ = messages(ladder, port, rows)
    watch, edges = GpuWatch(), 0

    def at_edge() -> None:
        nonlocal edges
        edges += 1
        if edges == 1:
            watch.__enter__()
        else:
            watch.__exit__()

    answers = send_for(port, requests, connections, warm_s=1.0, seconds=seconds, at_edge=at_edge)
    statuses = [status_and_body(raw)[0] for raw in answers.raw]
    latencies = np.array(answers.latencies_s)[np.array(statuses) == 200]
    good = len(latencies)
    p50_ms, p99_ms = (np.quantile(latencies, (0.5, 0.99)) * 1e3).tolist() if good else (None, None)
    return {
        "rows_a_request": rows,
        "connections": connections,
        "rows_per_s": rows * good / answers.seconds,
        "refused": len(statuses) - good,
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "idle_share": watch.idle_share,
        "joules_a_row": None if watch.joules is None or not good else watch.joules / (rows * good),
        "live": live(port, ladder.spec.name),
    }


def live(port: int, model: str) -> dict[str, Any]:
    """What the server says of itself: the live object of one router."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/{model}/stats", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)["live"]
        return {name: found[name] for name in ("shares", "batch_rows", "run_s", "joules_per_row", "idle_energy", "joules")}


def top(spec: Path, settings: Settings) -> dict[str, Any]:
    """The top alone, with requests of half a full batch and enough of them to keep several under way in each router."""
    prepared = prepare(spec)
    rows = max(1, settings.top_rows // 2)
    points = []
    with serving(spec) as port:
        for connections in (4, 12) if not settings.smoke else (4,):
            points.append(closed_loop(spec, port, rows, connections * settings.routers, settings.load_s))
    return {"prepared": prepared, "points": points}


def whole(spec: Path, settings: Settings) -> dict[str, Any]:
    """The whole ladder: single rows in a closed loop, then multiples of what its top can do, in an open one.

    The unit is the top's rows a second at full batches by its profiled service time, one batch at a time.
    """
    prepared = prepare(spec)
    ladder = Ladder.read(spec)
    service = prepared["service"][TOP]
    unit = settings.top_rows / (service["a_s"] + service["b_s"] * settings.top_rows)
    rows = min(max(1, ceil(max(settings.multiples) * unit / settings.most_requests_per_s)), settings.rows // 4)
    loads = []
    with serving(spec) as port:
        single = closed_loop(spec, port, 1, settings.connections, settings.load_s)
        requests, labels = messages(ladder, port, rows)
        for multiple in settings.multiples:
            with GpuWatch() as watch:
                came = offered(
                    port, requests, labels, multiple * unit / rows, settings.load_s, ladder.spec.deadline.default_s
                )
            answered = came.offered_per_s * came.answered * rows * settings.load_s
            joules = None if watch.joules is None or not answered else watch.joules / answered
            found = {"multiple": multiple, **came._asdict(), "idle_share": watch.idle_share, "joules_a_row": joules}
            loads.append({**found, "live": live(port, ladder.spec.name)})
    return {"prepared": prepared, "single": single, "rows_a_request": rows, "unit": unit, "loads": loads}
