"""What a GPU consumes, by its own counter, and which part of that is one process's. Knows three calls of NVML; no torch.

The counter is the whole board's, in millijoules since the driver was loaded, and moves on every 20 to 100 ms. Processes that
share a board split what it consumed by the time that each was busy; they tell each other of that time through a file in the
machine's temporary folder. Where there is no such counter, nothing is said: no figure here is an estimate from a data sheet.
"""

import importlib
import logging
import os
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_UN, flock
from pathlib import Path
from typing import Any

logger = logging.getLogger("cascade.stage")

READ_EVERY_S = 0.2
"""Several steps of the counter; between readings nothing is reported, and the next report holds all of it."""
SECONDS = struct.Struct("<d")


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy that a device took.

    Attributes:
        joules: all of it, idle time included.
        idle_joules: the part of it for time in which no process was busy, as if the device had the same power then: an upper
            bound, since it has less.
    """

    joules: float
    idle_joules: float

    def part(self, share: float) -> "Energy":
        """A share of both."""
        return Energy(self.joules * share, self.idle_joules * share)


class BusyBoard:
    """Seconds that all processes together were busy on one device, in a file that they share.

    Args:
        path: the file; made if there is none.
    """

    def __init__(self, path: Path) -> None:
        # Of whoever runs the server, and no link that somebody else has put there.
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def add(self, seconds: float) -> float:
        """Add this process's seconds; returns the sum of all."""
        flock(self._file, LOCK_EX)
        try:
            content = os.pread(self._file, SECONDS.size, 0)
            total = seconds + (SECONDS.unpack(content)[0] if len(content) == SECONDS.size else 0.0)
            os.pwrite(self._file, SECONDS.pack(total), 0)
        finally:
            flock(self._file, LOCK_UN)
        return total

    def close(self) -> None:
        """Give the file back; it stays for the others."""
        os.close(self._file)


class EnergyMeter:
    """One process's part of what its device consumes.

    Args:
        read: the device's counter, millijoules.
        board: where processes on the same device tell how busy they were; None for a process that has it to itself.
        clock: seconds, monotonic.
        every_s: time between two readings of the counter.
    """

    def __init__(
        self,
        read: Callable[[], int],
        board: BusyBoard | None = None,
        clock: Callable[[], float] = time.perf_counter,
        every_s: float = READ_EVERY_S,
    ) -> None:
        self._read = read
        self._board = board
        self._clock = clock
        self._every_s = every_s
        self._read_s = clock()
        self._millijoules = read()
        self._own_s = 0.0
        self._all_s = 0.0 if board is None else board.add(0.0)

    def spent(self, run_s: float) -> Energy | None:
        """What was consumed since the last report, told once in a while.

        Args:
            run_s: seconds that this process was busy with the batch that has just ended.

        Returns:
            Its part; None between reports, and if the counter cannot be read any more.
        """
        self._own_s += run_s
        now = self._clock()
        seconds = now - self._read_s
        if seconds < self._every_s:
            return None
        try:
            millijoules = self._read()
        except Exception:  # the driver's; what it raises depends on its version
            logger.warning("the energy counter cannot be read; energy is not measured for a while", exc_info=True)
            self._read_s = now
            return None
        all_s = self._own_s if self._board is None else self._board.add(self._own_s) - self._all_s
        joules = (millijoules - self._millijoules) / 1e3
        own = joules * (self._own_s / all_s if all_s > 0 else 0.0)
        idle = own * max(0.0, 1.0 - all_s / seconds)
        self._read_s, self._millijoules, self._own_s = now, millijoules, 0.0
        self._all_s += all_s if self._board is not None else 0.0
        return Energy(own, idle)


def nvml_meter(uuid: str, shared: bool, nvml: Any = None) -> EnergyMeter | None:
    """A meter of the device with a UUID, if NVML is there and the device has a counter; else None, and a line in the log.

    Args:
        uuid: as torch gives it, with or without ``GPU-``.
        shared: whether other processes use the device too.
        nvml: the module ``pynvml``; imported if None.
    """
    try:
        nvml = nvml or importlib.import_module("pynvml")
        nvml.nvmlInit()
        device = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        board = BusyBoard(Path(tempfile.gettempdir()) / f"cascade-busy-{uuid}") if shared else None
        return EnergyMeter(lambda: int(nvml.nvmlDeviceGetTotalEnergyConsumption(device)), board)
    except Exception as error:  # no package, no driver, no such counter, another user's file: all mean the same
        logger.warning("energy is not measured: %s", error or type(error).__name__)
        return None
