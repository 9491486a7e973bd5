"""Clocks that differ from node to node, as those of machines of their own do: Linux's time namespaces. Knows no Ray.

The nodes of a cluster on one machine share its monotonic clock, so an instant that one process sends to another would look
right there, and be wrong by days on a real cluster. A node that is started here has a monotonic clock of its own. The time
since 1970 has no namespace; nothing that decides reads it (`tests/faults/test_clients_deadlines.py`).
"""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

CLONE_NEWTIME = 0x80
"""``linux/sched.h``, since Linux 5.6; see time_namespaces(7)."""


class ClockIsShared(Exception):
    """The system gives no clock of its own: no time namespaces, or no right to make one, which is CAP_SYS_ADMIN."""


@contextmanager
def clock_ahead(seconds: int) -> Iterator[None]:
    """Processes that this thread starts have a monotonic clock that is ahead, for as long as the context lasts.

    Args:
        seconds: how far.

    Raises:
        ClockIsShared: nothing has changed.
    """
    _new_clock(seconds)
    try:
        yield
    finally:
        # A process with threads may not go back to an earlier namespace, but into a new one that is not ahead.
        _new_clock(0)


def _new_clock(ahead_s: int) -> None:
    """For the children of this thread; its own clock stays as it is."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWTIME) != 0:
        raise ClockIsShared(os.strerror(ctypes.get_errno()))
    with open(f"/proc/{threading.get_native_id()}/timens_offsets", "w", encoding="ascii") as offsets:
        offsets.write(f"monotonic {ahead_s} 0\n")
