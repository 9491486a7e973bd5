"""A bar that shows where a run is, for a person at a terminal who asked Locust for nothing but a summary."""

import sys
import time
from typing import Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from loadtests.scenarios import Run


class Totals(Protocol):
    """What Locust has counted."""

    num_requests: int
    num_failures: int


class Progress:
    """The bar of one run; shows nothing unless standard error is a terminal."""

    def __init__(self, run: Run) -> None:
        self._arrivals = run.arrivals
        self._started = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[counts]}"), TimeElapsedColumn())
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task(run.scenario.name, total=run.arrivals.seconds, counts="")
        self._name = run.scenario.name
        self._bar.start()

    def update(self, totals: Totals) -> None:
        """Show how far it is."""
        arrivals = self._arrivals
        elapsed_s = time.monotonic() - self._started
        stretch = int(np.searchsorted(arrivals.edges, elapsed_s, side="right")) - 1
        phase = arrivals.phases[arrivals.labels[min(stretch, len(arrivals.labels) - 1)]]
        self._bar.update(
            self._task,
            completed=min(elapsed_s, arrivals.seconds),
            description=f"{self._name}: {phase:<12}",
            counts=f"{totals.num_requests:,} asked, {totals.num_failures:,} not answered",
        )

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()
