"""Inputs that the first stage fails on again and again. Knows digests and instants; nothing of rows or networks.

A row that fails alone costs its batch-mates up to a pass for each halving of their batch. Whoever sends it again, be it a
client that retries whatever it is told, is turned away for a while, before the row is let in. While that goes on every row
that comes is looked up; a sample of its bytes tells nearly all others apart, so that few need a digest of all of them.
"""

from collections.abc import Callable, Iterable

SUSPECT_AFTER = 2
"""Failures after which an input is turned away: one may have been the machine's."""
QUARANTINE_S = 60.0
"""For how long, and how long a first failure is remembered."""
MOST_INPUTS = 1024
"""Of more than these, the ones that failed longest ago are forgotten."""


class Quarantine:
    """The inputs that failed lately, by digest."""

    __slots__ = ("_failures", "_samples", "_until_s")

    def __init__(self) -> None:
        self._failures: dict[bytes, tuple[int, float]] = {}
        self._samples: dict[bytes, bytes] = {}
        self._until_s = 0.0

    def active(self, now: float) -> bool:
        """Whether any input is turned away now; where none is nobody need make digests."""
        return now < self._until_s

    def poisoned(self, now: float, sample: bytes, digest: bytes) -> None:
        """An input failed alone.

        Args:
            now: present instant.
            sample: some of its bytes.
            digest: of all of them.
        """
        failures, at_s = self._failures.pop(digest, (0, now))
        failures = 1 if now - at_s >= QUARANTINE_S else failures + 1
        if len(self._failures) >= MOST_INPUTS:
            oldest = next(iter(self._failures))
            del self._failures[oldest]
            self._samples.pop(oldest, None)
        self._failures[digest] = failures, now
        if failures >= SUSPECT_AFTER:
            self._samples[digest] = sample
            self._until_s = now + QUARANTINE_S

    def first_refused(self, now: float, samples: Iterable[bytes], digest_of: Callable[[int], bytes]) -> int | None:
        """Which of these inputs is turned away, the first of them by place; None if none is.

        Args:
            now: present instant.
            samples: of a message's rows, in order.
            digest_of: place of a row to its digest.
        """
        suspects = set(self._samples.values())
        for place, sample in enumerate(samples):
            if sample in suspects:
                failures, at_s = self._failures.get(digest_of(place), (0, now))
                if failures >= SUSPECT_AFTER and now - at_s < QUARANTINE_S:
                    return place
        return None
