"""A long run without a fault: memory, open files and the mix of stages must stay as they are. Knows the cluster."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from loadtests.faults.cluster import FaultyCluster
from loadtests.faults.trial import sending
from loadtests.record import Recording

LOAD = 0.9
"""In multiples of what the last stage can do."""
EVERY_S = 5.0
WARM_S = 60.0
"""Caches and pools fill first; slopes are of what comes after."""
PARTS = 6


def soak_for(
    cluster: FaultyCluster, spec: Path, seconds: float, folder: Path, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Load for so long; slopes, and shares by part.

    Args:
        cluster: whole.
        spec: the ladder.
        seconds: how long.
        folder: for the recording.
        seed: of the arrivals.
        say: told what came of it.
    """
    out = folder / "soak.npz"
    samples: list[tuple[float, dict[str, tuple[int, int]]]] = []
    with Progress() as progress, sending(cluster.port, spec, LOAD, seconds, out, seed) as zero_s:
        bar = progress.add_task("soak", total=seconds)
        while time.time() < zero_s + seconds:
            samples.append((time.time() - zero_s, cluster.memory()))
            progress.update(bar, completed=time.time() - zero_s)
            time.sleep(min(EVERY_S, max(0.0, zero_s + seconds - time.time())))
    document = {**_outcomes(Recording.load(out)), "processes": _slopes(samples, min(WARM_S, seconds / 3))}
    for name, facts in document["processes"].items():
        say(f"{name}: {facts['rss_mib']:.0f} MiB, {facts['mib_per_hour']:+.1f} MiB an hour, files {facts['files']}")
    return document


def _slopes(samples: list[tuple[float, dict[str, tuple[int, int]]]], since_s: float) -> dict[str, dict[str, Any]]:
    found = {}
    for name in samples[-1][1]:
        at_s, values = zip(*[(at, sample[name]) for at, sample in samples if at >= since_s and name in sample], strict=True)
        mib = np.array([rss for rss, _ in values]) / (1 << 20)
        files = [files for _, files in values]
        slope = float(np.polyfit(at_s, mib, 1)[0]) if len(at_s) > 1 else 0.0
        found[name] = {
            "rss_mib": float(mib[-1]),
            "mib_per_hour": 3600 * slope,
            "files": [min(files), max(files)],
            # Whether it levels off: a slope alone does not say.
            "rss_mib_each_minute": {str(round(at / 60)): each for at, each in zip(at_s, mib.tolist(), strict=True)},
        }
    return found


def _outcomes(recording: Recording) -> dict[str, Any]:
    names = recording.meta["stages"]
    part = np.minimum((recording.scheduled_s / recording.arrivals.seconds * PARTS).astype(int), PARTS - 1)
    parts = []
    for place in range(PARTS):
        rows = part == place
        answered = recording.answered & rows
        shares = np.bincount(recording.stage[answered], minlength=len(names)) / max(1, answered.sum())
        right = int((recording.on_time & recording.correct)[rows].sum())
        parts.append({"sent": int(rows.sum()), "right": right / max(1, int(rows.sum())), "stages": shares.round(4).tolist()})
    return {
        "sent": len(recording.row),
        "answered": int(recording.answered.sum()),
        "on_time": int(recording.on_time.sum()),
        "p99_s": float(np.nanquantile(recording.latency_s, 0.99)),
        "parts": parts,
    }
