"""Clocks that differ from node to node, as those of machines of their own do: Linux's time namespaces. Knows no Ray.

The nodes of a cluster on one machine share its monotonic clock, so an instant that one process sends to another would look
right there, and be wrong by days on a real cluster. A node that is started here has a monotonic clock of its own. The time
since 1970 has no namespace; nothing that decides reads it (`tests/test_architecture.py`).
"""

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
CLONE_NEWTIME = 0x80
"""``linux/sched.h``, since Linux 5.6; see time_namespaces(7)."""


class ClockIsShared(Exception):
    """The system gives no clock of its own: no time namespaces, or no right to make one, which is CAP_SYS_ADMIN."""


def with_clock_ahead(seconds: int, start: Callable[[], T]) -> T:
    """Call something, whose child processes then have a monotonic clock of their own.

    Args:
        seconds: how far it is ahead of this process's.
        start: called in a thread of its own, and starts processes.

    Raises:
        ClockIsShared: nothing was called.
    """
    # Only the children of the thread that asked are in the namespace, and it cannot be left: so the thread ends.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_start, seconds, start).result()


def _start(seconds: int, start: Callable[[], T]) -> T:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWTIME) != 0:
        raise ClockIsShared(os.strerror(ctypes.get_errno()))
    with open(f"/proc/{threading.get_native_id()}/timens_offsets", "w", encoding="ascii") as offsets:
        offsets.write(f"monotonic {seconds} 0\n")
    return start()
