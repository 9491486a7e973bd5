"""How much may wait before a stage, and for how long. Knows capacities and the usual deadline; no row and no queue."""

from cascade.policy.capacity import StageCapacity

QUEUE_SHARE = 0.25
"""Work that may wait before a stage, as a share of the usual deadline: it must leave time for the stages behind."""
LAST_QUEUE_SHARE = 0.5
"""The same before the last stage, which has none behind it."""
REACH_SHARE, REACH_BATCHES = 0.25, 5
"""How far back a busy stage looks at what it has taken: a share of the usual deadline, and at least so many batches."""


class Bounds:
    """The bounds of the queues of a ladder.

    Args:
        stages: how many there are.
        usual_deadline_s: the deadline that they are measured against.

    Attributes:
        shares: share of a deadline for which rows may wait before each stage.
    """

    __slots__ = ("_usual_deadline_s", "shares")

    def __init__(self, stages: int, usual_deadline_s: float) -> None:
        self.shares = (*(QUEUE_SHARE for _ in range(stages - 1)), LAST_QUEUE_SHARE)
        self._usual_deadline_s = usual_deadline_s

    def rows(self, stage: int, capacity: StageCapacity) -> int:
        """Rows that may wait: the work of a share of the usual deadline, and at least one batch for each slot."""
        by_work = int(self.shares[stage] * self._usual_deadline_s * capacity.rows_per_s)
        return max(by_work, capacity.slots * capacity.max_batch_size)

    def window_s(self, capacity: StageCapacity) -> float:
        """Time in which a busy stage takes so many batches that a row below all of them waits in vain."""
        batch_s = capacity.service.predict(capacity.max_batch_size) / max(1, capacity.slots)
        return max(REACH_SHARE * self._usual_deadline_s, REACH_BATCHES * batch_s)
