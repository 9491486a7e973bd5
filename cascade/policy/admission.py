"""The only place that turns a row away, and only before stage 0. Knows the predicted wait, the class and the deadline.

A row is admitted while the predicted wait for stage 0 is at most a share of its time to the deadline. Admitting whatever
could still just finish would spend the whole slack in front of the cheapest stage and leave none to escalate in.
"""

from dataclasses import dataclass
from math import ceil, isfinite
from random import Random

from cascade.policy.capacity import StageCapacity

PRIORITY_STEP = 0.25
"""Each class below the first loses this fraction of the share, so that the lowest class is turned away first."""
LONGEST_DRAIN_S = 10.0
"""What a client is told when stage 0 is out and the wait has no end."""


@dataclass(slots=True)
class Admission:
    """The door.

    Attributes:
        wait_share: share of a first-class row's time to its deadline that may pass before stage 0 begins.
        random: source of the jitter in ``retry_after_s``; seeded by the driver.
    """

    wait_share: float
    random: Random

    def admits(self, wait_s: float, remaining_s: float, priority: int) -> bool:
        """Whether a row may come in.

        Args:
            wait_s: predicted wait until its batch begins; infinite when stage 0 is out, and then nothing comes in.
            remaining_s: time to its deadline, infinite if it has none.
            priority: its class, 1 is the most important.
        """
        if remaining_s <= 0:
            return isfinite(wait_s)  # too late is not overload: the next dispatch says so
        factor = max(1.0 - PRIORITY_STEP * (priority - 1), PRIORITY_STEP / 2)
        return isfinite(wait_s) and wait_s <= self.wait_share * factor * remaining_s

    def retry_after_s(self, wait_s: float) -> int:
        """Whole seconds to stay away: the time to drain what waits, times a jitter in [1, 2] so that clients spread out."""
        return max(1, ceil(min(wait_s, LONGEST_DRAIN_S) * self.random.uniform(1.0, 2.0)))


def predicted_wait_s(stage: StageCapacity, waiting: int, first_free_s: float) -> float:
    """Seconds until the first row of a new message would begin on ``stage``.

    Only what is ahead of a message counts: a message that is too large for its own deadline is no sign of overload.

    Args:
        stage: the stage, open.
        waiting: rows in its queue.
        first_free_s: seconds until a slot is free, 0 if one is.
    """
    batches_ahead = waiting // stage.max_batch_size
    return first_free_s + batches_ahead * stage.service.predict(stage.max_batch_size) / stage.slots
