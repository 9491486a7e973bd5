"""How long a batch takes and how much a stage can do. Learns from the batches that a driver reports; measures nothing."""

from dataclasses import dataclass, field

CORRECTION_RATE = 0.1
"""Weight of the newest batch in the moving average: about the last ten batches count."""
CORRECTION_RANGE = (0.2, 8.0)
"""One wild observation may not make a stage look free or dead."""
FADE_RATE = 0.01
"""How much of the correction each row takes away that an idle stage refused because of it."""
RATIO_LIMIT = 20.0
"""A batch that took longer than this many times its profile counts as this much: something broke, and will be mended."""


@dataclass(slots=True)
class ServiceTime:
    """Batch service time S(n) = (a + b n) x correction, from call to return.

    The profile (a, b) is measured offline; the correction is the moving average of observed over profiled time, so it
    takes in the hop to the replica, the neighbours on the machine, and a slower device than the one profiled.

    Attributes:
        a_s: seconds that any batch takes.
        b_s: seconds that each row adds.
        correction: present ratio of observed to profiled time.
    """

    a_s: float
    b_s: float
    correction: float = 1.0
    _observed: int = field(default=0, repr=False)

    def predict(self, rows: int) -> float:
        """Seconds that a batch of ``rows`` will take."""
        return (self.a_s + self.b_s * rows) * self.correction

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from one finished batch."""
        ratio = min(seconds / (self.a_s + self.b_s * rows), RATIO_LIMIT)
        # The first observations weigh more, so that a profile from another machine is corrected within a few batches.
        self._observed += 1
        rate = max(CORRECTION_RATE, 1.0 / (1.0 + self._observed))
        low, high = CORRECTION_RANGE
        self.correction = min(max(self.correction + rate * (ratio - self.correction), low), high)

    def refused(self, left_s: float) -> None:
        """A row with ``left_s`` seconds left was refused on this prediction while the stage stood idle.

        Where the profile alone would have let it in, the correction is trusted a little less. Otherwise one slow batch
        could make the stage look too slow for every deadline, and with no batch sent nothing would ever prove it wrong.
        """
        if left_s >= self.a_s + self.b_s:
            self.correction *= 1.0 - FADE_RATE


@dataclass(slots=True)
class StageCapacity:
    """A stage as the policy sees it: places for batches, how large they may be, and how long they take.

    Attributes:
        slots: batches that may be with the stage's replicas at a time; 0 says that the stage is out.
        max_batch_size: rows in a batch, at most.
        service: the learned time of a call, from sending a batch to its return: it holds the way there and the wait behind
            another batch on the same replica.
        busy: batches that are with the replicas now.
        hop_s: part of the profile of ``service`` that is the way to a replica and back.
        work: the learned time for which a batch occupies a replica, from the same profile without the way.
    """

    slots: int
    max_batch_size: int
    service: ServiceTime
    busy: int = 0
    hop_s: float = 0.0
    work: ServiceTime = field(init=False)

    def __post_init__(self) -> None:
        self.work = ServiceTime(self.service.a_s - self.hop_s, self.service.b_s)

    @property
    def free(self) -> int:
        """Batches that may be sent now; never negative, also after slots were taken away."""
        return max(0, self.slots - self.busy)

    @property
    def rows_per_s(self) -> float:
        """Rows a second at full batches: slots x B / S(B)."""
        return self.slots * self.max_batch_size / self.service.predict(self.max_batch_size)

    def full_rows_per_s(self, replicas: int) -> float:
        """Rows a second of replicas that never idle: replicas x B / work(B); what a plan may count on.

        Args:
            replicas: healthy replicas of the stage, of all routers.
        """
        return replicas * self.max_batch_size / self.work.predict(self.max_batch_size)

    def observe(self, rows: int, call_s: float, run_s: float | None = None) -> None:
        """Learn from one finished batch.

        Args:
            rows: rows in it.
            call_s: seconds from sending it to its return.
            run_s: seconds for which it occupied its replica; None if nobody measured, and the call's are taken.
        """
        self.service.observe(rows, call_s)
        self.work.observe(rows, call_s if run_s is None else run_s)
